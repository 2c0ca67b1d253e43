"""Who owns a run's folder: one process at a time, and one run for good.

A folder is locked while a run lives; the lock goes with the process, however it ends. On a network file system it holds
between machines where that file system keeps `flock` locks (NFS 4 does).
"""

import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from aira.config.record import flat, read_config
from aira.errors import AiraError
from aira.files import check_writable, locked, shown, typed

LOCK = ".lock"
"""The file that is locked, in the folder."""

RESULTS = ("checkpoints/*.ckpt", "metrics.json", "export", "table.md", "compare.json")
"""What a run or an evaluation cannot get back once it is overwritten."""

BEGUN = ("logs", "wandb", "tensorboard")
"""What a run may have written before its configuration."""

BESIDE = (LOCK, "trial.json", "stage.json")
"""What is put into the folder of a run before it is started."""

WRITTEN = (
    *(".hydra", "checkpoints", "export", *BEGUN, "samples.jsonl", "scores.csv", "metrics.json", "environment.json"),
    *("report.html", "evaluations.jsonl", "table.md", "table.tex", "compare.json"),
)
"""All that a run or an evaluation writes, but for an evaluation's folders of models."""

IDENTITY_FREE = (
    *("ckpt_path", "output_dir", "cache_dir", "debug", "overwrite", "method.cache_dir", "callbacks", "logger"),
)
"""Keys, and groups, on which no weight depends."""

_held: list[FileLock] = []


def identity(values: dict[str, Any]) -> dict[str, Any]:
    """The dotted keys of a configuration that say which run it is: two runs that share them compute the same."""
    return {
        key: value
        for key, value in flat(values)
        if key not in IDENTITY_FREE and key.split(".")[0] not in IDENTITY_FREE and not isinstance(value, dict)
    }


RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
"""What torchrun, srun and Lightning say of a process; each is 0, or not there, in the one that starts a run."""


def starts_the_run() -> bool:
    """Whether this is the only process of a run, or the first of them."""
    return all(os.environ.get(name) in (None, "", "0") for name in RANKS)


def claim(folder: Path, values: dict[str, Any], *, named: bool, own: bool = False, many: bool = False) -> Path:
    """Take a folder for this process, before anything is written there.

    Args:
        folder: made where it does not exist.
        values: the configuration, as it is written down.
        named: by the user; else it is free to get a suffix (-2, -3, …) where it is taken.
        own: the run goes on from a checkpoint in it.
        many: it is for the trials of a sweep, each with a folder of its own in it.

    Returns:
        The folder.

    Raises:
        AiraError: another process has it, or it holds what this run would overwrite.
    """
    check_writable("hydra.run.dir", str(folder))
    if named:
        for _ in range(2):  # before anything is written to what may be another's, and once more with the lock
            if folder.exists() and not own:
                _check_free(folder, values, many)
            if not any(lock.lock_file == str(folder / LOCK) for lock in _held):
                folder.mkdir(parents=True, exist_ok=True)
                _held.append(locked(folder / LOCK, folder))
    else:
        name, number = folder.name, 1
        while True:
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                folder = folder.with_name(f"{name}-{number}")
        _held.append(locked(folder / LOCK, folder))
    if values.get("overwrite") and not own and (folder / ".hydra").is_dir():
        _clear(folder)
    return folder


def _check_free(folder: Path, values: dict[str, Any], many: bool) -> None:
    if not folder.is_dir():
        raise AiraError(f"hydra.run.dir={folder} is a file. Name a folder.")
    there = {file.name for file in folder.iterdir()} - set(BESIDE)
    results = [pattern for pattern in RESULTS if any(folder.glob(pattern))]
    if not there or there <= set(BEGUN) or (values.get("overwrite") and ".hydra" in there):
        return
    begun = many or "search.json" in there or "sweep.yaml" in there
    if not results and (begun if many or values.get("sweep") else ".hydra" in there):
        differing = [] if begun else differing_from(folder, values)
        if not differing:
            return
        raise AiraError(
            f"{shown(folder)} is of another configuration ({'; '.join(differing[:3])}). Name a new folder, or set "
            "overwrite=true to begin anew in this one."
        )
    if ".hydra" not in there:
        raise AiraError(
            f"{shown(folder)} holds {', '.join(sorted(there)[:3])}, and is no folder of a run. Name a new folder."
        )
    last = folder / "checkpoints" / "last.ckpt"
    raise AiraError(
        f"{shown(folder)} holds a run or a search ({', '.join(results or sorted(there))}). Name a new folder"
        + (f", go on with {typed('ckpt_path', shown(last))}" if last.exists() else "")
        + ", or set overwrite=true, which deletes that one."
    )


def differing_from(folder: Path, values: dict[str, Any]) -> list[str]:
    """In what a configuration differs from the one that the run in a folder has written down, a key each.

    Raises:
        AiraError: there is none, or it cannot be read.
    """
    there, here = identity(read_config(folder)), identity(values)
    keys = dict.fromkeys([*here, *there])
    return [f"{key}={there.get(key)} there, {here.get(key)} here" for key in keys if there.get(key) != here.get(key)]


def _clear(folder: Path) -> None:
    """Delete what a run or an evaluation has written, and nothing else."""
    models = (file.parent for file in folder.glob("*/results.json"))
    measured = [model.name for model in models if {file.name for file in model.iterdir()} <= {"results.json", "rows"}]
    for path in (folder / name for name in (*WRITTEN, *measured)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
