"""The progress bar of a training run."""

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's bar, with the steps of the run in place of its single epoch, and large numbers without fractions."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 50)  # a file gets a line now and then

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """A bar for the whole run, from the step that it begins or goes on at."""
        super().on_train_start(trainer)
        self.train_progress_bar.total, self.train_progress_bar.initial = trainer.max_steps, trainer.global_step
        self.train_progress_bar.set_description("Training")

    def on_train_epoch_start(self, *_: Any) -> None:
        """Lightning would start the bar over."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands at the bar's end."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {
            name: round(value) if isinstance(value, float) and value >= 1000 else value
            for name, value in metrics.items()
        }
