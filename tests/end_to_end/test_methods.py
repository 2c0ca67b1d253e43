"""Reward, toxicity and DPO from the command line to exports that need no Aira."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from aira.config.compose import compose_config
from aira.config.conf import options
from aira.errors import AiraError
from aira.training import train
from tests.end_to_end.command import ENVIRONMENT, SMALL, run, run_folder, start

FEW = [
    "data.max_examples=16",
    "data.batch_size=8",
    "trainer.max_steps=2",
    "trainer.limit_val_batches=1",
    "trainer.enable_progress_bar=false",
    "callbacks.samples.exact_match=0",
    "callbacks.samples.max_new_tokens=4",
    "~callbacks.emissions",
    "logger=none",
]
SHORT = [argument for argument in SMALL if "exact_match" not in argument]


def card_snippet(export):
    """Run the Python that an export's card shows, in a process that does not know Aira; what it printed, by line."""
    (code,) = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(encoding="utf-8"), re.S)
    command = [sys.executable, "-c", f"{code}\nimport sys\nassert 'aira' not in sys.modules"]
    done = subprocess.run(command, cwd=export, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("method", options("method"))
@pytest.mark.parametrize(
    "model, language",
    [
        *(("llama-tiny", "pt"), ("bert-tiny", "en")),
        *(
            pytest.param(model, language, marks=pytest.mark.slow)
            for model, language in [("gpt2-tiny", "en"), ("opt-tiny", "pt")]
        ),
    ],
)
def test_every_family_with_every_method(tmp_path, model, method, language):
    """Catches a composition that does not train and export, or an impossible one that is not refused."""
    chosen = [f"model={model}", f"method={method}", f"language={language}", f"cache_dir={tmp_path}"]
    if model == "bert-tiny" and method in ("sft", "dpo"):
        with pytest.raises(AiraError, match=f"method={method} needs a causal model and model=bert-tiny is an encoder"):
            compose_config("train", chosen)
        return
    metrics = train(compose_config("train", [*FEW, *chosen]), tmp_path / "run")
    assert metrics["steps"] == 2 and metrics["val/loss"] > 0
    assert (tmp_path / "run/export/model.safetensors").is_file()


@pytest.mark.parametrize(
    "arguments, kind",
    [
        (["method=toxicity", "model=bert-tiny", "method.objective=pairwise"], "texts"),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in (
                (["method=reward"], "pairs"),
                (["method=sft", "model=llama-tiny", "method.loss_on=all", "language=pt"], "chat"),
                (["method=reward", "model=bert-tiny"], "pairs"),
                (["method=toxicity", "model=llama-tiny"], "texts"),
                (["method=dpo", "model=opt-tiny"], "chat"),
                (["method=sft", "model=gpt2-tiny"], "chat"),
            )
        ),
    ],
)
def test_the_card_says_how_to_use_it(tmp_path, arguments, kind):
    """Catches a card whose example does not run."""
    train(compose_config("train", [*FEW, *arguments, f"cache_dir={tmp_path}"]), tmp_path / "run")
    printed = card_snippet(tmp_path / "run" / "export")
    card = (tmp_path / "run/export/README.md").read_text(encoding="utf-8")
    assert ("idiota" in card or "me deixe" in card or "capital da França" in card) == ("language=pt" in arguments)
    if kind != "chat":
        assert len(json.loads(printed[0])) == 2
    if kind == "texts":
        assert set(printed[1].strip("[]").split(", ")) <= {"True", "False"}


@pytest.mark.slow
def test_dpo_by_default(tmp_path):
    """Catches a default that does not raise the margins, or does not start at ln 2."""
    printed = run("method=dpo", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false", cwd=tmp_path)
    folder = run_folder(tmp_path)
    log = (folder / "logs/version_0/metrics.csv").read_text().splitlines()
    columns = log[0].split(",")
    first = dict(
        zip(columns, next(line.split(",") for line in log[1:] if line.split(",")[columns.index("train/loss")]))
    )
    assert float(first["train/loss"]) == pytest.approx(0.6931472, abs=1e-6)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["val/rewards/margins"] > 0.1 and metrics["val/rewards/accuracies"] > 0.6
    assert "val/rewards/margins" in printed and "Question: What is the capital of France?" in printed


@pytest.mark.slow
@pytest.mark.parametrize("method, language", [("reward", "en"), ("toxicity", "pt")])
def test_scorers_by_default(tmp_path, method, language):
    """Catches a default whose held-out accuracy is not well above the baselines of the same rows (0.75 at most)."""
    printed = run(f"method={method}", f"language={language}", "trainer.enable_progress_bar=false", cwd=tmp_path)
    folder = run_folder(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["val/accuracy"] >= 0.85
    assert "Held-out texts by score:" in printed and "highest" in printed
    config = json.loads((folder / "export/config.json").read_text())
    assert config["id2label"] == {"0": {"reward": "reward", "toxicity": "harmless"}[method]}
    scores = json.loads(card_snippet(folder / "export")[0])
    assert len(scores) == 2
    if method == "toxicity":
        assert config["threshold"] == pytest.approx(metrics["val/threshold"])


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["model.lora.r=4"]])
def test_from_fine_tuning_to_dpo(tmp_path, lora):
    """Catches an export that DPO cannot start from, or whose first loss is not ln 2."""
    for name in ("sft", "dpo", "again"):
        (tmp_path / name).mkdir()
    run(*SMALL, "trainer.max_steps=4", cwd=tmp_path / "sft")
    export = run_folder(tmp_path / "sft") / "export"
    arguments = [*SHORT, "method=dpo", f"model.path={export}", *lora, "trainer.max_steps=4"]
    run(*arguments, "trainer.log_every_n_steps=1", f"cache_dir={tmp_path / 'cache'}", cwd=tmp_path / "dpo")
    log = (run_folder(tmp_path / "dpo") / "logs/version_0/metrics.csv").read_text().splitlines()
    losses = [line.split(",")[log[0].split(",").index("train/loss")] for line in log[1:]]
    assert float(next(filter(None, losses))) == pytest.approx(0.6931472, abs=1e-6)
    card_snippet(run_folder(tmp_path / "dpo") / "export")
    refused = run(*SHORT, "method=reward", f"model.path={export}", "trainer.max_steps=1", cwd=tmp_path / "again")
    assert "reward: gpt2-tiny" in refused


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "toxicity"])
def test_killed_and_gone_on_with(tmp_path, method):
    """Catches a reference that is taken from the checkpoint's weights, and another end than an undisturbed run's."""
    settings = [
        "callbacks.checkpoint.every_n_train_steps=1",
        "trainer.max_steps=8",
        "callbacks.samples.max_new_tokens=2",
    ]
    found = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
        arguments = [*SHORT, f"method={method}", *settings, f"cache_dir={tmp_path / name / 'cache'}"]
        if name == "parts":
            process = start(*arguments, cwd=tmp_path / name)
            while not list((tmp_path / name).glob("outputs/*/*/checkpoints/last.ckpt")) and process.poll() is None:
                time.sleep(0.001)
            process.kill()
            process.communicate()
            shutil.rmtree(tmp_path / name / "cache" / "reference", ignore_errors=True)
            arguments.append("ckpt_path=last")
        run(*arguments, cwd=tmp_path / name)
        found.append((run_folder(tmp_path / name) / "export/model.safetensors").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "rows, arguments, message",
    [
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3, ["method=dpo"], "dropped 3 of 3 rows: chosen equals"),
        ([{"prompt": "a", "chosen": "b", "rejected": ""}] * 3, ["method=reward"], "empty response"),
        ([{"prompt": "a " * 90, "chosen": "b", "rejected": "c"}] * 3, ["method=dpo", "data.max_length=40"], "no room"),
        ([{"text": "a", "label": "spam"}] * 3, ["method=toxicity"], "row 1: the label 'spam' is neither"),
        ([{"text": "a", "label": 1}] * 3, ["method=toxicity"], "all training rows have the same label"),
        ([{"text": "a", "label": 1}] * 3, ["method=dpo"], "preference data needs {prompt, chosen, rejected}"),
        ([{"text": "a", "label": 1}] * 3, ["method=toxicity", "method.objective=pairwise"], "{harmless, harmful}"),
    ],
)
def test_errors_before_training(tmp_path, rows, arguments, message):
    """Catches rows that cannot be used and are trained on, or that fail in the middle of a run."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(AiraError, match=re.escape(message)):
        train(
            compose_config("train", [*FEW, *arguments, f"data.path={file}", f"cache_dir={tmp_path}/c"]), tmp_path / "r"
        )


def test_a_scorer_is_no_chat_model(tmp_path):
    """Catches a language-model head that is made up where a scorer's folder has none."""
    train(compose_config("train", [*FEW, "method=reward", f"cache_dir={tmp_path}"]), tmp_path / "run")
    arguments = [*FEW, "method=dpo", f"model.path={tmp_path}/run/export", f"cache_dir={tmp_path}"]
    with pytest.raises(AiraError, match="is a scorer, without a language-model head"):
        train(compose_config("train", arguments), tmp_path / "again")
