"""Running Aira's commands as a user does, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
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


def start(*arguments, cwd, launcher=(), environment=None):
    """Start train.py in `cwd` without waiting for it.

    Args:
        launcher: a module, and its arguments, that starts it in Python's place, such as torchrun's.
        environment: variables beside the usual ones.
    """
    module = ["-m", *launcher] if launcher else []
    command = [sys.executable, *module, str(ROOT / "train.py"), *arguments]
    variables = {**ENVIRONMENT, **(environment or {})}
    return subprocess.Popen(
        command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes, status=0):
    """Wait for processes, each of which has to end with `status`; returns what they printed."""
    try:
        printed = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [status] * len(processes), "\n".join(printed)
    return "\n".join(printed)


@cache
def _forks():
    """A process that runs train.py in forks of itself; it ends with the tests."""
    command = [sys.executable, "-m", "tests.end_to_end.fork"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run(*arguments, cwd, status=0):
    """Run train.py in `cwd`, in a process of its own whose libraries are there already, and return what it printed."""
    forks = _forks()
    with tempfile.NamedTemporaryFile(mode="r+", encoding="utf-8", errors="replace") as printed:
        asked = {"command": [str(ROOT / "train.py"), *arguments], "cwd": str(cwd), "printed": printed.name}
        forks.stdin.write(json.dumps(asked) + "\n")
        forks.stdin.flush()
        ended = forks.stdout.readline().strip()
        assert ended == str(status), f"status {ended}, for {status}:\n{printed.read()}"
        return printed.read()


def run_folder(cwd):
    """The folder of the only run in `cwd`."""
    (folder,) = cwd.glob("outputs/*/*")
    return folder
