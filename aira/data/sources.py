"""Reading data sets: from the hub, or from files on disk into tables that are cached by the files' content."""

import glob
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, load_dataset

from aira.data.layout import FORMATS, arrange, check_regular, format_of, walk
from aira.data.tables import READER, Parts, file_hash, parts, table
from aira.errors import AiraError, reason_of
from aira.files import check_exists, content_hash, matching_paths, no_room
from aira.hub import OFFLINE, reach_hub


@dataclass
class Source:
    """The splits of a data set, memory-mapped, with a key that changes when its content does."""

    name: str
    splits: DatasetDict
    key: str
    notices: list[str] = field(default_factory=list)
    """Lines to be printed: files that were left out, and why."""
    parts: dict[str, Parts] = field(default_factory=dict)
    """The files of each split that has several; see `aira.data.tables.row_location`."""

    def split(self, name: str, key: str = "data.split") -> Dataset:
        """One split.

        Args:
            key: of the configuration, by which the user chose it; for messages.

        Raises:
            AiraError: there is no such split, or it is empty; the message lists the splits.
        """
        if name not in self.splits:
            message = f"{self.name} has no split '{name}'. It has: {', '.join(self.splits)}. Set {key}=."
            raise AiraError(" ".join([message, *self.notices]))
        if not len(self.splits[name]):
            raise AiraError(f"{self.name}: the split '{name}' is empty.")
        return self.splits[name]


def read(
    path: str,
    *,
    revision: str | None = None,
    folder: str | None = None,
    cache_dir: str | None = None,
    key: str = "data.path",
) -> Source:
    """Read a data set.

    Args:
        path: a file, a folder (see `aira.data.layout`), a pattern such as `parts/*.jsonl` where no file has that name,
            `pkg://package/folder`, or a hub id.
        revision: branch, tag or commit on the hub.
        folder: the part of a repository on the hub that is read; None for all of it.
        cache_dir: where the Arrow tables of local files are cached.
        key: of the configuration, by which the user set the path; for messages.

    Raises:
        AiraError: no such file or data set, the hub cannot be reached, or a file is not of its format.
    """
    if not path.strip():
        raise AiraError(f"{key} is empty. Name a file, a folder or a data set of the hub.")
    located = check_exists(key, path)
    if located.is_dir():
        return _local(path, *arrange(path, located, walk(located)), located, cache_dir)
    if located.exists():
        if format_of(located) not in FORMATS:
            check_regular(located)
            raise AiraError(
                f"{key}={path}: {located.suffix or 'a file without an ending'} is not read. Read are "
                f"{', '.join(FORMATS)}, and all but .parquet compressed, such as .jsonl.gz."
            )
        return _local(path, {"train": [located]}, [], None, cache_dir)
    if glob.has_magic(path):
        matches = matching_paths(path)
        base = Path(os.path.commonpath([file.parent for file in matches]))
        splits, notices = arrange(path, base, matches)
        names = ", ".join(str(file.relative_to(base)) for file in matches[:5]) + (", …" if len(matches) > 5 else "")
        return _local(path, splits, [f"{path}: matched {len(matches)} files: {names}.", *notices], base, cache_dir)
    reach_hub()
    try:
        hub = load_dataset(path, revision=revision, data_dir=folder)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = reason_of(error)
        raise AiraError(
            f"There is no file or folder {path} here, and no such data set could be loaded from the hub: {reason}\n"
            f"If the hub cannot be reached: {OFFLINE}; {key}=<file or folder> takes a local copy"
            f"{'; data=sample needs none' if key == 'data.path' else ''}."
        ) from error
    files = (Path(file["filename"]) for split in hub.values() for file in split.cache_files)
    return Source(path, hub, content_hash(files))


def _local(
    path: str, splits: dict[str, list[Path]], notices: list[str], base: Path | None, cache_dir: str | None
) -> Source:
    """Read files by split; files that were read before, with the same names and bytes, come from the cached tables.

    Args:
        base: the folder that names are relative to; None for a single file, of which only the endings matter.
    """
    folder = Path(cache_dir or os.environ.get("AIRA_CACHE", "~/.cache/aira")).expanduser() / "tables"
    tables, keys, split_parts = {}, {}, {}
    for split, files in splits.items():
        for file in files:
            check_regular(file)
        names = [str(file.relative_to(base)) if base else format_of(file) + file.suffix.lower() for file in files]
        contents = [file_hash(file) for file in files]
        keys[split] = hashlib.sha256(json.dumps([READER, names, contents]).encode()).hexdigest()
        table_file = folder / f"{keys[split][:32]}.arrow"
        try:
            tables[split] = table(path, files, contents, table_file)
        except OSError as error:
            reason = error.strerror or reason_of(error)
            problem = "No space left" if no_room(error) else f"The folder cannot be written to ({reason})"
            raise AiraError(
                f"{problem} for the table of {path} in {folder}. cache_dir=<folder> puts it elsewhere."
            ) from error
        split_parts[split] = parts(files, table_file)
    key = hashlib.sha256(json.dumps(keys).encode()).hexdigest()
    return Source(path, DatasetDict(tables), key, notices, split_parts)
