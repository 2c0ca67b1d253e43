"""Sweeps: each trial is a plain run in processes of its own."""

import json
import signal
import time

import pytest

from tests.end_to_end.command import SMALL, run, start

TRIALS = [*SMALL[:-2], "trainer.max_steps=4", "callbacks.samples.max_new_tokens=2", "hydra.sweep.dir=sweep"]


def metrics(folder):
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("sweep/*/metrics.json")}


@pytest.mark.slow
def test_two_models_side_by_side(tmp_path):
    """Catches a launcher that runs trials in workers which Lightning or Hydra do not expect."""
    run("-m", "model=gpt2-tiny,opt-tiny", "hydra/launcher=joblib", *TRIALS, cwd=tmp_path)
    found = metrics(tmp_path)
    assert sorted(found) == ["0-gpt2-tiny-sft-en", "1-opt-tiny-sft-en"]
    assert all(one["steps"] == 4 for one in found.values())
    assert all((tmp_path / "sweep" / name / "export" / "model.safetensors").exists() for name in found)


def test_the_launcher_of_a_cluster_composes(tmp_path):
    """Catches a launcher whose settings are not found, and Hydra's traceback where --cfg is asked of a sweep."""
    shown = run("hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=1", "--cfg", "hydra", cwd=tmp_path)
    assert "submitit_launcher.SlurmLauncher" in shown and "gpus_per_node: 1" in shown
    assert "leave out --multirun" in run("-m", "seed=1,2", "--cfg", "hydra", cwd=tmp_path, status=2)


@pytest.mark.slow
def test_a_failing_trial_and_two_processes(tmp_path):
    """Catches a trial that takes the sweep with it, and DDP children that run the sweep again."""
    rates = "optimizer.lr=1e30,1e-4"
    printed = run("-m", rates, "trainer=ddp-cpu", *TRIALS, "trainer.max_steps=12", cwd=tmp_path)
    assert "Trial 0-gpt2-tiny-sft-en failed with status 2: optimizer.lr=1e+30" in printed and "The loss is" in printed
    assert list(metrics(tmp_path)) == ["1-gpt2-tiny-sft-en"]
    assert len(list(tmp_path.glob("sweep/*/"))) == 2 and not (tmp_path / "outputs").exists()
    assert "0-gpt2-tiny-sft-en    unfinished  optimizer.lr=1e+30" in printed
    assert "Best: aira train optimizer.lr=0.0001" in printed
    assert "1-gpt2-tiny-sft-en" in (tmp_path / "sweep" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_stopped_sweep_goes_on(tmp_path, name):
    """Catches trials that are run again, and a trial that outlives its sweep."""
    arguments = ["-m", "seed=1,2", *TRIALS, "trainer.max_steps=30", "callbacks.checkpoint.every_n_train_steps=1"]
    process = start(*arguments, cwd=tmp_path)
    while not list(tmp_path.glob("sweep/1-*/checkpoints/last.ckpt")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    printed, _ = process.communicate(timeout=120)  # until the trial has ended, too
    assert process.returncode == {"SIGINT": 130, "SIGKILL": -signal.SIGKILL}[name], printed
    assert f"Stopped by {name.replace('KILL', 'TERM')} after step" in printed
    first = tmp_path / "sweep" / "0-gpt2-tiny-sft-en" / "metrics.json"
    before = first.read_bytes()
    assert len(metrics(tmp_path)) == 1
    printed = run(*arguments, cwd=tmp_path)
    assert "is finished, after 30 steps" in printed
    assert len(metrics(tmp_path)) == 2 and first.read_bytes() == before
    refused = run("-m", "seed=1,3", *arguments[2:], cwd=tmp_path, status=2)
    assert "holds a trial with other overrides (seed=2" in refused
