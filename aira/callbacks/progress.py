"""The progress bar of a training run."""

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's bar, over the steps of the run and not its single epoch, with large numbers rounded."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 50)  # fewer lines in a file

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Set the bar to the whole run, from the step at which it starts or resumes."""
        super().on_train_start(trainer)
        self.train_progress_bar.total, self.train_progress_bar.initial = trainer.max_steps, trainer.global_step
        self.train_progress_bar.set_description("Training")

    def on_train_epoch_start(self, *_: Any) -> None:
        """Do nothing: Lightning would reset the bar."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The metrics at the end of the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {
            name: round(value) if isinstance(value, float) and value >= 1000 else value
            for name, value in metrics.items()
        }
