"""The trials of a sweep: each a plain run of `aira train` in processes of its own.

So a trial may use several processes itself, one that fails or runs out of memory takes no other with it, and every
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

from aira.errors import AiraError, Stopped, taken
from aira.files import damage, override, read_json, write_whole

TRIAL = "trial.json"
"""The file in a trial's folder that says which overrides it is for."""


def run_trial(
    overrides: list[str], folder: Path, cwd: str, metric: str, should_prune: Callable[[], bool] | None = None
) -> float | None:
    """Run a trial, or go on with what is there of it.

    Args:
        overrides: of `aira train`.
        folder: for the run.
        cwd: where relative paths of the overrides begin.
        metric: what trials are compared by.
        should_prune: asked every second; where it is true, the trial is stopped.

    Returns:
        The final value of the metric; None where the trial failed, or was stopped since it is hopeless.

    Raises:
        AiraError: the folder holds a trial with other overrides.
        Stopped: a signal stopped the trial, and so all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / TRIAL
    before = read_json(trial, list)
    if before is not None and before != overrides:
        raise AiraError(
            f"{folder} holds a trial with other overrides ({' '.join(map(str, before))}). Name another folder."
        )
    write_whole(trial, json.dumps(overrides))
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
    return final(folder, metric)


def run_process(command: list[str], cwd: str, should_prune: Callable[[], bool] | None = None) -> int | None:
    """Run a command that ends with this process, and to which signals are passed on.

    Args:
        should_prune: asked every second; where it is true, the process is stopped.

    Returns:
        Its status; None where it was hopeless.

    Raises:
        Stopped: a signal stopped it.
    """
    received: list[int] = []

    def pass_on(signum: int, _: Any) -> None:
        received.append(signum)
        process.send_signal(signum)

    # in a session of its own, so that Ctrl-C reaches it once and not twice
    process = subprocess.Popen(command, cwd=cwd, start_new_session=True, preexec_fn=_end_with_parent)
    main = threading.current_thread() is threading.main_thread()
    before = {signum: signal.signal(signum, pass_on) for signum in taken()} if main else {}
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
        raise Stopped(received[0], "Stopped. The same command goes on if it names the same folder.")
    if status == 128 + signal.SIGPIPE:  # who read the output is gone, for this process too
        raise Stopped(signal.SIGPIPE, "Stopped, since nobody reads the output any more.")
    return status


def final(folder: Path, metric: str) -> float | None:
    """The last value of a metric of a finished run; None where the run is not finished, or has no such number."""
    value = (read_json(folder / "metrics.json") or {}).get(metric)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def rows_of_log(text: str) -> Iterator[dict[str, str]]:
    """The rows of a log of metrics as CSV; a last line that is cut off, or is being written, is none."""
    with contextlib.suppress(csv.Error):  # a field that is longer than any that a run writes
        yield from csv.DictReader(text.rpartition("\n")[0].splitlines())


def run_trial_of_multirun(metric: str) -> float | None:
    """Run the trial that Hydra has composed; see `run_trial`."""
    hydra = HydraConfig.get()
    return run_trial(list(hydra.overrides.task), Path(hydra.runtime.output_dir), hydra.runtime.cwd, metric)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
