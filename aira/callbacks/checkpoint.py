"""Checkpoints: the last ones to go on from, and the best one by a validation metric."""

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
from aira.files import no_room, typed
from aira.parts import Begun, Finished, Part

STATE = frozenset({"state_dict", "optimizer_states", "callbacks", "global_step"})
"""What a run needs to go on."""


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run, and the shapes of its weights; its content stays on disk.

    Returns:
        `shapes` by the weights' names, `step` that it was written after, and the `record` of the run (see
        `Checkpoints`; empty where an earlier version of Aira has written it).

    Raises:
        AiraError: it cannot be read as plain tensors and numbers, or is not one that a run can go on from.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = reason_of(error)
        raise AiraError(
            f"ckpt_path={path}: this is no checkpoint of Aira: {reason} A run goes on from its own last.ckpt."
        ) from error
    missing = STATE - checkpoint.keys() if isinstance(checkpoint, dict) else STATE
    if missing:
        raise AiraError(
            f"ckpt_path={path}: a run cannot go on from it: it has no {', '.join(sorted(missing))}. "
            "A run goes on from its checkpoints/last.ckpt; model.path=<run> starts a new one from its export."
        )
    shapes = {name: value.shape for name, value in checkpoint["state_dict"].items()}
    return {"shapes": shapes, "step": checkpoint["global_step"], "record": checkpoint.get("record", {})}


def changed_settings(path: Path, state: dict[str, Any], record: dict[str, Any], steps: int) -> dict[str, Any]:
    """In what a run that goes on differs from the one that wrote a checkpoint.

    Args:
        state: of `read_state`.
        record: see `Checkpoints`.
        steps: of the whole run, now.

    Returns:
        `step`, and `settings`: the value before and the value now of each key that has changed; empty where none has.

    Raises:
        AiraError: the rows are others, or are split in another way, so that rows which were held out would be trained
            on; or the tokenizer is another; or the run has gone beyond its new end.
    """
    before = state["record"] or record  # one that nobody wrote down is taken to be the same
    keys = dict.fromkeys([*record["settings"], *before["settings"]])
    pairs = {key: [before["settings"].get(key), record["settings"].get(key)] for key in keys}
    settings = {key: [old, new] for key, (old, new) in pairs.items() if old != new}
    changes = "; ".join(f"{key}={old} there, {new} here" for key, (old, new) in settings.items())
    changes = f" ({changes})" if changes else ""
    anew = "To train on from its weights as a new run: model.path=<its export> and no ckpt_path."
    if before["rows"] != record["rows"]:
        raise AiraError(
            f"ckpt_path={path}: the rows of data.path, or their split, have changed since this run began{changes}: "
            "rows that it held out would be trained on, and the other way round. Give it back what it began with. "
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
    """Refuse a checkpoint of another model.

    Raises:
        AiraError: the names or the shapes of the weights differ.
    """
    here = {name: value.shape for name, value in module.state_dict().items()}
    differing = [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]
    if differing:
        name = differing[0]
        shapes = [tuple(where[name]) if name in where else "nothing" for where in (there, here)]
        raise AiraError(
            f"ckpt_path={path} is of another model: {len(differing)} of its tensors differ, the first of them {name}: "
            f"{shapes[0]} there, {shapes[1]} here. The run's own configuration is in {path.parent.parent / '.hydra'}."
        )


def measured(trainer: pl.Trainer) -> dict[str, float]:
    """The metrics that were logged last, by name, but for those that are no numbers."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def validates(trainer: pl.Trainer, index: int) -> bool:
    """Whether a validation follows the training step `index`: at the run's interval, and at its end."""
    at = (index + 1) % trainer.val_check_batch == 0  # type: ignore[operator]
    return trainer.enable_validation and (at or trainer.should_stop)


class Checkpoints(pl.Callback, Part):
    """Writes `checkpoints/last.ckpt` every n steps, after each validation and at the end, and `best.ckpt`.

    A file is written beside its place and then moved there, so one that was whole stays whole whatever happens; the
    `last.ckpt` before it becomes `previous.ckpt`. Where a step is followed by a validation, the checkpoint is written
    after it: going on never misses one.

    Args:
        every_n_train_steps: optimizer steps between two checkpoints.
        monitor: the metric that `best` goes by.
        mode: `min` or `max`.
    """

    def __init__(self, every_n_train_steps: int, monitor: str, mode: str) -> None:
        self.every_n_train_steps, self.monitor, self.sign = every_n_train_steps, monitor, {"min": 1, "max": -1}[mode]
        self.best: float | None = None
        self.best_metrics: dict[str, float] = {}  # of the validation that best.ckpt was written after
        self.metrics: dict[str, float] = {}  # as last.ckpt has them
        self.saved_step = -1

    def begin(self, run: Begun) -> "Checkpoints":
        """Know where to write, and what says which run it is."""
        self.folder, self.started = run.folder / "checkpoints", run.started
        self.record, self.resumed = run.record, [run.changed] if run.changed else []
        return self

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Refuse to go on from one checkpoint in one process and from another in the next.

        Raises:
            AiraError: this process has not found the file that the first one has.
        """
        first = trainer.strategy.broadcast(str(trainer.ckpt_path))
        if first != str(trainer.ckpt_path):
            raise AiraError(
                f"ckpt_path: this process has found {trainer.ckpt_path}, and the first one {first}. Name one for all: "
                f"{typed('ckpt_path', first)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What the best so far was, what was measured last, what settings were changed, and how long the run took."""
        kept = {"best": self.best, "best_metrics": self.best_metrics, "metrics": self.metrics, "resumed": self.resumed}
        return kept | {"seconds": time.time() - self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with it, and counting."""
        self.best, self.best_metrics, self.metrics = (state_dict[name] for name in ("best", "best_metrics", "metrics"))
        self.started -= state_dict["seconds"]
        self.resumed = [*state_dict.get("resumed", []), *self.resumed]

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record which run it is, and what it runs on."""
        checkpoint["environment"], checkpoint["record"] = environment(), self.record

    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warn where going on may not be exact; a run that had ended can be made longer."""
        loop = checkpoint["loops"]["fit_loop"]  # a finished run's only epoch, as Lightning counts, is to begin again
        loop["epoch_loop.batch_progress"]["is_last_batch"] = False
        for counts in loop["epoch_progress"].values():
            counts |= {"processed": 0, "completed": 0}
        changed = differences(checkpoint.get("environment", {}), environment())
        if changed and trainer.is_global_zero:
            warnings.warn(
                f"This run goes on in another environment, so not bit for bit: {'; '.join(changed)}.", stacklevel=2
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Every n steps, unless a validation follows."""
        if trainer.global_step % self.every_n_train_steps == 0 and not validates(trainer, index):
            self.save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The best so far by this validation, and the last."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = measured(trainer)
        self.metrics = {name: value for name, value in self.metrics.items() if not name.startswith("val/")}
        why = getattr(module, "undefined", {}).get(self.monitor.removeprefix("val/"))
        if self.monitor in metrics:
            value = self.sign * metrics[self.monitor]
            better = self.best is None or math.isnan(self.best) or value < self.sign * self.best
        elif self.monitor in trainer.callback_metrics or (why and self.best is not None):
            value, better = float(trainer.callback_metrics.get(self.monitor, math.nan)), False
            state = f"undefined ({why})" if why else f"{value}, which is no number"
            print(f"Step {trainer.global_step}: {self.monitor} is {state}; best.ckpt stays as it was.")
        else:
            self.save_last(trainer)
            state = f"undefined: {why}." if why else "not measured."
            raise AiraError(
                f"callbacks.checkpoint.monitor={self.monitor} is {state} {nearest(self.monitor, metrics)} "
                f"The run is saved: go on from {self.folder / 'last.ckpt'} with a metric that is there."
            )
        if better:
            self.best, self.best_metrics = metrics[self.monitor], metrics
            self._save(trainer, "best", weights_only=True)
        self.save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The final state."""
        self.save_last(trainer)

    def finish(self, run: Finished) -> dict[str, float]:
        """What was measured before the run was resumed, and where the best is exported, what was measured of that."""
        run.started = self.started
        run.environment |= {"resumed": self.resumed} if self.resumed else {}
        return self.metrics | run.metrics | (self.best_metrics if run.best else {})

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write the state after the step that was the last, unless that is done."""
        if self.saved_step != trainer.global_step:
            self.metrics |= measured(trainer)
            self._save(trainer, "last")
            self.saved_step = trainer.global_step

    def _save(self, trainer: pl.Trainer, name: str, weights_only: bool = False) -> None:
        part, whole = self.folder / f"{name}.part", self.folder / f"{name}.ckpt"
        try:
            trainer.save_checkpoint(part, weights_only=weights_only)
            if trainer.is_global_zero:
                with part.open("rb") as written:
                    os.fsync(written.fileno())  # or a power cut could leave a new name on old or no bytes
                if name == "last" and whole.exists():
                    os.replace(whole, self.folder / "previous.ckpt")
                os.replace(part, whole)
        except (OSError, RuntimeError) as error:
            if not no_room(error):
                raise
            part.unlink(missing_ok=True)
            way_on = "The checkpoint before it is whole: make room and go on with ckpt_path=last."
            if not (self.folder / "last.ckpt").exists():
                way_on = "There is none before it: make room and start the run again."
            raise AiraError(f"No space left to write {whole} at step {trainer.global_step}. {way_on}") from error
