"""The page: what stands in it is what the runs left behind, and nothing in it can run."""

import json
import os
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from wandb_workspaces.reports.v2 import internal

from aira.commands.report import main
from aira.config.record import read_config, write_config
from aira.errors import AiraError
from aira.files import write_atomically
from aira.reports import plots
from aira.reports.page import confusion, page
from aira.reports.runs import differing, find_runs, read_run
from aira.reports.wandb import report
from aira.trials import rows_of_log

TEXTS = [(i, 0, i % 2, 3.0 - 4 * (i % 2) + (i % 5) / 10) for i in range(20)]
PAIRS = [(i, side, -1, 1.0 - side + (2 * side if i < 3 else 0)) for i in range(20) for side in (0, 1)]


class Reader(HTMLParser):
    """Headings, tables as lists of rows, and everything that could load or run something."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.tables, self.dangerous, self.plots, self._open = [], {}, [], 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self._open = tag
        if tag == "table":
            self.table = self.tables.setdefault(given["aria-label"], [])
        elif tag == "tr":
            self.table.append([])
        elif tag in ("td", "th"):
            self.table[-1].append("")
        self.plots += tag == "svg"
        loads = [name for name in given if name.startswith("on") or name in ("src", "srcset", "action", "data")]
        outside = [v for k, v in attributes if k.endswith("href") and not v.startswith("#")]
        if tag in ("script", "iframe", "link", "object", "img", "form") or loads or outside:
            self.dangerous.append((tag, attributes))

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in ("td", "th"):
            self.table[-1][-1] += data
        elif self._open in ("h1", "h2"):
            self.headings.append(data)


def test_runs_of_one_name(make, tmp_path):
    """Catches runs of two sweeps that take each other's place, the largest perplexity as the best, a cut line."""
    for folder, value in (("a", 2.0), ("b", 3.0)):
        run = make(f"{folder}/000", loss=value)
        (run / "metrics.json").write_text(json.dumps({"val/loss": value, "val/perplexity": value}))
        row = {"task": "t", "name": "000", "candidate": True, "value": 0.5, "shown": folder, "lower": False}
        (run / "evaluations.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:20] + "\n")
    evaluation = tmp_path / "runs" / "a" / "an-evaluation"
    (evaluation / ".hydra").mkdir(parents=True)
    (evaluation / ".hydra" / "config.yaml").write_text("eval: {name: sample}\n")
    (evaluation / "logs").mkdir()
    text = page([run for folder in "ab" for run in find_runs(tmp_path / "runs" / folder)], "Two")
    tables = Reader(text).tables
    assert [row[0] for row in tables["Summary"][1:]] == ["a/000", "b/000"]
    assert {row[0]: row[1] for row in tables["Evaluation"][1:]} == {"a/000": "a", "b/000": "b"}
    best = re.findall(r'<td class="[^"]*best[^"]*">([^<]*)</td>', text)
    assert best and "3" not in best


def test_a_sweep(make, tmp_path):
    """Catches runs in the wrong order, a best that is not, and keys that differ and are not shown."""
    for i, (loss, rate) in enumerate([(1.2, "1e-3"), (0.9, "1e-4"), (1.5, "1e-5")]):
        make(str(i), f"optimizer.lr={rate}", "method=sft", loss=loss, trial=["method=sft", f"optimizer.lr={rate}"])
    make("3", "optimizer.lr=1", "method=sft", finished=False, trial=["method=sft", "optimizer.lr=1"])
    runs = find_runs(tmp_path / "runs")
    text = page(runs, "A sweep")
    read = Reader(text)
    head, *rows = read.tables["Summary"]
    assert [row[0].split()[0] for row in rows] == ["1", "0", "2", "3"] and "(not finished)" in rows[3][0]
    assert [row[head.index("optimizer.lr")] for row in rows] == ["0.0001", "0.001", "1e-05", "1"]
    assert [row[head.index("val/loss")] for row in rows] == ["0.9", "1.2", "1.5", ""]
    assert "aira train method=sft optimizer.lr=1e-4" in text
    assert {"A sweep", "Summary", "Sweep", "Curves", "Cost", "How it was made"} == set(read.headings)
    assert read.plots == 4 and not read.dangerous  # parallel coordinates, two losses, energy
    assert len(re.findall(r'class="number best">0.9<', text)) == 1
    assert differing(runs) == {"optimizer.lr": [1e-3, 1e-4, 1e-5, 1]}


def test_no_winner_where_settings_change_what_a_metric_means(make, tmp_path):
    """Catches a beta, a method, data or a tokenizer that wins by the unit of its metric."""
    rows = [("low", 0.05, 0.8, 0.6), ("mid", 0.1, 0.7, 0.9), ("high", 0.5, 0.3, 0.7)]
    for name, beta, loss, accuracy in rows:
        overrides = ["method=dpo", f"method.beta={beta}"]
        folder = make(name, *overrides, loss=loss, trial=overrides)
        metrics = {
            "val/loss": loss,
            "val/rewards/accuracies": accuracy,
            "val/rewards/margins": beta,
            "train/loss": loss,
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
    text = page(find_runs(tmp_path / "runs"), "Betas")
    _, *found = Reader(text).tables["Summary"]
    assert [row[0] for row in found] == ["mid", "high", "low"]
    assert re.findall(r'<td class="[^"]*best[^"]*">([^<]*)</td>', text) == ["0.9"]
    assert "Ordered by val/rewards/accuracies" in text and "val/loss is not compared: method.beta changes" in text
    assert "aira train method=dpo method.beta=0.1" in text

    make("tuned", loss=0.1)
    other = make("other", "data.path=elsewhere.jsonl", loss=0.2)
    text = page([read_run(tmp_path / "runs" / name) for name in ("mid", "tuned", "other")], "All")
    assert "best" not in "".join(re.findall(r'<td class="([^"]*)"', text))
    assert "Runs with another method.name or data.path are not compared" in text

    for folder, tokenizer in ((make("a", loss=0.3), "x"), (make("b", loss=0.2), "y"), (make("c", loss=0.4), "x")):
        (folder / "environment.json").write_text(json.dumps({"tokenizer": tokenizer, "data_key": "k"}))
    text = page([read_run(tmp_path / "runs" / name) for name in "abc"], "Tokenizers")
    assert [row[0] for row in Reader(text).tables["Summary"][1:]] == ["a", "c", "b"]
    assert "0.3" in re.findall(r'<td class="[^"]*best[^"]*">([^<]*)</td>', text) and other.exists()


def test_scorers_and_answers(make):
    """Catches a threshold that is applied the wrong way round, and text of a model that becomes markup."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = make("toxic", "method=toxicity", scores=TEXTS, answers=[(3, "Who?", "old"), (3, "Who?", evil)])
    text = page([read_run(folder)], "Toxicity")
    read = Reader(text)
    assert read.tables["Answers, toxic"] == [["step", "question", "answer"], ["3", "Who?", evil]]
    assert not read.dangerous and "&lt;script&gt;" in text
    assert [row[1:] for row in read.tables["Held-out texts, toxic"][1:]] == [["10", "0"], ["0", "10"]]
    assert "area 1.000" in text
    table = confusion(np.array([True, False, True]), np.array([True, True, False]))
    assert [[cell.text for cell in row] for row in table.rows] == [["harmless", "0", "1"], ["toxic", "1", "1"]]
    pairs = page([read_run(make("pairs", "method=reward", scores=PAIRS))], "Reward")
    assert "Calibration on held-out pairs" in pairs and "Scores of held-out answers" in pairs


def test_the_page_is_the_same_each_time(make):
    """Catches dates and random ids, which make two reports on the same run differ."""
    run = read_run(make("one"))
    assert page([run], "One") == page([run], "One")


def test_a_log_that_was_gone_on_with(make):
    """Catches steps that are drawn twice after a run was gone on with."""
    folder = make("one")
    again = folder / "logs" / "version_1"
    again.mkdir()
    (again / "metrics.csv").write_text("step,train/loss\n5,7.5\n6,7.0\n")
    steps, values = read_run(folder).curves["train/loss"]
    assert steps == list(range(7)) and values[5:] == [7.5, 7.0]


def test_weights_and_biases(make, tmp_path, monkeypatch):
    """Catches a spec that the library itself would not read."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = read_run(make("one", answers=[(3, "Who | are you?", "I\nam")]))
    file = tmp_path / "report.json"
    assert report([run], "One", "aira", None, file) == str(file)
    spec = internal.Spec.model_validate_json(file.read_text())
    written = file.read_text()
    assert len(spec.blocks) >= 6 and "train/loss" in written and "Who \\\\| are you?" in written and "one" in written


def test_the_command(make, tmp_path, monkeypatch, capsys):
    """Catches a command that writes nothing, or answers a wrong key with a traceback."""
    folder = make("one")
    two = make("two")
    monkeypatch.setattr(sys, "argv", ["reports", f"runs=[{folder},{two},{two.parent}]", "title=Both"])
    main()
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    read = Reader((folder / "report.html").read_text())
    assert "Both" in read.headings and [row[0] for row in read.tables["Summary"][1:]] == ["one", "two"]
    wrong = {"": "runs", "rns=here": "Did you mean 'runs'?", "runs=nowhere": "no such folder"}
    for argument, message in wrong.items():
        monkeypatch.setattr(sys, "argv", ["reports", *filter(None, [argument])])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_no_runs(tmp_path):
    """Catches an empty page where a folder holds no run."""
    with pytest.raises(AiraError, match="no training run"):
        find_runs(tmp_path)
    with pytest.raises(AiraError, match="no such folder"):
        find_runs(tmp_path / "nowhere")


STRANGE = {
    ".hydra/config.yaml": "method: [1]",
    "metrics.json": '{"val/loss": "<b>", "x": NaN, "y": 1' + "0" * 500 + ', "val/perplexity": Infinity, "z": {}}',
    "environment.json": '["<script>"]',
    "logs/version_x/metrics.csv": "step,train/loss\n1,2\nx,y\n3",
    "samples.jsonl": '{"step": 1}\n{"step": "<script>", "question": 1, "answer": 2}\n[]\nnull\n{"st',
    "scores.csv": "row,branch,label,score\n1,2\n3,4,5,nan\n",
    "evaluations.jsonl": '{"task": "t", "name": [], "candidate": true}\n7\n',
    "trial.json": '{"a": 1}',
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("how", ["damaged", "link", "deep", "binary", "folder"])
def test_a_strangers_file(make, tmp_path, capsys, name, how):
    """Catches a traceback where a file of a run is cut, of another kind, deep, or leads out of the folder."""
    good, run = make("good"), make("strange", answers=[(1, "Q", "A")])
    file, secret = run / name, tmp_path / "secret"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    secret.write_text("step,question,answer,planted-secret\n1,2,3,4\n")
    if how == "damaged":
        file.write_text(STRANGE[name])
    elif how == "link":
        file.symlink_to(secret)
    elif how == "deep":
        file.write_text("[" * 50_000)
    elif how == "binary":
        file.write_bytes(bytes(range(256)))
    else:
        file.mkdir()
    runs = find_runs(tmp_path / "runs")
    assert [run.name for run in runs] == ["good", "strange"][: 1 + (name != ".hydra/config.yaml")]
    assert "planted-secret" not in str(runs)
    told = name in ("metrics.json", "environment.json", "trial.json", "scores.csv", ".hydra/config.yaml")
    if told and (name, how) != ("metrics.json", "damaged"):
        assert name in capsys.readouterr().err
    assert good.is_dir()


def test_a_page_of_strange_files(make, tmp_path):
    """Catches a traceback, and markup that runs, where nearly nothing of a run can be read."""
    run = make("strange")
    for name, text in STRANGE.items():
        if name != ".hydra/config.yaml":
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(text)
    assert not Reader(page(find_runs(tmp_path / "runs"), "Runs")).dangerous


def put(name, text):
    return lambda run: (run / name).write_text(text)


def setting(group, key, value):
    """A change of a run's configuration."""

    def change(run):
        values = read_config(run)
        (values[group] if group else values)[key] = value
        write_config(run, values)

    return change


def log(text):
    return put("logs/version_0/metrics.csv", f"step,train/loss\n{text}\n")


def scored(*rows):
    return put("scores.csv", "\n".join(["row,branch,label,score", *rows, ""]))


HALF = "\\ud800"
"""Half of a character, as JSON and YAML can have it."""

ODD = {
    "a summary that is a number": setting("method", "summary", 5),
    "a summary of lists": setting("method", "summary", [["val/loss"]]),
    "a monitor that is a list": setting("method", "monitor", ["val/loss"]),
    "a metric to compare by that is a list": setting("method", "compare_by", ["val/loss"]),
    "a mode that is a number": setting("method", "mode", 1),
    "a method without a name": setting("method", "name", None),
    "a language that is a list": setting("language", "code", ["en"]),
    "questions that are numbers": setting("language", "questions", [1]),
    "a label that is a list": setting("method", "label", []),
    "data that is a mapping": setting("data", "path", {"a": 1}),
    "a seed that is a variable": setting(None, "seed", "${oc.env:PLANTED_TOKEN}"),
    "a model that is a variable": setting("model", "path", "${oc.env:PLANTED_TOKEN}"),
    "half of a character in a configuration": lambda run: (run / ".hydra/config.yaml").write_text(
        (run / ".hydra/config.yaml").read_text() + f'q: "{HALF}"\n'
    ),
    "an infinite energy": put("metrics.json", '{"val/loss": 1, "emissions/energy_kwh": Infinity}'),
    "an energy that overflows": put("metrics.json", '{"val/loss": 1, "emissions/energy_kwh": 1e308}'),
    "a loss that overflows": put("metrics.json", '{"val/loss": 1e308}'),
    "a loss that is true": put("metrics.json", '{"val/loss": true}'),
    "half of a character in a metric": put("metrics.json", f'{{"val/{HALF}": 1}}'),
    "a curve that overflows": log("1,1e308\n2,-1e308"),
    "a step that overflows": log(f"{'9' * 400},1"),
    "a field of a megabyte": log(f'1,"{"x" * 10**6}"'),
    "a byte of 0 in a log": log("1,\0\n2,3"),
    "a quote that does not end": log('"1,2\n3,4'),
    "pairs that are none": scored("1,0,-1,2", "1,1,-1,3", "2,0,-1,4"),
    "pairs of other rows": scored("1,0,-1,2", "2,1,-1,3"),
    "classes that are none": scored("1,0,3,2", "2,0,7,3"),
    "scores that overflow": scored("1,0,0,1e308", "2,0,1,-1e308"),
    "half of a character in an answer": put(
        "samples.jsonl", f'{{"step": 1, "question": "{HALF}", "answer": "{HALF}"}}'
    ),
    "a step of many digits": put("samples.jsonl", f'{{"step": 1{"0" * 4000}, "question": "a", "answer": "b"}}'),
    "half of a character in an environment": put("environment.json", f'{{"a": "{HALF}"}}'),
    "an environment of other kinds": put("environment.json", '{"tokenizer": {"x": [1]}, "data_key": [[]]}'),
    "a figure that is no number": put(
        "evaluations.jsonl", '{"task": "t", "name": "n", "candidate": true, "value": NaN, "shown": "x", "lower": true}'
    ),
    "a trial of other kinds": put("trial.json", f'["a=1", 5, ["x"], "", "=", "+x=1", "~y", "{HALF}=1", "$x_{{=1"]'),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_run_beside_a_good_one(make, tmp_path, monkeypatch, odd):
    """Catches a traceback, and numbers of rows that do not belong together, where files can be read and are odd."""
    monkeypatch.setenv("PLANTED_TOKEN", "hf_planted")
    make("good")
    odd(make("strange"))
    runs = find_runs(tmp_path / "runs")
    write_atomically(tmp_path / "page.html", page(runs[1:] or runs, "Runs"))
    text = (tmp_path / "page.html").read_text()
    assert "hf_planted" not in text and not Reader(text).dangerous
    assert "nan" not in "".join(cell for row in Reader(text).tables["Summary"] for cell in row)
    assert "Calibration" not in text and "ROC" not in text


def test_a_log_that_is_being_written():
    """Catches half of a number as a number: `0.5` of `0.513`."""
    assert list(rows_of_log("step,val/loss\r\n1,0.7\r\n2,0.5")) == [{"step": "1", "val/loss": "0.7"}]
    assert list(rows_of_log("step,val")) == list(rows_of_log("")) == []


@pytest.mark.parametrize(
    "name, shown",
    [
        ("_under", "\u200b_under"),
        ("$x_y$", "$x_y$"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("a\nb\tc", "a b c"),
        ("\x1b[31m", "[31m"),
        ("\udcff", "\u200b"),
        ("日本", "日本"),
        ("x" * 60, "x" * 20 + "…" + "x" * 20),
    ],
)
def test_names_in_a_plot(recwarn, name, shown):
    """Catches a run that no legend names, as matplotlib does with an _ at the beginning, and warnings for a font."""
    drawn = plots.curves("Loss", {name: ([1, 2], [1.0, 2.0]), "other": ([1, 2], [2.0, 1.0])})
    assert f">{shown}</text>" in drawn and not [one for one in recwarn if "Glyph" in str(one.message)]


@pytest.mark.parametrize("name", ["a=b", "x>1", "it's", 'a"b', "a\\b", "😀", "a within_last 5 days", "[x, y]", "a\nb"])
def test_names_in_a_report_of_weights_and_biases(make, tmp_path, monkeypatch, name):
    """Catches a name that the library's filters take for operators, so that no run is found."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    report([read_run(make(name))], "Title \ud800", "aira", None, tmp_path / "report.json")
    assert json.dumps([name], ensure_ascii=False) in json.dumps(
        json.loads((tmp_path / "report.json").read_text()), ensure_ascii=False
    )


def test_a_strangers_names(make, tmp_path, monkeypatch):
    """Catches a variable of the environment, markup and mathematics in the values and names of a stranger's run."""
    monkeypatch.setenv("PLANTED_TOKEN", "hf_planted")
    evil = "<img src=x onerror=alert(1)>$\\frac{"
    run = make(f"run {evil.replace('/', '')}", answers=[(1, evil, evil)], scores=TEXTS)
    file = run / ".hydra" / "config.yaml"
    text = file.read_text().replace("path: pkg://aira.data", "path: ${oc.env:PLANTED_TOKEN}/pkg://aira.data")
    assert "PLANTED_TOKEN" in text
    file.write_text(text.replace("name: sft", f"name: '{evil}'"))
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    row = {"task": evil, "name": evil, "candidate": False, "value": 1, "shown": evil, "percent": True, "lower": False}
    (run / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    made = page(find_runs(tmp_path / "runs"), evil)
    assert "hf_planted" not in made and "${oc.env:PLANTED_TOKEN}" in made and not Reader(made).dangerous


@pytest.mark.parametrize(
    "output, told",
    [
        ("keep.txt", "is no report of Aira's"),
        ("metrics.json", "is no report of Aira's"),
        ("folder", "is no file"),
        ("fifo", "is no file"),
        ("keep.txt/page.html", "is not a folder that can be written to"),
        ("report.html", "is no report of Aira's"),
        (None, "is no report of Aira's"),
    ],
)
def test_what_is_no_page_is_not_overwritten(make, tmp_path, monkeypatch, capsys, output, told):
    """Catches a file of the user's, or of the run's, that a page replaces."""
    run = make("run")
    (run / "folder").mkdir()
    (run / "keep.txt").write_text("mine")
    (run / "report.html").write_text("mine")
    os.mkfifo(run / "fifo")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    monkeypatch.setattr(sys, "argv", ["reports", f"runs={run}", *([f"output={run / output}"] if output else [])])
    with pytest.raises(SystemExit):
        main()
    assert told in capsys.readouterr().err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    monkeypatch.setattr(sys, "argv", ["reports", f"runs={run}", f"output={run / 'new.html'}"])
    main()
    main()  # its own page is written anew
