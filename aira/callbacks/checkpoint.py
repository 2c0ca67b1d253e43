"""Checkpoints: the last one to go on from, and the best one by a validation metric."""

import errno
import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from aira.environment import differences, environment
from aira.errors import AiraError


class Checkpoints(pl.Callback):
    """Writes `checkpoints/last.ckpt` every n steps, after each validation and at the end, and `best.ckpt`.

    A file is written beside its place and then moved there, so one that was whole stays whole whatever happens. Where
    a step is followed by a validation, the checkpoint is written after it: going on never misses one.

    Args:
        run: the run's folder.
        started: when the process began to work, as `time.time()`.
        every_n_train_steps: optimizer steps between two checkpoints.
        monitor: the metric that `best` goes by.
        mode: `min` or `max`.
    """

    def __init__(self, run: Path, started: float, every_n_train_steps: int, monitor: str, mode: str) -> None:
        self.folder, self.started = run / "checkpoints", started
        self.every_n_train_steps, self.monitor, self.sign = every_n_train_steps, monitor, {"min": 1, "max": -1}[mode]
        self.best: float | None = None
        self.saved_step = -1

    def state_dict(self) -> dict[str, Any]:
        """What the best so far was, and how long the run has taken."""
        return {"best": self.best, "seconds": time.time() - self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with it, and counting."""
        self.best = state_dict["best"]
        self.started -= state_dict["seconds"]

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record what the run runs on."""
        checkpoint["environment"] = environment()

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warn where going on may not be exact."""
        changed = differences(checkpoint.get("environment", {}), environment())
        if changed and trainer.is_global_zero:
            warnings.warn(
                f"This run goes on in another environment, so not bit for bit: {'; '.join(changed)}.", stacklevel=2
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Every n steps, unless a validation follows."""
        validates = trainer.enable_validation and (index + 1) % trainer.val_check_batch == 0  # type: ignore[operator]
        if trainer.global_step % self.every_n_train_steps == 0 and not validates:
            self._save(trainer, "last")

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The best so far by this validation, and the last."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or self.sign * value < self.sign * self.best:
            self.best = value
            self._save(trainer, "best", weights_only=True)
        self._save(trainer, "last")

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The final state."""
        if self.saved_step != trainer.global_step:
            self._save(trainer, "last")

    def _save(self, trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        part, whole = self.folder / f"{name}.part", self.folder / f"{name}.ckpt"
        try:
            trainer.save_checkpoint(part, weights_only=weights_only)
            if trainer.is_global_zero:
                os.replace(part, whole)
        except (OSError, RuntimeError) as error:
            if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
                raise
            part.unlink(missing_ok=True)
            raise AiraError(
                f"No space left to write {whole} at step {trainer.global_step}. The checkpoint before it is whole: "
                "make room and go on with ckpt_path=last."
            ) from error
        if name == "last":
            self.saved_step = trainer.global_step
