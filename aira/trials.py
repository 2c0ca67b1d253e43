"""The trials of a sweep: each is an ordinary run of `aira train` in processes of its own.

So a trial may itself use several processes, one that fails or runs out of memory does not end the others, and every
launcher of Hydra works.
"""

import contextlib
import csv
import ctypes
import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from aira.errors import AiraError, Stopped, handled_signals
from aira.files import damage, override, read_json, write_atomically

TRIAL = "trial.json"
"""The file in a trial's folder that holds its overrides."""


def run_trial(
    overrides: list[str], folder: Path, cwd: str, metric: str, should_prune: Callable[[], bool] | None = None
) -> float | None:
    """Run a trial, or resume it from its last checkpoint.

    Args:
        overrides: of `aira train`.
        folder: the run's folder.
        cwd: the folder that relative paths in the overrides refer to.
        metric: the metric by which trials are compared.
        should_prune: called every second; the trial is stopped when it returns True.

    Returns:
        The final value of the metric; None if the trial failed or was pruned.

    Raises:
        AiraError: the folder holds a trial with other overrides.
        Stopped: a signal stopped the trial, and with it the sweep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / TRIAL
    before = read_json(trial, list)
    if before is not None and before != overrides:
        raise AiraError(
            f"{folder} holds a trial with other overrides ({' '.join(map(str, before))}). Name another folder."
        )
    write_atomically(trial, json.dumps(overrides))
    command = [sys.executable, "-m", "aira.commands.train", *overrides, override("hydra.run.dir", folder)]
    for checkpoint in (folder / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous")):
        if checkpoint.exists() and not damage(checkpoint):
            command.append(override("ckpt_path", checkpoint))
            break
    status = run_process(command, cwd, should_prune)
    if status is None:
        return None
    if status:
        print(f"Trial {folder.name} failed with status {status}: {' '.join(overrides)}", file=sys.stderr)
        return None
    return final_value(folder, metric)


def run_process(command: list[str], cwd: str, should_prune: Callable[[], bool] | None = None) -> int | None:
    """Run a command that ends when this process ends, and forward signals to it.

    Args:
        should_prune: called every second; the process is stopped when it returns True.

    Returns:
        Its exit status; None if it was pruned.

    Raises:
        Stopped: a signal stopped it.
    """
    received: list[int] = []

    def forward(signum: int, _: Any) -> None:
        received.append(signum)
        process.send_signal(signum)

    # in a session of its own, so that it gets Ctrl-C once, not twice
    process = subprocess.Popen(command, cwd=cwd, start_new_session=True, preexec_fn=_end_with_parent)
    main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, forward) for signum in handled_signals()} if main else {}
    status = None
    try:
        while status is None:
            try:
                status = process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                if should_prune and should_prune():
                    process.terminate()
                    process.wait()
                    return None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if received:
        raise Stopped(received[0], "Stopped. The same command resumes if it names the same folder.")
    if status == 128 + signal.SIGPIPE:  # the reader of the output has ended, for this process too
        raise Stopped(signal.SIGPIPE, "Stopped, since nobody reads the output any more.")
    return status


def final_value(folder: Path, metric: str) -> float | None:
    """The final value of a metric; None if the run has not finished, or has no such number."""
    value = (read_json(folder / "metrics.json") or {}).get(metric)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def rows_of_log(text: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV log of metrics; a last line that is incomplete is left out."""
    with contextlib.suppress(csv.Error):  # a field is longer than any that a run writes
        yield from csv.DictReader(text.rpartition("\n")[0].splitlines())


def run_trial_of_multirun(metric: str) -> float | None:
    """Run the trial that Hydra has composed; see `run_trial`."""
    hydra = HydraConfig.get()
    return run_trial(list(hydra.overrides.task), Path(hydra.runtime.output_dir), hydra.runtime.cwd, metric)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
