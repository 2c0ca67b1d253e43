"""Running Aira's commands as a user does, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SMALL = [
    "data.max_examples=64",
    "data.batch_size=8",
    "callbacks.samples.exact_match=0",
    "trainer.enable_progress_bar=false",
    "model.config.n_layer=2",
    "model.config.n_embd=64",
]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def start(*arguments, cwd):
    """Start train.py in `cwd` without waiting for it."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(*arguments, cwd, status=0):
    """Run train.py in `cwd` and return what it printed."""
    process = start(*arguments, cwd=cwd)
    try:
        printed, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == status, printed
    return printed


def run_folder(cwd):
    """The folder of the only run in `cwd`."""
    (folder,) = cwd.glob("outputs/*/*")
    return folder
