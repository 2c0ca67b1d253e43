"""What finished and unfinished runs left behind, read back from their folders."""

import contextlib
import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from aira.config import flat
from aira.errors import AiraError
from aira.trials import TRIAL

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
        known = {key: self.environment[key] for key in ("tokenizer", "data_key") if key in self.environment}
        return dict(flat(self.values)) | known


def find_runs(path: Path) -> list[Run]:
    """The runs in a folder: of one run, of a sweep, or of several at any depth.

    Raises:
        AiraError: there is none.
    """
    if not path.is_dir():
        raise AiraError(f"runs={path}: there is no such folder.")
    found = {file.parent.parent for file in path.rglob(".hydra/config.yaml") if ".old" not in file.parts}
    folders = sorted(folder for folder in found if _is_run(folder))
    if not folders:
        raise AiraError(f"runs={path}: no training run has written anything there.")
    return [read_run(folder) for folder in folders]


def _is_run(folder: Path) -> bool:
    wrote = any((folder / name).exists() for name in ("metrics.json", "logs", "checkpoints"))
    return wrote and "method" in OmegaConf.load(folder / ".hydra" / "config.yaml")  # an evaluation has none


def read_run(folder: Path) -> Run:
    """Read one run's folder."""
    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    trial = folder / TRIAL
    return Run(
        name=folder.name,
        folder=folder,
        values=OmegaConf.to_container(cfg, resolve=True),  # type: ignore[arg-type]
        metrics=_json(folder / "metrics.json") or {},
        environment=_json(folder / "environment.json") or {},
        curves=_curves(sorted(folder.glob("logs/version_*/metrics.csv"), key=_version)),
        samples=_lines(folder / "samples.jsonl", ("step", "question")),
        scores=_scores(folder / "scores.csv"),
        evaluations=_lines(folder / "evaluations.jsonl", ("task", "name")),
        trial=_json(trial),
    )


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _lines(file: Path, key: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a file; of those that were written twice, the later ones. A line that a full disk cut off is none."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return list({tuple(row[name] for name in key): row for row in rows}.values())


def _version(file: Path) -> int:
    return int(file.parent.name.removeprefix("version_"))


def _curves(logs: Iterable[Path]) -> dict[str, Curve]:
    """Every logged metric over steps; where a run was gone on with, later logs take the place of earlier ones."""
    found: dict[str, dict[int, float]] = {}
    for log in logs:
        with log.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                for name, value in row.items():
                    if "/" in name and value and math.isfinite(float(value)):
                        found.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: tuple(map(list, zip(*sorted(points.items())))) for name, points in found.items()}  # type: ignore[misc]


def _scores(file: Path) -> np.ndarray:
    return np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2) if file.exists() else np.empty((0, 4))


def differing(runs: list[Run]) -> dict[str, list[Any]]:
    """The keys whose values are not the same in all runs, with the value of each run."""
    tables = [{key: value for key, value in flat(run.values) if not isinstance(value, dict)} for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    free = ("output_dir", "ckpt_path", "cache_dir", "debug", "sweep")
    return {
        key: [table.get(key) for table in tables]
        for key in keys
        if len({json.dumps(table.get(key), default=str) for table in tables}) > 1 and key.split(".")[0] not in free
    }
