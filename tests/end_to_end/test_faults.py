"""What goes wrong outside: the network, the cache, another run beside."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aira.config.compose import compose_config
from aira.training import train
from tests.end_to_end.command import ENVIRONMENT, ROOT, SMALL, run_folder, start
from tests.end_to_end.test_methods import FEW

ROWS = [{"prompt": f"{i} and {i}", "chosen": str(2 * i), "rejected": str(3 * i + 1)} for i in range(16)]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["x" * 40, "not-a-key"])
def test_weights_and_biases_out_of_reach(tmp_path, key):
    """Catches a run that ends, or waits for ever, since a server does not answer or refuses the key."""
    environment = {**ENVIRONMENT, "WANDB_MODE": "online", "WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "trainer.max_steps=2", "logger=wandb"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Weights & Biases goes on offline") == 1
    assert list(run_folder(tmp_path).glob("wandb/offline-run-*/run-*.wandb"))
    written = [file for file in run_folder(tmp_path).rglob("*") if file.is_file()]
    assert written and not any(key.encode() in file.read_bytes() for file in written)


def test_a_broken_cache_is_made_again(tmp_path):
    """Catches kept tables and log-probs that are read although they are cut short, or end the run."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    arguments = [*FEW, "method=dpo", f"data.path={file}", f"cache_dir={tmp_path}/cache"]
    expected = train(compose_config("train", arguments), tmp_path / "first")
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".arrow", ".npy")]
    assert {path.suffix for path in kept} == {".arrow", ".npy"} and len(kept) >= 4
    for number, size in enumerate((0.5, 0)):
        for path in kept:
            os.truncate(path, int(path.stat().st_size * size))
        found = train(compose_config("train", arguments), tmp_path / f"again-{number}")
        assert found["val/loss"] == expected["val/loss"]
        assert all(path.stat().st_size for path in kept)


@pytest.mark.slow
def test_two_runs_share_an_empty_cache(tmp_path):
    """Catches a run that reads what another one is still writing."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    arguments = [*SMALL, "method=dpo", "trainer.max_steps=2", f"cache_dir={tmp_path}/cache"]
    processes = [start(*arguments, cwd=folder) for folder in folders]
    for process in processes:
        printed, _ = process.communicate(timeout=200)
        assert process.returncode == 0, printed
    losses = [json.loads((run_folder(folder) / "metrics.json").read_text())["val/loss"] for folder in folders]
    assert losses[0] == losses[1]


def test_the_folder_of_the_data_is_only_read(tmp_path):
    """Catches locks and caches beside the data, which cannot be written everywhere."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for path in ("rows.jsonl", "."):
        arguments = [*FEW, "method=reward", f"data.path={folder / path}", f"cache_dir={tmp_path}/cache"]
        train(compose_config("train", arguments), tmp_path / "run")
    assert [file.name for file in folder.iterdir()] == ["rows.jsonl"]


def test_a_killed_worker_is_told(tmp_path):
    """Catches a traceback, or a wait, where a process that loads data was killed."""
    arguments = ["data.num_workers=1", "trainer.max_steps=4000", "callbacks.checkpoint.every_n_train_steps=5"]
    process = start(*SMALL, *arguments, cwd=tmp_path)
    while not list(tmp_path.glob("outputs/*/*/checkpoints/last.ckpt")) and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "end_to_end.fork" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[0]), signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "Another process of this run has ended" in printed, printed
    assert "Traceback" not in printed and "Resume with ckpt_path=" in printed


@pytest.mark.slow
def test_no_room_for_a_file(tmp_path):
    """Catches a traceback, or a checkpoint that is lost, where nothing more can be written; here, files of 3 MB."""
    command = f"ulimit -f 3000; exec {sys.executable} {ROOT / 'train.py'} {' '.join(SMALL)} trainer.max_steps=2"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2 and "No space left to write" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
