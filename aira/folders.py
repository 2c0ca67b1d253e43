"""The owner of a run's folder: one process at a time, and one run for good.

A folder is locked while a run lives; the lock ends with the process, however that ends. On a network file system the
lock holds between machines if the file system supports `flock` locks (NFS 4 does).
"""

import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from aira.config.record import flatten, read_config
from aira.errors import AiraError
from aira.files import acquire_lock, check_writable, display_path, quoted_override

LOCK = ".lock"
"""The lock file in the folder."""

RESULTS = ("checkpoints/*.ckpt", "metrics.json", "export", "table.md", "compare.json")
"""Results of a run or an evaluation, which must not be overwritten."""

EARLY_FILES = ("logs", "wandb", "tensorboard")
"""What a run may have written before its configuration."""

FILES_BEFORE_START = (LOCK, "trial.json", "stage.json")
"""What is written to a run's folder before the run starts."""

WRITTEN = (
    *(
        ".hydra",
        "checkpoints",
        "export",
        *EARLY_FILES,
        "samples.jsonl",
        "scores.csv",
        "metrics.json",
        "environment.json",
    ),
    *("report.html", "evaluations.jsonl", "table.md", "table.tex", "compare.json"),
)
"""All that a run or an evaluation writes, except for an evaluation's folders of models."""

IDENTITY_FREE = (
    *("ckpt_path", "output_dir", "cache_dir", "debug", "overwrite", "method.cache_dir", "callbacks", "logger"),
)
"""Keys and groups that do not change the weights."""

_held: list[FileLock] = []


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The dotted keys of a configuration that identify a run: two runs with equal values compute the same."""
    return {
        key: value
        for key, value in flatten(config)
        if key not in IDENTITY_FREE and key.split(".")[0] not in IDENTITY_FREE and not isinstance(value, dict)
    }


RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
"""Variables of torchrun, srun and Lightning that number processes; each is 0, or not set, in the first process."""


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the first one."""
    return all(os.environ.get(name) in (None, "", "0") for name in RANKS)


def claim(folder: Path, config: dict[str, Any], *, named: bool, resumed: bool = False, multirun: bool = False) -> Path:
    """Lock a folder for this process, before anything is written to it.

    Args:
        folder: created if it does not exist.
        config: the configuration, as a run writes it.
        named: whether the user has named the folder; otherwise it gets a suffix (-2, -3, …) if it exists.
        resumed: whether the run is resumed from a checkpoint in the folder.
        multirun: whether the folder is for the trials of a multirun, each with a folder of its own in it.

    Returns:
        The folder.

    Raises:
        AiraError: another process holds the folder, or the run would overwrite what is in it.
    """
    check_writable("hydra.run.dir", str(folder))
    if named:
        for _ in range(2):  # before anything is written to a folder of somebody else's, and again with the lock
            if folder.exists() and not resumed:
                _check_free(folder, config, multirun)
            if not any(lock.lock_file == str(folder / LOCK) for lock in _held):
                folder.mkdir(parents=True, exist_ok=True)
                _held.append(acquire_lock(folder / LOCK, folder))
    else:
        name, number = folder.name, 1
        while True:
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                folder = folder.with_name(f"{name}-{number}")
        _held.append(acquire_lock(folder / LOCK, folder))
    if config.get("overwrite") and not resumed and (folder / ".hydra").is_dir():
        _clear(folder)
    return folder


def _check_free(folder: Path, config: dict[str, Any], multirun: bool) -> None:
    if not folder.is_dir():
        raise AiraError(f"hydra.run.dir={folder} is a file. Name a folder.")
    files = {file.name for file in folder.iterdir()} - set(FILES_BEFORE_START)
    results = [pattern for pattern in RESULTS if any(folder.glob(pattern))]
    if not files or files <= set(EARLY_FILES) or (config.get("overwrite") and ".hydra" in files):
        return
    is_search = multirun or "search.json" in files or "sweep.yaml" in files
    if not results and (is_search if multirun or config.get("sweep") else ".hydra" in files):
        differing = [] if is_search else config_differences(folder, config)
        if not differing:
            return
        raise AiraError(
            f"{display_path(folder)} is of another configuration ({'; '.join(differing[:3])}). Name a new folder, or "
            "set overwrite=true to start over in this one."
        )
    if ".hydra" not in files:
        raise AiraError(
            f"{display_path(folder)} holds {', '.join(sorted(files)[:3])}, and is no folder of a run. Name a new "
            "folder."
        )
    last = folder / "checkpoints" / "last.ckpt"
    raise AiraError(
        f"{display_path(folder)} holds a run or a search ({', '.join(results or sorted(files))}). Name a new folder"
        + (f", resume it with {quoted_override('ckpt_path', display_path(last))}" if last.exists() else "")
        + ", or set overwrite=true, which deletes that one."
    )


def config_differences(folder: Path, config: dict[str, Any]) -> list[str]:
    """The keys in which a configuration differs from that of the run in a folder, with both values.

    Raises:
        AiraError: there is none, or it cannot be read.
    """
    there, here = identity(read_config(folder)), identity(config)
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
