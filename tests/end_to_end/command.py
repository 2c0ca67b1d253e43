"""Running Aira's commands as a user does, each in a process of its own."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
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


class Forked:
    """A process of a command with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, command, cwd, printed, typed=os.devnull):
        self.pid = _ask(command=[str(part) for part in command], cwd=str(cwd), printed=printed, typed=typed)
        self.returncode = None

    def wait(self, poll=False):
        if self.returncode is None:
            self.returncode = _ask(wait=self.pid, poll=poll)
        return self.returncode

    def poll(self):
        return self.wait(poll=True)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Piped(Forked):
    """One whose output can be waited for, with that of its children."""

    def __init__(self, command, cwd):
        with tempfile.TemporaryDirectory() as folder:
            fifo = Path(folder) / "printed"
            os.mkfifo(fifo)
            self.stdout = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            super().__init__(command, cwd, str(fifo))
            select.select([self.stdout], [], [])  # the other end is open, and has written
        self.printed = b""

    def communicate(self, timeout=900):
        end = time.monotonic() + timeout
        while select.select([self.stdout], [], [], max(0, end - time.monotonic()))[0]:
            if not (more := os.read(self.stdout, 1 << 16)):
                os.close(self.stdout)
                self.wait()
                return self.printed.decode(errors="replace"), None
            self.printed += more
        raise subprocess.TimeoutExpired("train.py", timeout)


def start(*arguments, cwd, launcher=(), environment=None):
    """Start train.py in `cwd` without waiting for it.

    Args:
        launcher: a module, and its arguments, that starts it in Python's place, such as torchrun's.
        environment: variables beside the usual ones.
    """
    if not launcher and not environment:
        return Piped([ROOT / "train.py", *arguments], cwd)
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


def _ask(**asked):
    forks = _forks()
    forks.stdin.write(json.dumps(asked) + "\n")
    forks.stdin.flush()
    return json.loads(forks.stdout.readline())


def run(*arguments, cwd, status=0):
    """Run train.py in `cwd`, in a process of its own whose libraries are there already, and return what it printed."""
    with tempfile.NamedTemporaryFile(mode="r+", encoding="utf-8", errors="replace") as printed:
        ended = Forked([ROOT / "train.py", *arguments], cwd, printed.name).wait()
        assert ended == status, f"status {ended}, for {status}:\n{printed.read()}"
        return printed.read()


def run_aira(*arguments, cwd, typed=""):
    """Run `aira` in `cwd`, as `run` does, with a text as its input; its status, and what it printed."""
    with (
        tempfile.NamedTemporaryFile(mode="r+", encoding="utf-8", errors="replace") as printed,
        tempfile.NamedTemporaryFile(mode="w", encoding="utf-8") as given,
    ):
        given.write(typed)
        given.flush()
        status = Forked(["", *arguments], cwd, printed.name, given.name).wait()
        return status, printed.read()


def run_folder(cwd):
    """The folder of the only run in `cwd`."""
    (folder,) = cwd.glob("outputs/*/*")
    return folder
