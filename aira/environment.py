"""The environment of a run: recorded with the run, and compared when it is resumed."""

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
    """Versions of Aira and of those `packages` that are installed."""
    installed = {"aira": __version__}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, device, threads and the git commit of the code; nothing that names a user or a folder."""
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
    """The commit of the checkout that this code is in, followed by `+` if files were changed."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences between two environments that can change a result bit for bit."""
    keys = ("python", "device", "threads")
    changes = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys if before.get(key) != now.get(key)]
    for package, new in now["versions"].items():
        old = before.get("versions", {}).get(package)
        if old != new:
            changes.append(f"{package} was {old}, is {new}")
    return changes
