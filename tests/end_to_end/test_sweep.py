"""A search for hyperparameters: it learns, prunes what is worse, and goes on where it was."""

import json
import os
import signal
import time
import warnings

import optuna
import pytest
import yaml

from aira.config.spaces import examples, parse_space
from aira.files import damage
from aira.sweeps import _Pruner, table
from aira.trials import run_trial
from tests.end_to_end.command import SMALL, run, start

SEARCH = [
    *SMALL,
    "sweep=optuna",
    "sweep.trials=4",
    "sweep.prune=false",
    "trainer.max_steps=20",
    "callbacks.samples.max_new_tokens=2",
    "callbacks.checkpoint.every_n_train_steps=1",
    "hydra.run.dir=search",
]

SPACE = "sweep.space={optimizer.lr: 'tag(log, interval(1e-5, 1e-2))', data.batch_size: 'choice(8, 16)'}"


def values(folder):
    return [json.loads(file.read_text())["val/loss"] for file in sorted(folder.glob("search/*/metrics.json"))]


@pytest.mark.slow
def test_a_search_is_killed_and_goes_on(tmp_path):
    """Catches trials that are lost or run twice, and a best command that is not the best."""
    process = start(*SEARCH, SPACE, cwd=tmp_path)
    while not list(tmp_path.glob("search/001/checkpoints/last.ckpt")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    printed, _ = process.communicate(timeout=120)
    assert "Stopped by SIGTERM after step" in printed
    first = values(tmp_path)
    printed = run(*SEARCH, SPACE, cwd=tmp_path)
    found = values(tmp_path)
    assert len(first) == 1 and len(found) == 4 and found[0] == first[0] and len(set(found)) == 4
    assert "Trial 2 of 4" in printed and "Trial 1 of 4" not in printed
    best = f"{found.index(min(found)):03}"
    (command,) = (line for line in printed.splitlines() if line.startswith("Best: aira train "))
    chosen = json.loads((tmp_path / "search" / best / "trial.json").read_text())
    assert all(text in command for text in chosen if "'" not in text and "{" not in text)
    assert printed.index(f"\n{best}  ") < printed.index("Best:")
    assert "holds a search with another space" in run(
        *SEARCH, "sweep.space={optimizer.lr: 'choice(1e-3, 1e-4)'}", cwd=tmp_path, status=2
    )


def test_what_is_pruned(tmp_path):
    """Catches pruning that never happens, or happens to a trial that is as good as the others."""
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=3))
    for value in (1.0, 1.1, 1.2):
        trial = study.ask()
        trial.report(value, 9)
        study.tell(trial, value)
    for name, value, prune in (("good", 0.9, False), ("bad", 1.5, True)):
        (tmp_path / name / "logs" / "version_0").mkdir(parents=True)
        pruner = _Pruner(study.ask(), tmp_path / name, "val/loss")
        assert not pruner()
        log = f"step,train/loss,val/loss\n8,3.0,\n9,,{value}\n"
        (tmp_path / name / "logs" / "version_0" / "metrics.csv").write_text(log)
        assert pruner() == pruner.pruned == prune
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Optuna warns of a step that is reported twice
            assert pruner() == prune


@pytest.mark.slow
def test_a_pruned_trial_is_stopped(tmp_path):
    """Catches a trial that runs on, or one that dies without its checkpoint."""
    last = tmp_path / "trial" / "checkpoints" / "last.ckpt"
    arguments = [*SMALL, "trainer.max_steps=4000", "callbacks.checkpoint.every_n_train_steps=5"]
    assert run_trial(arguments, tmp_path / "trial", str(tmp_path), "val/loss", last.exists) is None
    assert damage(last) is None and not (tmp_path / "trial" / "metrics.json").exists()


def test_a_sweep_for_weights_and_biases(tmp_path):
    """Catches a file that W&B's agent could not run."""
    printed = run("sweep=wandb", "method=dpo", "seed=3", "hydra.run.dir=search", cwd=tmp_path)
    spec = yaml.safe_load((tmp_path / "search" / "sweep.yaml").read_text())
    assert "wandb sweep --project aira search/sweep.yaml" in printed.replace(f"{tmp_path}/", "")
    assert spec["parameters"]["optimizer.lr"] == {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-3}
    assert spec["metric"] == {"name": "val/rewards/accuracies", "goal": "maximize"} and spec["method"] == "bayes"
    assert spec["command"][1:] == ["${program}", "train", "method=dpo", "seed=3", "logger=wandb", "${args_no_hyphens}"]


def test_spaces():
    """Catches a value of a space that is not tried for being valid."""
    space = {"a.b": "choice(1, 'x')", "c": "tag(log, interval(1e-3, 1))"}
    assert examples(space) == ["a.b=1", "a.b=x", "c=0.001", "c=1.0"]
    assert "log" in parse_space(space)["c"].tags


@pytest.mark.parametrize("mode, best", [("min", "1"), ("max", "0")])
def test_the_table(tmp_path, mode, best):
    """Catches an order that is upside down, and failed trials among the best."""
    for name, value in (("0", 2.0), ("1", 1.0), ("2", float("nan")), ("3", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trial.json").write_text(json.dumps(["method=dpo", f"seed={name}"]))
        if value is not None:
            (tmp_path / name / "metrics.json").write_text(json.dumps({"val/loss": value}))
    lines = table(tmp_path, "val/loss", mode).strip().splitlines()
    assert lines[1].split() == [best, "1" if mode == "min" else "2", f"seed={best}"]
    assert [line.split()[1] for line in lines[3:5]] == ["unfinished"] * 2
    assert lines[-1] == f"Best: aira train method=dpo seed={best}"
