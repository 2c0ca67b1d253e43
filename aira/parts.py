"""What callbacks and loggers may have to do at the end of a run, so that none of them is known by name there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import nn


@dataclass
class Finished:
    """A run whose training has ended, as its parts see it.

    Attributes:
        model: with all its weights, those that are exported.
        folder: the run's.
        values: the configuration.
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
    values: dict[str, Any]
    best: bool
    started: float
    metrics: dict[str, float]
    environment: dict[str, Any]


class Part:
    """A callback or a logger with something to do at the end, on rank 0. Each of these may be left out."""

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


def log_table(
    loggers: list[Logger], name: str, columns: list[str], rows: list[list[Any]], step: int | None = None
) -> None:
    """Give a table to those loggers that take one."""
    for logger in loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(name, columns, rows, step=step)
