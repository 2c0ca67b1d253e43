"""evaluate.py as a user runs it: exports of every purpose, files in place of the hub, stopping and going on."""

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import wandb
from lm_eval.tasks import TaskManager

from aira.config.compose import compose_config
from aira.errors import AiraError
from aira.evaluating import evaluate
from aira.evaluation.measure import _main_figure
from aira.evaluation.results import Line, Score, compare, published_lines, record_scores, table
from aira.evaluation.tasks import harness_task
from aira.models.export import export
from aira.models.loading import load_model, load_tokenizer
from aira.reports.page import evaluations
from aira.reports.runs import Run
from tests.end_to_end.command import ENVIRONMENT, ROOT
from tests.wandb_records import records

SHAPE = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 512}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """An export of each purpose, with random weights."""
    folder = tmp_path_factory.mktemp("exports")
    for name, head, label in (("chat", "lm", None), ("reward", "score", "reward"), ("toxicity", "score", "harmless")):
        tokenizer, added = load_tokenizer("pkg://aira.models/tiny/causal", head=head)
        model = load_model("pkg://aira.models/tiny/causal", tokenizer, added, head=head, label=label, config=SHAPE)
        export(model, tokenizer, folder / name / "export", "card")
    return folder


def measured(run, *overrides):
    return evaluate(compose_config("evaluate", [f"cache_dir={run.parent}/cache", *overrides]), run)


@pytest.mark.parametrize("language", ["en", "pt"])
def test_the_sample_for_every_role(exports, tmp_path, capsys, language):
    """One command, three models of different purposes; scorers stand beside their baselines."""
    for purpose in ("chat", "reward", "toxicity"):
        run = tmp_path / purpose
        found = measured(run, f"model.path={exports / purpose}", f"language={language}", "eval.limit=40")
        assert list(found) == [purpose]
        results = json.loads((run / purpose / "results.json").read_text())
        (task,) = results["results"]
        assert language in task and results["aira"]["purpose"] == purpose and results["aira"]["environment"]["versions"]
        rows = [json.loads(line) for line in (run / purpose / "rows" / f"{task}.jsonl").read_text().splitlines()]
        assert len(rows) == 40
        name = "acc_norm" if purpose == "chat" else "accuracy"
        assert found[purpose][task][name] == pytest.approx(sum(row["value"] for row in rows) / 40)
        printed = capsys.readouterr().out
        baselines = {"chat": [], "reward": ["chance"], "toxicity": ["majority"]}[purpose]
        assert all(word in printed for word in [*baselines, *(["length", "bag_of_words"] if baselines else [])])
        assert (run / "table.md").read_text().startswith("| model | sample_")
        assert r"\begin{tabular}" in (run / "table.tex").read_text()
        if purpose == "toxicity":
            balanced, f1 = (100 * found[purpose][task][key] for key in ("balanced_accuracy", "f1"))
            assert f"| toxicity | {balanced:.2f} | {f1:.2f} |" in (run / "table.md").read_text()
            assert printed.count("majority") == 2
        else:
            assert "balanced" not in printed


def test_tracked(exports, tmp_path, monkeypatch):
    """The table and the figures reach Weights & Biases, here an offline run."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    measured(run, f"model.path={exports}/reward", "eval.limit=40", "logger=wandb")
    wandb.finish()
    (offline,) = run.glob("wandb/offline-run-*")
    (file,) = offline.glob("*.wandb")
    content = b"".join(record.SerializeToString() for record in records(file))  # in the file, records are cut to blocks
    assert b"eval/reward/sample_preference_en/accuracy" in content
    assert list(offline.rglob("evaluation*.table.json"))
    logged = "".join(file.read_text() for file in run.glob("logs/*/metrics.csv"))
    assert "eval/reward/sample_preference_en/accuracy" in logged


def test_rows_of_two_draws(exports, tmp_path):
    """Catches a comparison of two evaluations that takes the rows of one for others of the other."""
    for name, limit in (("few", 20), ("more", 60)):
        measured(tmp_path / name, f"model.path={exports}/reward", f"eval.limit={limit}")
    (found,) = compare([str(tmp_path / "few"), str(tmp_path / "more")], seed=0)
    assert (found["rows"], found["difference"]) == (20, 0) and found["low"] < 0 < found["high"]
    same = measured(tmp_path / "same", f"model.path={exports}/toxicity", "eval.limit=20")
    told = measured(tmp_path / "told", f"model.path={exports}/toxicity", "eval.limit=20", "eval.high_score=toxic")
    assert told == same, "the model says itself what a high score means"


def test_the_figure_of_a_task():
    """Catches a task whose figures are all behind filters of its own."""
    figures = {"alias": "gsm8k", "exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": 0.01}
    assert _main_figure(figures) == "exact_match,strict-match"
    with pytest.raises(AiraError, match="no figure for a-group"):
        _main_figure({"alias": "a-group"})


@pytest.mark.slow
def test_a_name_for_several_tasks_is_taken_apart():
    """Catches a tag of the harness, which it answers with no figure of its own after all the work."""
    manager = TaskManager()
    with pytest.raises(AiraError, match=r"eval.tasks=\[arc_challenge,arc_easy\]"):
        harness_task("ai2_arc", 5, None, manager)
    with pytest.raises(AiraError, match="mmlu is a group"):
        harness_task("mmlu", 5, None, manager)
    assert _main_figure({"bleu,none": 3.0, "acc,none": 0.5, "acc_norm_stderr,none": 0.1}) == "acc,none"


def test_several_models_and_which_is_better(exports, tmp_path, capsys):
    run = tmp_path / "both"
    found = measured(run, f"models=[{exports}/rew*,{exports}/reward/export]", "eval.limit=40")
    assert list(found) == ["reward", "reward-2"]
    (same,) = compare([str(run / "reward"), str(run / "reward-2")], seed=0)
    assert (same["rows"], same["difference"]) == (40, 0) and same["low"] < 0 < same["high"]
    with pytest.raises(AiraError, match="several models"):
        compare([str(run), str(run)], seed=0)
    told = measured(tmp_path / "told", f"compare=[{run}/reward,{run}/reward-2]")
    assert "other settings" not in capsys.readouterr().out
    file = run / "reward-2" / "results.json"
    file.write_text(file.read_text().replace('"num_fewshot": {}', '"num_fewshot": {"t": 5}'))
    measured(tmp_path / "again", f"compare=[{run}/reward,{run}/reward-2]")
    assert "other settings: eval.num_fewshot ({} and {'t': 5})." in capsys.readouterr().out
    assert told["compare"][0]["task"] == "sample_preference_en"


SUITE = {"num_fewshot": {}, "limit": None, "max_length": None, "chat_template": False}


def test_only_equal_settings_are_ranked(tmp_path):
    """Catches a best figure among evaluations of other settings, and one that replaces another."""
    settings = [
        SUITE,
        SUITE | {"num_fewshot": {"t": 25}},
        SUITE | {"num_fewshot": {"t": 0}},
        SUITE | {"limit": 10},
        SUITE | {"limit": 20},
        SUITE | {"chat_template": True},
        SUITE | {"max_length": 128},
    ]
    runs = []
    for i in range(2):
        run = Run(f"r{i}", tmp_path / f"r{i}", {}, {}, {}, {}, [], None, [])
        run.folder.mkdir()
        for suite in settings if i else settings[:1]:
            record_scores(
                run.folder,
                [Line(run.name, {"t": Score(0.5 + i / 10)}, candidate=True)],
                SimpleNamespace(**suite),
                0,
                chat=True,
            )
        record_scores(
            run.folder,
            [Line(run.name, {"t": Score(0.5)}, candidate=True)],
            SimpleNamespace(**SUITE),
            seed=5 + i,
            chat=True,
        )
        lines = (run.folder / "evaluations.jsonl").read_text().splitlines()
        run.evaluations = [json.loads(line) for line in lines]
        runs.append(run)
    tasks, rows, marks = evaluations(runs)
    assert len(tasks) == len(set(tasks)) == len(settings) + 2
    assert [sum(map(bool, row[1:])) for row in rows] == [2, len(settings) + 1]
    assert [sum(marked) for marked in marks] == [0, 1] and marks[1][tasks.index("t")]


@pytest.mark.slow
def test_scorers_on_real_files(exports, tmp_path, data_folder):
    """The files' columns are read, and each purpose has its tasks; both classes are there."""
    for purpose, suite, tasks in (
        ("reward", "reward", ["hh_harmless", "hh_helpful"]),
        ("toxicity", "toxicity-en", ["wiki_toxic"]),
        ("toxicity", "toxicity-pt", ["hatecheck_pt", "told_br"]),
    ):
        given = [f"eval={suite}", f"eval.tasks=[{','.join(tasks)}]", f"eval.data_dir={data_folder}", "eval.limit=60"]
        found = measured(tmp_path / suite, f"model.path={exports / purpose}", *given)[purpose]
        assert list(found) == tasks
        for figures in found.values():
            assert {"accuracy", "low", "high", "difference", "lower", "upper"} <= set(figures)


@pytest.mark.slow
def test_benchmarks_of_chat_models_on_real_files(exports, tmp_path, data_folder):
    """The harness's tasks with rows from files; questions longer than the context are cut as the harness cuts."""
    given = ["eval=aira-en", f"eval.data_dir={data_folder}", "eval.limit=3", "eval.published=[GPT-2]"]
    found = measured(tmp_path / "run", f"model.path={exports / 'chat'}", *given)["chat"]
    assert list(found) == ["arc_challenge", "truthfulqa_mc2", "toxigen", "truthfulqa_mc1"]
    results = json.loads((tmp_path / "run" / "chat" / "results.json").read_text())
    assert results["n-shot"]["arc_challenge"] == 25
    assert "GPT-2 (published)" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["eval=reward"], "not for a chat model"),
        (["eval=aira-en", "eval.data_dir=nowhere"], "no file arc_challenge_test.jsonl.*allenai/ai2_arc"),
        (["eval.tasks=[arc_chalenge]"], "Did you mean 'arc_challenge'"),
        (["eval.tasks=[told_br]", "model.path={folder}/toxicity"], "set eval.data_dir="),
        (["eval.published=[GPT2]"], "no such line was published"),
        (["model.path=last", "output_dir=nowhere"], r"Train first \(aira train\)"),
        (["models=[nothing/*]"], "nothing has such a name"),
        (["compare=[nowhere,nowhere]"], "holds no evaluation"),
        (["eval.max_length=9999"], r"eval\.max_length=9999: the context of .*chat is \d+ tokens"),
        (["eval.precision=half"], "valid are 32-true, bf16-mixed"),
    ],
)
def test_errors_before_long_work(exports, tmp_path, overrides, message):
    given = [override.format(folder=exports) for override in overrides]
    chosen = [] if any(one.startswith(("model", "compare")) for one in given) else [f"model.path={exports}/chat"]
    with pytest.raises(AiraError, match=message):
        measured(tmp_path / "run", *chosen, *given)


def test_nothing_is_asked_of_git(exports, tmp_path, monkeypatch, capfd):
    """Catches what git says to the harness in a folder that is no repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    measured(tmp_path / "run", f"model.path={exports / 'chat'}", "eval.limit=2")
    assert "git" not in capfd.readouterr().err


@pytest.mark.slow
def test_killed_and_gone_on_with(exports, tmp_path):
    """Killed half way, the next call scores only what is missing, and ends with the same figures."""
    command = [sys.executable, str(ROOT / "evaluate.py"), f"model.path={exports}/toxicity", "language=pt"]
    command += [f"cache_dir={tmp_path}/cache", "eval.tokens_per_row=32"]
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={tmp_path}/killed"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL
    )
    store = tmp_path / "cache" / "evaluated"
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None and not _kept(store):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = _kept(store)
    found = measured(tmp_path / "after", f"model.path={exports}/toxicity", "language=pt", f"cache_dir={tmp_path}/cache")
    fresh = measured(tmp_path / "fresh", f"model.path={exports}/toxicity", "language=pt", f"cache_dir={tmp_path}/other")
    whole = _kept(tmp_path / "other" / "evaluated")
    assert 0 < before < whole == _kept(store), "it was to be killed half way"
    for name, value in fresh["toxicity"]["sample_labelled_pt"].items():
        assert found["toxicity"]["sample_labelled_pt"][name] == pytest.approx(value, abs=1e-5)


def _kept(store):
    """Answers on disk."""
    import sqlite3

    count = 0
    for file in store.glob("*.db") if store.is_dir() else ():
        try:
            # not read-only: what a killed writer left half done is rolled back by who opens the file next
            with sqlite3.connect(file) as connection:
                count += connection.execute("select count(*) from unnamed").fetchone()[0]
        except sqlite3.Error:
            continue
    return count


def test_published_lines():
    """Means are computed; where the published average is another number, both are shown."""
    lines = published_lines(["Aira-2-355M", "Aira-2-portuguese-124M", "Aira-2-774M"])
    tasks = ["arc_challenge", "truthfulqa_mc2", "toxigen", "arc_pt", "truthfulqa_pt_mc2"]
    shown = table(lines, tasks, tasks)
    assert "39.76 (published as 39.68)" in shown and "32.73 (published as 34.73)" in shown
    assert "42.26 |" in shown and "published as 42.26" not in shown


def test_best_is_bold():
    lines = [
        Line(
            "a",
            {"t": Score(0.5, stderr=0.01), "w": Score(20.0, percent=False, lower=True), "m": Score(0.2, percent=False)},
            candidate=True,
        ),
        Line(
            "b",
            {"t": Score(0.6, 0.55, 0.65), "w": Score(30.0, percent=False, lower=True), "m": Score(0.3, percent=False)},
            candidate=True,
        ),
        Line("rule", {"t": Score(0.9)}),
    ]
    shown = table(lines, ["t", "w", "m"], ["t"])
    assert "| a | 50.00 ± 1.00 | **20.00** | 0.20 |" in shown, "of perplexities, less is better"
    assert "| b | **60.00 [55.0, 65.0]** | 30.00 | **0.30** |" in shown
    assert "| rule | 90.00 | – | – |" in shown
    assert r"\textbf{60.00 [55.0, 65.0]}" in table(lines, ["t", "w", "m"], ["t"], "latex")
