"""What callbacks and loggers have to do at a run's start and end, so that none of them is known by name there."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import nn
from transformers import PreTrainedTokenizerBase

from aira.config.compose import build
from aira.config.schema import Train


@dataclass
class Begun:
    """A run, or an evaluation, before its work starts, as its parts see it.

    Attributes:
        folder: the run's.
        values: the configuration, as it is written down.
        tokenizer: of the model that is trained; None in an evaluation.
        started: when the process began to work, as `time.time()`.
        record: what says which run it is: its `settings` by dotted keys, and the hashes `rows` and `tokenizer`.
        changed: where a run is resumed, the settings that are others than before.
    """

    folder: Path
    values: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase | None = None
    started: float = field(default_factory=time.time)
    record: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)


@dataclass
class Finished:
    """A run whose training has ended, as its parts see it.

    Attributes:
        model: with all its weights, those that are exported.
        folder: the run's.
        settings: the configuration.
        best: the weights are those of checkpoints/best.ckpt.
        started: when the run began, as `time.time()`, less what it had run before it was resumed.
        metrics: what is known by now, by name.
        environment: what the run ran on, as it is written down.
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
    """A callback or a logger that needs the run, or has something to do at its end, on rank 0.

    Each of these may be left out. A class of Lightning's own is no part, and is taken as it is.
    """

    head: ClassVar[str | None] = None
    """The head that it is for, `lm` or `score`; None for both."""

    def begin(self, run: Begun) -> Any:
        """Before the work starts, on every rank.

        Returns:
            The callback or logger to use.
        """
        return self

    def finish(self, run: Finished) -> dict[str, float]:
        """Before the export; the last part comes first.

        Returns:
            Metrics of the run, beside those that there are.
        """
        return {}

    def exported(self, run: Finished) -> None:
        """Once the export stands in the run's folder."""

    def summary(self) -> list[str]:
        """Lines to be printed at the end."""
        return []

    def evaluated(self, folder: Path, suite: str, models: list[str]) -> None:
        """Once an evaluation stands in its folder: of a suite, by its name, on models, by their paths."""


def begin(settings: dict[str, dict[str, Any]], group: str, run: Begun, head: str | None = None) -> list[Any]:
    """Build parts from their settings, those that are for a head.

    Raises:
        AiraError: one cannot be built.
    """
    built = [build(one, f"{group}.{name}") for name, one in settings.items()]
    return [
        one.begin(run) if isinstance(one, Part) else one for one in built if getattr(one, "head", None) in (None, head)
    ]


def log_table(
    loggers: list[Logger], name: str, columns: list[str], rows: list[list[Any]], step: int | None = None
) -> None:
    """Give a table to those loggers that take one."""
    for logger in loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(name, columns, rows, step=step)
