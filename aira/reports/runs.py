"""What finished and unfinished runs left behind, read back from their folders.

A folder may be untrusted: its content is data. Nothing is resolved or followed out of it, and a file or a line that a
run would not have written is skipped.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aira.config.record import flatten, read_config
from aira.errors import AiraError
from aira.files import nearest_path, read_json, read_text, report_skipped
from aira.ranking import hashes
from aira.trials import TRIAL, rows_of_log

Curve = tuple[list[int], list[float]]
"""Steps and values."""


@dataclass
class Run:
    """A training run; parts that it did not write are empty."""

    name: str
    folder: Path
    values: dict[str, Any]  # its configuration
    metrics: dict[str, float]
    environment: dict[str, Any]
    curves: dict[str, Curve]
    samples: list[dict[str, Any]]  # step, question, answer
    scores: np.ndarray  # [texts, 4]: row, branch, class (-1 where there is none), score
    evaluations: list[dict[str, Any]]  # task, name (of the run or a baseline), candidate, value, shown, percent
    trial: list[str] | None = None  # the overrides of a trial of a sweep

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.metrics)

    @property
    def settings(self) -> dict[str, Any]:
        """What says what its metrics mean, for `aira.ranking.blurred_by`."""
        return dict(flatten(self.values)) | hashes(self.environment)


def find_runs(path: Path) -> list[Run]:
    """The runs in a folder: of one run, of a sweep, or of several at any depth.

    Raises:
        AiraError: there is none.
    """
    if not path.is_dir():
        raise AiraError(f"runs={path}: there is no such folder.{nearest_path(path)}")
    folders = {file.parent.parent for file in path.rglob(".hydra/config.yaml") if ".old" not in file.parts}
    runs = []
    for folder in sorted(folders):
        try:
            has_results = any((folder / name).exists() for name in ("metrics.json", "logs", "checkpoints"))
            if has_results and "method" in (values := read_config(folder)):  # an evaluation has none
                runs.append(_run(folder, values))
        except AiraError as error:
            print(f"Notice: {folder} is passed over: {error}", file=sys.stderr)
    if not runs:
        raise AiraError(f"runs={path}: no training run has written anything there.")
    return runs


NEEDED: dict[str, type] = {
    **dict.fromkeys(("model", "method", "data", "language", "optimizer", "schedule", "trainer"), dict),
    **dict.fromkeys(("model.name", "model.path", "model.architecture", "data.path", "language.code"), str),
    **dict.fromkeys(("method.name", "method.head", "method.monitor", "method.mode"), str),
    **dict.fromkeys(("method.summary", "language.questions"), list),
    **dict.fromkeys(("data.max_length", "seed"), int),
}
"""Keys of a configuration that are read back, and what they are; a list is one of texts."""

OPTIONAL = ("method.compare_by", "method.compare_mode", "method.label")
"""Such keys that may be null, or not there, and are text."""

LARGEST = 1e100
"""A number beyond it is not shown: none of a plot's places would be one."""


def read_run(folder: Path) -> Run:
    """Read one run's folder.

    Raises:
        AiraError: it has no configuration of a training run.
    """
    return _run(folder, read_config(folder))


def _run(folder: Path, values: dict[str, Any]) -> Run:
    """See `read_run`; the configuration has been read."""
    known = dict(flatten(values))
    wrong = [key for key, kind in NEEDED.items() if not _is(known.get(key), kind)]
    wrong += [key for key in OPTIONAL if not isinstance(known.get(key), str | None)]
    if wrong:
        raise AiraError(f"{folder}/.hydra/config.yaml is not the configuration of a training run: see {wrong[0]}.")
    return Run(
        name=folder.name.encode(errors="replace").decode(),  # one may have bytes that are no text
        folder=folder,
        values=values,
        metrics=_numbers(read_json(folder / "metrics.json") or {}),
        environment=read_json(folder / "environment.json") or {},
        curves=_curves(sorted(folder.glob("logs/version_*/metrics.csv"), key=_version), folder),
        samples=_lines(folder / "samples.jsonl", {"step": int, "question": str, "answer": str}, ("step", "question")),
        scores=_scores(folder / "scores.csv"),
        evaluations=_lines(
            folder / "evaluations.jsonl",
            {"task": str, "name": str, "candidate": bool, "value": float, "shown": str, "lower": bool},
            ("task", "name"),
        ),
        trial=_texts(read_json(folder / TRIAL, list)),
    )


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; a list, also whether all in it are texts."""
    texts = not isinstance(value, list) or all(isinstance(one, str) for one in value)
    return type(value) is kind and texts


def _shown(value: float) -> bool:
    """Whether a number is one that can be shown."""
    return abs(value) < LARGEST


def _numbers(entries: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers of a size that can be shown."""
    return {key: value for key, value in entries.items() if type(value) in (int, float) and _shown(value)}


def _texts(values: list[Any] | None) -> list[str] | None:
    return None if values is None else [text for text in values if isinstance(text, str)]


def _lines(file: Path, types: dict[str, type], key: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a file; of those that were written twice, the later ones.

    A line that a full disk or a kill cut off, or whose entries are not of these types, is skipped.
    """
    rows = {}
    for line in (read_text(file, file.parent) or "").split("\n"):
        try:
            row = json.loads(line)
            fine = all(
                type(row[name]) is kind or (kind, type(row[name])) == (float, int) for name, kind in types.items()
            )
            if fine and all(_shown(row[name]) for name, kind in types.items() if kind in (int, float)):
                rows[tuple(row[name] for name in key)] = row
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return list(rows.values())


def _version(file: Path) -> int:
    number = file.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def _curves(logs: Iterable[Path], folder: Path) -> dict[str, Curve]:
    """Every logged metric over steps; if a run was resumed, later logs replace earlier ones."""
    metrics: dict[str, dict[int, float]] = {}
    for log in logs:
        for row in rows_of_log(read_text(log, folder) or ""):
            for name, value in row.items():
                try:
                    if "/" in (name or "") and value and _shown(float(value)) and _shown(step := int(row["step"])):
                        metrics.setdefault(name, {})[step] = float(value)
                except (ValueError, KeyError, TypeError):  # a line of another kind
                    continue
    return {name: tuple(map(list, zip(*sorted(points.items())))) for name, points in metrics.items()}  # type: ignore[misc]


def _scores(file: Path) -> np.ndarray:
    header, *lines = (read_text(file, file.parent) or ",,,").splitlines()
    try:
        scores = np.empty((0, header.count(",") + 1))
        if lines:
            scores = np.loadtxt(lines, delimiter=",", ndmin=2, comments=None)
        if scores.shape[1] != 4 or not (np.abs(scores) < LARGEST).all():
            raise ValueError("it holds no four numbers a line")
        return scores
    except ValueError as error:
        report_skipped(file, error)
        return np.empty((0, 4))


def differing(runs: list[Run]) -> dict[str, list[Any]]:
    """The keys whose values are not the same in all runs, with the value of each run."""
    tables = [{key: value for key, value in flatten(run.values) if not isinstance(value, dict)} for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    free = ("output_dir", "ckpt_path", "cache_dir", "debug", "sweep", "overwrite")
    return {
        key: [table.get(key) for table in tables]
        for key in keys
        if len({json.dumps(table.get(key), default=str) for table in tables}) > 1 and key.split(".")[0] not in free
    }
