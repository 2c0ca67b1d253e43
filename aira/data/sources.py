"""Reading rows: from the hub, or from json, jsonl, csv and parquet files on disk."""

import csv
import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset

from aira.errors import AiraError, reason_of
from aira.files import check_exists, content_hash, no_room

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class Source:
    """The splits of a data set, memory-mapped, with a key that changes when its content does."""

    name: str
    splits: DatasetDict
    key: str

    def split(self, name: str) -> Dataset:
        """One split.

        Raises:
            AiraError: there is no such split, or it is empty; the message lists the splits.
        """
        if name not in self.splits:
            raise AiraError(f"{self.name} has no split '{name}'. It has: {', '.join(self.splits)}. Set data.split=.")
        if not len(self.splits[name]):
            raise AiraError(f"{self.name}: the split '{name}' is empty.")
        return self.splits[name]


def read(path: str, *, revision: str | None = None, folder: str | None = None, cache_dir: str | None = None) -> Source:
    """Read a data set.

    Args:
        path: a file, a folder (in the hub's layout, or with one file a split), `pkg://package/folder`, or a hub id.
        revision: branch, tag or commit on the hub.
        folder: the part of a repository on the hub that is read; None for all of it.
        cache_dir: where the Arrow tables of local files are kept.

    Raises:
        AiraError: no such file or data set, the hub cannot be reached, or a file is not of its format.
    """
    located = check_exists("data.path", path)
    if located.is_file():
        builder = BUILDERS.get(_format(located))
        if builder is None:
            raise AiraError(f"data.path={path}: {located.suffix} is not read. Read are {', '.join(BUILDERS)}.")
        return _local(path, [located], builder, cache_dir)
    if located.is_dir():
        files = sorted(file for file in located.rglob("*") if _format(file) in BUILDERS)
        if not files:
            raise AiraError(f"data.path={path}: the folder holds no {', '.join(BUILDERS)} file.")
        return _local(path, files, str(located), cache_dir)
    try:
        splits = load_dataset(path, revision=revision, data_dir=folder)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetNotFoundError) as error:
        reason = reason_of(error)
        raise AiraError(
            f"The data set {path} could not be loaded from the hub: {reason}\n"
            "If the hub cannot be reached: data.path=<file or folder> takes a local copy; data=sample needs none."
        ) from error
    return Source(path, splits, content_hash(Path(f["filename"]) for part in splits.values() for f in part.cache_files))


def _format(file: Path) -> str:
    """The suffix, of a compressed file (.jsonl.gz) that of its content."""
    return (file.with_suffix("") if file.suffix == ".gz" else file).suffix


def _opened(file: Path) -> IO[str]:
    """A text file, compressed or not."""
    opening = gzip.open if file.suffix == ".gz" else open
    return opening(file, "rt", encoding="utf-8", newline="")


def _local(path: str, files: list[Path], builder: str, cache_dir: str | None) -> Source:
    """Read files; `builder` is a format, or a folder whose layout the datasets library interprets."""
    for file in files:
        if not file.stat().st_size:
            raise AiraError(f"{file} is empty.")
        if _format(file) != ".parquet":
            try:
                with _opened(file) as stream:
                    for _ in stream:
                        pass
            except UnicodeDecodeError as error:
                raise AiraError(f"{file}: this is not UTF-8 ({error.reason}).") from error
    data_files = {"train": [str(file) for file in files]} if builder in BUILDERS.values() else None
    arguments = {"path": builder, "data_files": data_files, "cache_dir": cache_dir}
    try:
        try:
            splits = load_dataset(**arguments)
        except pa.ArrowInvalid:  # the table in the cache is damaged
            splits = load_dataset(**arguments, download_mode="force_redownload")
    except (datasets.exceptions.DatasetGenerationError, TypeError, ValueError, OSError) as error:
        if no_room(error):
            raise AiraError(f"No space left for the cache of {path}. cache_dir=<folder> puts it elsewhere.") from error
        reason = "there is no row in it" if "corresponds to no data" in str(error) else error.__cause__ or error
        raise AiraError(_bad_row(files) or f"{path} could not be read: {reason}.") from error
    if data_files:
        return Source(path, splits, content_hash(files, builder))
    folder = Path(builder)  # which rows make up a split depends on the names in it, and on what its card says
    names = [str(file.relative_to(folder)) for file in files]
    return Source(path, splits, content_hash([*files, *folder.glob("README.md")], json.dumps(names)))


def _bad_row(files: Iterable[Path]) -> str | None:
    """Find the first row that is not of its file's format, to say where it is."""
    columns: set[str] | None = None
    for file in files:
        try:
            if _format(file) in (".jsonl", ".json"):
                with _opened(file) as stream:
                    text = stream.read()
                if _format(file) == ".json" and text.lstrip().startswith("["):
                    json.loads(text)
                    continue
                for number, line in enumerate(text.split("\n"), start=1):
                    if line.strip():
                        try:
                            row = json.loads(line)
                        except json.JSONDecodeError as error:
                            return f"{file}, row {number}: this is not JSON: {error.msg} (column {error.colno})."
                        if not isinstance(row, dict):
                            return f'{file}, row {number}: a row is an object such as {{"prompt": …}}, not {line[:40]}.'
                        if columns is not None and columns.isdisjoint(row):
                            return f"{file}, row {number}: it has other columns than the rows before: {', '.join(row)}."
                        columns = set(row)
            elif _format(file) == ".csv":
                with _opened(file) as stream:
                    reader = csv.reader(stream, strict=True)
                    header = next(reader)
                    for row_cells in reader:
                        if len(row_cells) != len(header):
                            return f"{file}, line {reader.line_num}: {len(row_cells)} cells, and {len(header)} columns."
        except json.JSONDecodeError as error:
            return f"{file}: this is not JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        except csv.Error as error:
            return f"{file}: this is not CSV: {error}."
    return None
