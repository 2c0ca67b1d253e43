"""Which files of a folder are read, and as which split: one rule, by their names alone.

The rule: a name is cut into words of letters. A file belongs to the split that its name without endings says, by its
first word or by the only such word in it (`train.jsonl`, `test_v2.csv`, `told-br-validation.csv`); else to that which
the nearest folder's first word says (`train/0001.jsonl`); else, in the hub's form `<name>-00000-of-00002.parquet`, to
the split `<name>`. If no file names a split, all are `train`; if some do, the others are left out, and told. Hidden
files, whose name or folder begins with `.` or `__`, are left out.
"""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePath

from aira.errors import AiraError, reason_of

FORMATS = (".json", ".jsonl", ".csv", ".parquet", ".tsv")

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The words that name a split."""

BESIDE = (".md", ".py", ".yaml", ".yml")
"""Endings of what stands beside data and is no data; that they, and names as LICENSE, are left out is not told."""

METADATA = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
"""Files of the datasets library that are about data."""

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


def format_of(file: PurePath) -> str:
    """The ending in lower case; of a compressed file (`.jsonl.gz`) that of its content, if it may be compressed."""
    ending = file.suffix.lower()
    inner = file.with_suffix("").suffix.lower()
    return inner if ending == ".gz" and inner != ".parquet" else ending


def split_of(name: PurePath) -> str | None:
    """The split that a file's name says, relative to the folder that is read; None if it says none.

    Raises:
        AiraError: it names two.
    """
    stem = name.with_suffix("").stem if name.suffix.lower() == ".gz" else name.stem
    for part in (stem, *reversed(name.parts[:-1])):
        words = re.findall(r"[^\W\d_]+", part.lower())
        named = {WORDS[word] for word in (words if part is stem else words[:1]) if word in WORDS}
        if words and words[0] in WORDS:
            return WORDS[words[0]]
        if len(named) > 1:
            raise AiraError(
                f"{name}: the name says {' and '.join(sorted(named))}. Begin it with the one that is meant."
            )
        if named:
            return named.pop()
    shard = SHARD.match(stem)
    return shard[1] if shard else None


def arrange(path: str, base: Path, files: Iterable[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Files by split, each split's in the order of their names, and what is to be told of those that are left out.

    Args:
        path: as the user named it, for messages.
        base: the folder that names are relative to.

    Raises:
        AiraError: no file is of a format that is read, or a name says two splits.
    """
    left: dict[str, list[str]] = {}
    named: dict[str, list[Path]] = {}
    plain: list[Path] = []
    for file in sorted(files):
        name = file.relative_to(base)
        hidden = any(part.startswith((".", "__")) for part in name.parts)
        if format_of(file) not in FORMATS:
            if not hidden and file.suffix.lower() not in BESIDE and (file.suffix or not file.name.isupper()):
                left.setdefault(f"{file.suffix or 'a file without an ending'} is not read", []).append(str(name))
        elif hidden:
            left.setdefault("hidden", []).append(str(name))
        elif name.name in METADATA:
            left.setdefault("it is about the data", []).append(str(name))
        else:
            split = split_of(name)
            (plain if split is None else named.setdefault(split, [])).append(file)
    if named and plain:
        names = [str(file.relative_to(base)) for file in plain]
        left["the name says no split, and other files' names do"] = names
    notices = [f"{path}: left out {_some(names)}: {reason}." for reason, names in left.items()]
    if not named and len(plain) > 1 and not all(SHARD.match(file.name) for file in plain):
        names = [str(file.relative_to(base)) for file in plain]
        notices.append(f"{path}: no name says a split, so all files are read as train: {_some(names)}.")
    splits = named or ({"train": plain} if plain else {})
    if not splits:
        raise AiraError(" ".join([f"{path}: the folder holds no {', '.join(FORMATS)} file.", *notices]))
    for split, files in splits.items():
        formats = sorted({format_of(file) for file in files})
        if len(formats) > 1:
            notices.append(f"{path} ({split}): files of several formats are read together: {', '.join(formats)}.")
        notices += _missing_shards(path, split, files)
    order = ["train", "validation", "test"]
    return {
        split: splits[split] for split in sorted(splits, key=lambda s: (order.index(s) if s in order else 3, s))
    }, notices


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _missing_shards(path: str, split: str, files: list[Path]) -> list[str]:
    """What is to be told of parts of a split that are not there: the names count how many there are."""
    present: dict[tuple[str, str], int] = {}
    for file in files:
        shard = SHARD.match(file.name)
        if shard:
            present[str(file.parent / shard[1]), shard[3]] = present.get((str(file.parent / shard[1]), shard[3]), 0) + 1
    return [
        f"{path} ({split}): {count} of {int(total)} parts of {Path(name).name} are there."
        for (name, total), count in present.items()
        if count < int(total)
    ]


def walk(folder: Path) -> list[Path]:
    """Every file below a folder, through links, too; what a link leads to again is passed over.

    Raises:
        AiraError: a folder cannot be listed.
    """
    paths: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def fail(error: OSError) -> None:
        raise AiraError(f"{error.filename} could not be read: {error.strerror or reason_of(error)}.") from error

    pending = [str(folder)]  # what stands below the folder itself comes before what links lead to
    while pending:
        for at, folders, files in os.walk(pending.pop(0), onerror=fail):
            about = os.stat(at)
            if (about.st_dev, about.st_ino) in seen:
                folders.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            pending += sorted(link for name in folders if os.path.islink(link := os.path.join(at, name)))
            paths += [Path(at, file) for file in files]
    return paths


def check_regular(file: Path) -> None:
    """Whether a file can be opened, holds something, and can be read twice.

    Raises:
        AiraError: it cannot, does not, or is a pipe or device.
    """
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):  # to open a pipe would wait for who writes
            raise AiraError(f"{file} is no regular file: write the rows into one, for they are read more than once.")
        with file.open("rb"):
            pass
    except OSError as error:
        link = f" It is a link to {os.readlink(file)}." if file.is_symlink() else ""
        raise AiraError(f"{file} could not be read: {error.strerror or reason_of(error)}.{link}") from error
    if not about.st_size:
        raise AiraError(f"{file} is empty.")
