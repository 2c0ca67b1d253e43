"""What a run ran on: recorded with it, compared when it is gone on with."""

import functools
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from aira import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "pytorch-lightning", "datasets", "peft")


def versions(*packages: str) -> dict[str, str]:
    """Versions of Aira, and of those of the packages that are installed."""
    found = {"aira": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, processor, threads and the git commit of the code; nothing that names a user or a folder."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "python": sys.version.split()[0],
        "versions": versions(*PACKAGES),
        "device": device,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this code stands in, with `+` where files were changed."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or None


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two environments and can change a result bit for bit."""
    keys = ("python", "device", "threads")
    said = [f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys if then.get(key) != now.get(key)]
    for package, number in now["versions"].items():
        before = then.get("versions", {}).get(package)
        if before != number:
            said.append(f"{package} was {before}, is {number}")
    return said
