"""Which files of a folder are read, and as which split: one rule, by their names alone.

The rule: a name is divided into words of letters. A file belongs to the split named by its name without endings, by the
first word or by the only such word in it (`train.jsonl`, `test_v2.csv`, `told-br-validation.csv`); otherwise to the one
named by the first word of the nearest folder (`train/0001.jsonl`); otherwise, in the hub's form
`<name>-00000-of-00002.parquet`, to the split `<name>`. If no file names a split, all are `train`; if some do, the
others are left out, with a notice. Hidden files, whose name or folder begins with `.` or `__`, are left out.
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

ACCOMPANYING = (".md", ".py", ".yaml", ".yml")
"""Endings of files that accompany data; these, and names such as LICENSE, are left out without a notice."""

METADATA = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
"""Metadata files of the datasets library."""

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


def format_of(file: PurePath) -> str:
    """The ending in lower case; for a compressed file (`.jsonl.gz`) that of its content, if that may be compressed."""
    ending = file.suffix.lower()
    inner = file.with_suffix("").suffix.lower()
    found = inner if ending == ".gz" and inner != ".parquet" else ending
    return ".jsonl" if found in (".ndjson", ".jsonlines") else found


def split_of(name: PurePath) -> str | None:
    """The split named by a file's name, relative to the folder that is read; None if it names none.

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
            raise AiraError(f"{name}: the name says {' and '.join(sorted(named))}. Begin it with the right one.")
        if named:
            return named.pop()
    shard = SHARD.match(stem)
    return shard[1] if shard else None


def arrange(path: str, base: Path, files: Iterable[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Files by split, each split's sorted by name, and notices of the files that are left out.

    Args:
        path: as the user named it, for messages.
        base: the folder that names are relative to.

    Raises:
        AiraError: no file has a supported format, or a name says two splits.
    """
    left_out: dict[str, list[str]] = {}
    by_split: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for file in sorted(files):
        name = file.relative_to(base)
        hidden = any(part.startswith((".", "__")) for part in name.parts)
        if format_of(file) not in FORMATS:
            if not hidden and file.suffix.lower() not in ACCOMPANYING and (file.suffix or not file.name.isupper()):
                left_out.setdefault(f"{file.suffix or 'a file without an ending'} is not read", []).append(str(name))
        elif hidden:
            left_out.setdefault("hidden", []).append(str(name))
        elif name.name in METADATA:
            left_out.setdefault("it is about the data", []).append(str(name))
        else:
            split = split_of(name)
            (unnamed if split is None else by_split.setdefault(split, [])).append(file)
    if by_split and unnamed:
        names = [str(file.relative_to(base)) for file in unnamed]
        left_out["the name says no split, and other files' names do"] = names
    notices = [f"{path}: left out {_some(names)}: {reason}." for reason, names in left_out.items()]
    if not by_split and len(unnamed) > 1 and not all(SHARD.match(file.name) for file in unnamed):
        names = [str(file.relative_to(base)) for file in unnamed]
        notices.append(f"{path}: no name says a split, so all files are read as train: {_some(names)}.")
    splits = by_split or ({"train": unnamed} if unnamed else {})
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
    """Notices of missing shards of a split, whose number is part of their names."""
    present: dict[tuple[str, str], int] = {}
    for file in files:
        shard = SHARD.match(file.name)
        if shard:
            present[str(file.parent / shard[1]), shard[3]] = present.get((str(file.parent / shard[1]), shard[3]), 0) + 1
    return [
        f"{path} ({split}): only {count} of {int(total)} parts of {Path(name).name} exist."
        for (name, total), count in present.items()
        if count < int(total)
    ]


def walk(folder: Path) -> list[Path]:
    """Every file below a folder, also through links; a folder that was visited already is skipped.

    Raises:
        AiraError: a folder cannot be listed.
    """
    paths: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def fail(error: OSError) -> None:
        raise AiraError(f"{error.filename} could not be read: {error.strerror or reason_of(error)}.") from error

    pending = [str(folder)]  # the folder itself comes before the targets of its links
    while pending:
        for parent, folders, files in os.walk(pending.pop(0), onerror=fail):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            pending += sorted(link for name in folders if os.path.islink(link := os.path.join(parent, name)))
            paths += [Path(parent, file) for file in files]
    return paths


def check_regular(file: Path) -> None:
    """Check that a file can be opened, is not empty, and can be read twice.

    Raises:
        AiraError: it cannot be opened, is empty, or is a pipe or device.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise AiraError(f"{file} is not a regular file: write the rows into one, since they are read repeatedly.")
        with file.open("rb"):
            pass
    except OSError as error:
        link = f" It is a link to {os.readlink(file)}." if file.is_symlink() else ""
        raise AiraError(f"{file} could not be read: {error.strerror or reason_of(error)}.{link}") from error
    if not status.st_size:
        raise AiraError(f"{file} is empty.")
