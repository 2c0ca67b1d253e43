"""Stops a run on a signal from a user or a cluster, with nothing lost."""

import signal
import sys
import threading
from typing import Any

import pytorch_lightning as pl
import torch

from aira.callbacks.checkpoint import Checkpoints, validation_follows
from aira.errors import Stopped, handled_signals
from aira.files import Output, quoted_override


class Signals(pl.Callback):
    """On a signal, writes a checkpoint after the current step, or after the validation that follows it, and stops.

    The same happens if nobody reads the output any more: a pipe's reader has ended (SIGPIPE), or a terminal was closed
    (SIGHUP).

    Before training there is nothing to save, and the run stops at once, as it does at a second signal. A signal to any
    of several processes stops all of them at the same step. This callback has to come after all others.
    """

    def __init__(self) -> None:
        self.received = 0
        self.training = False
        self.idle = "before the first step."

    def __enter__(self) -> "Signals":
        """Install the handlers."""
        self.before = {signum: signal.getsignal(signum) for signum in handled_signals()}
        self._install()
        self.streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (Output(stream, self._handle_closed) for stream in self.streams)
        return self

    def __exit__(self, *_: Any) -> None:
        """Restore the handlers, for a caller from Python."""
        self._install(self.before)
        sys.stdout, sys.stderr = self.streams

    def _install(self, handlers: dict[signal.Signals, Any] | None = None) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in self.before:
                signal.signal(signum, handlers[signum] if handlers else self._receive)

    def _handle_closed(self, signum: int) -> None:
        """Handle a closed output like a signal, once."""
        if threading.current_thread() is not threading.main_thread():
            self.received = self.received or signum
        elif not self.received:
            self._receive(signum, None)

    def _receive(self, signum: int, frame: Any) -> None:
        for each in self.before:
            # the terminal and the shell both send SIGHUP
            signal.signal(each, signal.SIG_IGN if signum == each == signal.SIGHUP else signal.SIG_DFL)
        self.received, name = signum, signal.Signals(signum).name
        if not self.training:
            raise Stopped(signum, f"Stopped by {name} {self.idle}")
        print(f"\n{name}: the run stops after this step; a second signal stops it at once.", flush=True)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Install the handlers again: Lightning has replaced them by its own, which save nothing."""
        self.training = True
        self._install()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """From now on a signal stops the run at once: all but the export is saved."""
        self.training = False
        advice = " Resume with ckpt_path=last." * bool(_checkpoints(trainer))
        self.idle = f"after the last step, with no export written yet.{advice}"

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Stop here, unless a validation follows."""
        if not validation_follows(trainer, index):
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
            message += f" Resume with ckpt_path=last, or {quoted_override('ckpt_path', callback.folder / 'last.ckpt')}."
        raise Stopped(signum, message)


def _checkpoints(trainer: pl.Trainer) -> list[Checkpoints]:
    """The callbacks that write checkpoints; a configuration may have none."""
    return [callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)]  # type: ignore[attr-defined]
