"""A run that is killed at any moment and gone on with ends like one that never was."""

import contextlib
import csv
import json
import re
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from aira.config.compose import compose_config
from aira.errors import AiraError
from aira.training import train
from tests.end_to_end.command import SMALL, run, run_folder, start
from tests.end_to_end.test_methods import FEW

SETTINGS = [
    *SMALL,
    "trainer.max_steps=30",  # 64 examples in steps of 8: nearly four epochs
    "trainer.val_check_interval=5",
    "callbacks.checkpoint.every_n_train_steps=2",
    "callbacks.samples.every_n_steps=4",
    "model.dropout=0.1",
]


COUNTS = ("tokens", "examples")


def weights(folder):
    return load_file(run_folder(folder) / "export" / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(*SETTINGS, cwd=folder)
    return folder


@pytest.mark.parametrize("checkpoints", [1, *(pytest.param(count, marks=pytest.mark.slow) for count in (6, 13))])
def test_killed_and_gone_on_with(undisturbed, tmp_path, checkpoints):
    """Catches a plan, optimizer, schedule or dropout that does not go on where it stopped, and a half-written file."""
    process = start(*SETTINGS, cwd=tmp_path)
    seen, last = 0, None
    while seen < checkpoints and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # while the next one takes its place
            stamps = [file.stat().st_mtime_ns for file in tmp_path.glob("outputs/*/*/checkpoints/last.ckpt")]
            if stamps and stamps != last:
                seen, last = seen + 1, stamps
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    folder = run_folder(tmp_path) / "checkpoints"
    newest = next(file for name in ("last", "previous") if (file := folder / f"{name}.ckpt").exists())
    stopped = torch.load(newest, weights_only=True)
    assert stopped["global_step"] < 30
    printed = run(*SETTINGS, "ckpt_path=last", cwd=tmp_path)
    assert "Warning" not in printed
    expected, found = weights(undisturbed), weights(tmp_path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    best = [torch.load(run_folder(f) / "checkpoints/best.ckpt", weights_only=True) for f in (undisturbed, tmp_path)]
    assert best[0]["global_step"] == best[1]["global_step"]
    whole, resumed = (
        torch.load(run_folder(f) / "checkpoints/last.ckpt", weights_only=True) for f in (undisturbed, tmp_path)
    )
    assert all(whole["callbacks"]["Throughput"][name] == resumed["callbacks"]["Throughput"][name] for name in COUNTS)
    metrics = json.loads((run_folder(tmp_path) / "metrics.json").read_text())
    assert metrics["seconds"] > stopped["callbacks"]["Checkpoints"]["seconds"]
    before = stopped["callbacks"]["Emissions"]
    assert all(metrics[f"emissions/{name}"] > value > 0 for name, value in before.items())


def test_a_finished_run_is_not_run_again(undisturbed):
    """Catches steps beyond the end when a finished run is gone on with, and figures or a card that are written anew."""

    def files():
        return {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}

    before = files()
    printed = run(*SETTINGS, "ckpt_path=last", cwd=undisturbed)
    assert "is finished, after 30 steps" in printed
    assert files() == before


def test_a_finished_run_without_its_export(undisturbed, tmp_path):
    """Catches a run that is called finished though its model is gone, and one that exports another model."""
    folder = shutil.copytree(run_folder(undisturbed), tmp_path / "copy")
    (folder / "export/model.safetensors").unlink()
    run(*SETTINGS, f"ckpt_path={folder}/checkpoints/last.ckpt", cwd=undisturbed)
    expected, found = (load_file(one / "export/model.safetensors") for one in (run_folder(undisturbed), folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["optimizer.name=adamw-8bit", "callbacks=[default,ema]", "callbacks.ema.start=1"],
        ["optimizer.name=muon", "callbacks=[default,swa]", "callbacks.swa.start=1", "model.config.n_embd=16"],
        ["optimizer.name=adafactor", "model.load_in_4bit=true", "model.lora.r=4", "model.dropout=0.1"],
    ],
    ids=lambda settings: " ".join(settings[:2]),
)
def test_a_finished_run_is_made_longer(tmp_path, settings):
    """Catches more steps that are asked for and not taken, or not those that a longer run takes, and lost averages."""
    arguments = [*FEW, "model.config.n_layer=2", *settings, "schedule.name=constant", f"cache_dir={tmp_path}"]
    longer = [*arguments, "trainer.max_steps=7"]
    train(compose_config("train", [*arguments, "trainer.max_steps=3"]), tmp_path / "parts")
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    (tmp_path / "parts/evaluations.jsonl").write_text("figures of the shorter run")
    assert train(compose_config("train", [*longer, f"ckpt_path={last}"]), tmp_path / "parts")["steps"] == 7
    assert not (tmp_path / "parts/evaluations.jsonl").exists()
    train(compose_config("train", longer), tmp_path / "whole")
    expected, found = (load_file(tmp_path / name / "export/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_is_exported_was_measured(tmp_path):
    """Catches figures of an earlier step than that of the weights, and figures that a stop before the export loses."""
    arguments = [*FEW, "logger=csv", f"cache_dir={tmp_path}", "trainer.max_steps=5", "trainer.val_check_interval=2"]
    arguments += ["optimizer.lr=1", "schedule.warmup=0", "schedule.name=constant"]  # it gets worse with each step
    metrics = train(compose_config("train", arguments), tmp_path / "last")
    kept = torch.load(tmp_path / "last/checkpoints/last.ckpt", weights_only=True)["callbacks"]["Checkpoints"]
    assert kept["metrics"]["val/loss"] == metrics["val/loss"] > kept["best"]
    log = (tmp_path / "last/logs/version_0/metrics.csv").read_text().splitlines()
    validated = [row["step"] for row in csv.DictReader(log) if row["val/loss"]]
    assert validated == ["1", "3", "4"]
    best = train(compose_config("train", [*arguments, "export=best"]), tmp_path / "best")
    assert best["val/loss"] == pytest.approx(kept["best"]) and best["steps"] == 5
    again = train(
        compose_config("train", [*arguments, f"ckpt_path={tmp_path}/last/checkpoints/last.ckpt"]), tmp_path / "last"
    )
    assert {name: again.get(name) for name in kept["metrics"]} == kept["metrics"]


def test_an_unknown_metric_loses_nothing(tmp_path):
    """Catches a name that is wrong and that ends the run at its first validation with all steps lost."""
    with pytest.raises(AiraError, match=r"monitor=val/los is not measured\. Did you mean 'val/loss'"):
        train(compose_config("train", [*FEW, "callbacks.checkpoint.monitor=val/los"]), tmp_path / "run")
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


def test_another_configuration_is_not_gone_on_with(undisturbed):
    """Catches `last` taking a run that computes something else."""
    printed = run(*SETTINGS, "optimizer.lr=0.5", "ckpt_path=last", cwd=undisturbed, status=2)
    assert "no run below" in printed and "last.ckpt" in printed
    assert "optimizer.lr=0.002 there, 0.5 here" in printed


def test_a_run_that_goes_on_as_another_says_so(tmp_path):
    """Catches rows that were held out and are trained on after rows were added, and settings that change unrecorded."""
    rows = [json.dumps({"prompt": f"Question {i}?", "completion": f"Answer {i}."}) for i in range(40)]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(rows))
    settings = [*SMALL, "data.path=data.jsonl", "data.max_examples=null", "trainer.max_steps=4"]
    run(*settings, cwd=tmp_path)
    folder = run_folder(tmp_path)
    last = f"ckpt_path={folder}/checkpoints/last.ckpt"
    longer = [*settings[:-1], "trainer.max_steps=6", last]
    data.write_text("\n".join([json.dumps({"prompt": "New?", "completion": "Yes."}), *rows]))
    before = (folder / "metrics.json").read_bytes()
    assert "rows of data.path, or their split, have changed" in run(*longer, cwd=tmp_path, status=2)
    assert (folder / "metrics.json").read_bytes() == before
    data.write_text("\n".join(rows))
    refused = run(*longer, "seed=1", cwd=tmp_path, status=2)
    assert "their split, have changed since this run began" in refused and re.search(r"seed=\d+ there, 1 here", refused)
    printed = run(*longer, "optimizer.lr=0.0001", cwd=tmp_path)
    assert "From step 4 on, trainer.max_steps is 6; before, it was 4." in printed
    (changed,) = json.loads((folder / "environment.json").read_text())["resumed"]
    assert changed["step"] == 4 and changed["settings"]["trainer.max_steps"] == [4, 6]
    assert changed["settings"]["optimizer.lr"][1] == 0.0001
    assert '"optimizer.lr": [' in (folder / "export/README.md").read_text()
