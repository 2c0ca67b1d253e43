"""Checkpoints: the last ones to resume from, and the best one by a validation metric."""

import math
import os
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from aira.environment import differences, environment
from aira.errors import AiraError, nearest, reason_of
from aira.files import no_room, quoted_override
from aira.parts import Part, RunEnd, RunStart

STATE = frozenset({"state_dict", "optimizer_states", "callbacks", "global_step"})
"""The keys of a checkpoint that a run needs to resume."""


def read_state(path: Path) -> dict[str, Any]:
    """Read the record and step of a checkpoint and the shapes of its weights, without loading the weights.

    Returns:
        The `shapes` by the weights' names, the `step` after which it was written, and the `record` of the run (see
        `RunStart`; empty if an earlier version of Aira wrote the checkpoint).

    Raises:
        AiraError: it cannot be read as tensors and numbers, or is not a checkpoint that a run can resume from.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = reason_of(error)
        raise AiraError(
            f"ckpt_path={path}: this is no checkpoint of Aira: {reason} A run resumes from its own last.ckpt."
        ) from error
    missing = STATE - checkpoint.keys() if isinstance(checkpoint, dict) else STATE
    if missing:
        raise AiraError(
            f"ckpt_path={path}: a run cannot resume from it: it has no {', '.join(sorted(missing))}. "
            "A run resumes from its checkpoints/last.ckpt; model.path=<run> starts a new one from its export."
        )
    shapes = {name: value.shape for name, value in checkpoint["state_dict"].items()}
    return {"shapes": shapes, "step": checkpoint["global_step"], "record": checkpoint.get("record", {})}


def changed_settings(path: Path, state: dict[str, Any], record: dict[str, Any], steps: int) -> dict[str, Any]:
    """The settings in which a resumed run differs from the run that wrote a checkpoint.

    Args:
        state: from `read_state`.
        record: of the resumed run, see `RunStart`.
        steps: of the whole resumed run.

    Returns:
        The `step` of the checkpoint, and `settings`: the old and the new value of each changed key; empty if no key has
        changed.

    Raises:
        AiraError: the rows or their split have changed, so that held-out rows would be trained on; the tokenizer has
            changed; or the checkpoint is beyond the new end of the run.
    """
    before = state["record"] or record  # without a record, nothing is taken to have changed
    keys = dict.fromkeys([*record["settings"], *before["settings"]])
    pairs = {key: [before["settings"].get(key), record["settings"].get(key)] for key in keys}
    settings = {key: [old, new] for key, (old, new) in pairs.items() if old != new}
    changes = "; ".join(f"{key}={old} there, {new} here" for key, (old, new) in settings.items())
    changes = f" ({changes})" if changes else ""
    anew = "To train on from its weights as a new run: model.path=<its export> and no ckpt_path."
    if before["rows"] != record["rows"]:
        raise AiraError(
            f"ckpt_path={path}: the rows of data.path, or their split, have changed since this run began{changes}: "
            "rows that it held out would be trained on, and the other way round. Restore what it started with. "
            f"{anew}"
        )
    if before["tokenizer"] != record["tokenizer"]:
        raise AiraError(f"ckpt_path={path} is of a run with another tokenizer{changes}. {anew}")
    if state["step"] > steps:
        raise AiraError(
            f"ckpt_path={path}: the run is at step {state['step']}, and is to end after {steps}. Raise "
            f"trainer.max_steps or max_epochs. {anew}"
        )
    return {"step": state["step"], "settings": settings} if settings else {}


def check_shapes(path: Path, there: dict[str, torch.Size], module: pl.LightningModule) -> None:
    """Check that a checkpoint is of this model.

    Raises:
        AiraError: the names or the shapes of the weights differ.
    """
    here = {name: value.shape for name, value in module.state_dict().items()}
    differing = [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]
    if differing:
        name = differing[0]
        shapes = [tuple(each[name]) if name in each else "nothing" for each in (there, here)]
        raise AiraError(
            f"ckpt_path={path} is of another model: {len(differing)} of its tensors differ, the first of them {name}: "
            f"{shapes[0]} there, {shapes[1]} here. The run's own configuration is in {path.parent.parent / '.hydra'}."
        )


def last_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The metrics that were logged last, by name; NaN and infinite ones are left out."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def validation_follows(trainer: pl.Trainer, index: int) -> bool:
    """Whether a validation follows the training step `index`: at the run's interval, and at its end."""
    is_due = (index + 1) % trainer.val_check_batch == 0  # type: ignore[operator]
    return trainer.enable_validation and (is_due or trainer.should_stop)


class Checkpoints(pl.Callback, Part):
    """Writes `checkpoints/last.ckpt` every n steps, after each validation and at the end, and `best.ckpt`.

    A file is written next to its final place and then moved there, so a whole checkpoint stays whole whatever happens;
    the `last.ckpt` before it becomes `previous.ckpt`. If a validation follows a step, the checkpoint is written after
    the validation, so that a resumed run never misses one.

    Args:
        every_n_train_steps: optimizer steps between two checkpoints.
        monitor: the metric that `best.ckpt` is chosen by.
        mode: `min` or `max`.
    """

    def __init__(self, every_n_train_steps: int, monitor: str, mode: str) -> None:
        self.every_n_train_steps, self.monitor, self.sign = every_n_train_steps, monitor, {"min": 1, "max": -1}[mode]
        self.best: float | None = None
        self.best_metrics: dict[str, float] = {}  # of the validation after which best.ckpt was written
        self.metrics: dict[str, float] = {}  # as in last.ckpt
        self.saved_step = -1

    def begin(self, run: RunStart) -> "Checkpoints":
        """Take the folder and the record of the run."""
        self.folder, self.started = run.folder / "checkpoints", run.started
        self.record, self.resumed = run.record, [run.changed] if run.changed else []
        return self

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Check that all processes resume from the same checkpoint.

        Raises:
            AiraError: this process has found another file than the first one.
        """
        first = trainer.strategy.broadcast(str(trainer.ckpt_path))
        if first != str(trainer.ckpt_path):
            raise AiraError(
                f"ckpt_path: this process has found {trainer.ckpt_path}, and the first one {first}. Name one for all: "
                f"{quoted_override('ckpt_path', first)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, the last metrics, changed settings, and the seconds that the run took."""
        kept = {"best": self.best, "best_metrics": self.best_metrics, "metrics": self.metrics, "resumed": self.resumed}
        return kept | {"seconds": time.time() - self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.best, self.best_metrics, self.metrics = (state_dict[name] for name in ("best", "best_metrics", "metrics"))
        self.started -= state_dict["seconds"]
        self.resumed = [*state_dict.get("resumed", []), *self.resumed]

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record of the run and its environment."""
        checkpoint["environment"], checkpoint["record"] = environment(), self.record

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warn if resuming may not be exact, and let a finished run be continued with more steps."""
        loop = checkpoint["loops"]["fit_loop"]  # to Lightning a run is one epoch; that of a finished run is reopened
        loop["epoch_loop.batch_progress"]["is_last_batch"] = False
        for counts in loop["epoch_progress"].values():
            counts |= {"processed": 0, "completed": 0}
        changed = differences(checkpoint.get("environment", {}), environment())
        if changed and trainer.is_global_zero:
            warnings.warn(
                f"This run is resumed in another environment, so not bit for bit: {'; '.join(changed)}.", stacklevel=2
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Save every n steps, unless a validation follows."""
        if trainer.global_step % self.every_n_train_steps == 0 and not validation_follows(trainer, index):
            self.save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the last checkpoint, and the best one if this validation is the best so far."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = last_metrics(trainer)
        self.metrics = {name: value for name, value in self.metrics.items() if not name.startswith("val/")}
        reason = getattr(module, "undefined", {}).get(self.monitor.removeprefix("val/"))
        if self.monitor in metrics:
            value = self.sign * metrics[self.monitor]
            better = self.best is None or math.isnan(self.best) or value < self.sign * self.best
        elif self.monitor in trainer.callback_metrics or (reason and self.best is not None):
            value, better = float(trainer.callback_metrics.get(self.monitor, math.nan)), False
            state = f"undefined ({reason})" if reason else f"{value}, which is no number"
            print(f"Step {trainer.global_step}: {self.monitor} is {state}; best.ckpt stays as it was.")
        else:
            self.save_last(trainer)
            state = f"undefined: {reason}." if reason else "not measured."
            raise AiraError(
                f"callbacks.checkpoint.monitor={self.monitor} is {state} {nearest(self.monitor, metrics)} "
                f"The run is saved: resume from {self.folder / 'last.ckpt'} with a metric that exists."
            )
        if better:
            self.best, self.best_metrics = metrics[self.monitor], metrics
            self._save(trainer, "best", weights_only=True)
        self.save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the final state."""
        self.save_last(trainer)

    def finish(self, run: RunEnd) -> dict[str, float]:
        """The metrics from before the run was resumed, and those of the best checkpoint if that is exported."""
        run.started = self.started
        run.environment |= {"resumed": self.resumed} if self.resumed else {}
        return self.metrics | run.metrics | (self.best_metrics if run.best else {})

    def save_last(self, trainer: pl.Trainer) -> None:
        """Save the state after the last step, unless it is already saved."""
        if self.saved_step != trainer.global_step:
            self.metrics |= last_metrics(trainer)
            self._save(trainer, "last")
            self.saved_step = trainer.global_step

    def _save(self, trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        part, whole = self.folder / f"{name}.part", self.folder / f"{name}.ckpt"
        try:
            trainer.save_checkpoint(part, weights_only=weights_only)
            if trainer.is_global_zero:
                with part.open("rb") as written:
                    os.fsync(written.fileno())  # or a power cut could leave the new name with old or no bytes
                if name == "last" and whole.exists():
                    os.replace(whole, self.folder / "previous.ckpt")
                os.replace(part, whole)
        except (OSError, RuntimeError) as error:
            if not no_room(error):
                raise
            part.unlink(missing_ok=True)
            advice = "The checkpoint before it is whole: free some space and resume with ckpt_path=last."
            if not (self.folder / "last.ckpt").exists():
                advice = "There is none before it: free some space and start the run again."
            raise AiraError(f"No space left to write {whole} at step {trainer.global_step}. {advice}") from error
