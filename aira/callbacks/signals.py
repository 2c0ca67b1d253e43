"""Ending a run when a user or a cluster asks for it, with nothing lost."""

import signal
import sys
import threading
from typing import Any

import pytorch_lightning as pl
import torch

from aira.callbacks.checkpoint import Checkpoints, validates
from aira.errors import Stopped, taken
from aira.files import Output, typed


class Signals(pl.Callback):
    """Writes a checkpoint after the step that a signal falls into, or after the validation that follows it, and stops.

    So it does where nobody reads the output any more: a pipe's reader has ended (SIGPIPE), a terminal is gone (SIGHUP).

    Before training there is nothing to save, and the run stops at once; so it does at a second signal. A signal to any
    of several processes stops all of them at the same step. It comes after all other callbacks.
    """

    def __init__(self) -> None:
        self.received = 0
        self.training = False
        self.idle = "before the first step."

    def __enter__(self) -> "Signals":
        """Take the signals."""
        self.before = {signum: signal.getsignal(signum) for signum in taken()}
        self._install()
        self.streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (Output(stream, self._unread) for stream in self.streams)
        return self

    def __exit__(self, *_: Any) -> None:
        """Give them back, for whoever called from Python."""
        self._install(self.before)
        sys.stdout, sys.stderr = self.streams

    def _install(self, handlers: dict[signal.Signals, Any] | None = None) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in self.before:
                signal.signal(signum, handlers[signum] if handlers else self._receive)

    def _unread(self, signum: int) -> None:
        """A reader of the output is gone: as if this signal had come, once."""
        if threading.current_thread() is not threading.main_thread():
            self.received = self.received or signum
        elif not self.received:
            self._receive(signum, None)

    def _receive(self, signum: int, frame: Any) -> None:
        for each in self.before:
            # both the terminal and the shell tell of its end
            signal.signal(each, signal.SIG_IGN if signum == each == signal.SIGHUP else signal.SIG_DFL)
        self.received, name = signum, signal.Signals(signum).name
        if not self.training:
            raise Stopped(signum, f"Stopped by {name} {self.idle}")
        print(f"\n{name}: the run stops after this step; a second signal stops it at once.", flush=True)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Lightning has put handlers of its own in place by now, which save nothing."""
        self.training = True
        self._install()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """All is saved but the export."""
        self.training = False
        way_on = " Go on with ckpt_path=last." * bool(_checkpoints(trainer))
        self.idle = f"after the last step, with no export written yet.{way_on}"

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Stop here, unless a validation follows."""
        if not validates(trainer, index):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stop after the validation."""
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        signum = int(trainer.strategy.reduce(received, reduce_op="max"))
        if not signum:
            return
        message = f"Stopped by {signal.Signals(signum).name} after step {trainer.global_step}."
        for callback in _checkpoints(trainer):
            callback.save_last(trainer)
            message += f" Go on with ckpt_path=last, or {typed('ckpt_path', callback.folder / 'last.ckpt')}."
        raise Stopped(signum, message)


def _checkpoints(trainer: pl.Trainer) -> list[Checkpoints]:
    """What writes checkpoints; a configuration may leave it out."""
    return [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]  # type: ignore[attr-defined]
