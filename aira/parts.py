"""Hooks of callbacks and loggers at a run's start and end, so that training need not know any of them by name."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import nn
from transformers import PreTrainedTokenizerBase

from aira.config.compose import build, check_target
from aira.config.schema import Train
from aira.errors import AiraError


@dataclass
class RunStart:
    """A run or an evaluation before it starts, as its parts see it.

    Attributes:
        folder: the run's folder.
        config: the configuration, as written to the run's folder.
        tokenizer: of the model that is trained; None in an evaluation.
        started: when the process started, as `time.time()`.
        record: what identifies the run: its `settings` by dotted keys, and the hashes `rows` and `tokenizer`.
        changed: if a run is resumed, the settings that have changed.
    """

    folder: Path
    config: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase | None = None
    started: float = field(default_factory=time.time)
    record: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunEnd:
    """A run whose training has ended, as its parts see it.

    Attributes:
        model: with the whole weights that are exported.
        folder: the run's folder.
        settings: the configuration.
        best: whether the weights are those of checkpoints/best.ckpt.
        started: when the run started, as `time.time()`, minus the time that it had run before it was resumed.
        metrics: the metrics so far, by name.
        environment: as written to environment.json.
    """

    trainer: pl.Trainer
    module: pl.LightningModule
    model: nn.Module
    data: Any
    folder: Path
    settings: Train
    best: bool
    started: float
    metrics: dict[str, float]
    environment: dict[str, Any]


class Part:
    """A callback or a logger that needs the run before it starts, or has something to do at its end, on rank 0.

    Every method is optional. Lightning's own classes are not parts, and are used as they are.
    """

    head: ClassVar[str | None] = None
    """The head that the part is for, `lm` or `score`; None for both."""

    def begin(self, run: RunStart) -> Any:
        """Called before the run starts, on every rank.

        Returns:
            The callback or logger to use.
        """
        return self

    def finish(self, run: RunEnd) -> dict[str, float]:
        """Called before the export; the last part is called first.

        Returns:
            Metrics of the run, in addition to those so far.
        """
        return {}

    def on_export(self, run: RunEnd) -> None:
        """Called after the export was written to the run's folder."""

    def summary(self) -> list[str]:
        """Lines to print at the end."""
        return []

    def on_evaluation(self, folder: Path, suite: str, models: list[str]) -> None:
        """Called after an evaluation was written to its folder: a suite by name, the models by their paths."""


def build_parts(settings: dict[str, dict[str, Any]], group: str, run: RunStart, head: str | None = None) -> list[Any]:
    """Build callbacks or loggers from their settings; those for another head are left out.

    Raises:
        AiraError: one cannot be built.
    """
    built = {name: build(part_settings, f"{group}.{name}") for name, part_settings in settings.items()}
    fitting = {name: part for name, part in built.items() if getattr(part, "head", None) in (None, head)}
    begun = {name: part.begin(run) if isinstance(part, Part) else part for name, part in fitting.items()}
    for name, part in begun.items():
        if not isinstance(part, KINDS[group]):
            raise AiraError(
                f"{group}.{name}: {settings[name]['_target_']} gives no {KINDS[group].__name__} of Lightning."
            )
    return list(begun.values())


KINDS: dict[str, type] = {"callbacks": pl.Callback, "logger": Logger}
"""What each part of a group is to be."""


def check_parts(settings: dict[str, dict[str, Any]], group: str) -> None:
    """Check the classes of callbacks or loggers before a run is prepared.

    Raises:
        AiraError: there is no such class, or it is of another kind.
    """
    for name, part_settings in settings.items():
        check_target(part_settings, f"{group}.{name}", (Part, KINDS[group]))


def log_table(
    loggers: list[Logger], name: str, columns: list[str], rows: list[list[Any]], step: int | None = None
) -> None:
    """Log a table with those loggers that support tables."""
    for logger in loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(name, columns, rows, step=step)
