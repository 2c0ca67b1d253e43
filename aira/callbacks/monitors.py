"""Metrics that callbacks of Lightning's or of the user's own wait for."""

import pytorch_lightning as pl

from aira.errors import AiraError, nearest


class Monitors(pl.Callback):
    """Ends a run at its first validation if a callback waits for a metric that is not measured.

    It stands before those callbacks, whose own error would be a traceback.

    Args:
        monitors: metrics by the keys that name them.
    """

    def __init__(self, monitors: dict[str, str]) -> None:
        self.monitors = monitors

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Compare the metrics with those that are measured by now."""
        for key, metric in self.monitors.items():
            if metric not in trainer.callback_metrics:
                raise AiraError(f"{key}={metric} is not measured. {nearest(metric, trainer.callback_metrics)}")
