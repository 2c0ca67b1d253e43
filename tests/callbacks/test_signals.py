"""Signals are taken for a run, and given back."""

import os
import signal

import pytest

from aira.callbacks.signals import Signals
from aira.errors import SIGNALS, Stopped


def test_signals_are_given_back():
    """Catches a notebook whose Ctrl-C no longer works, and a second signal that does not end the process."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    with Signals() as signals:
        signals.training = True
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == signal.SIGUSR1
        assert all(signal.getsignal(signum) == signal.SIG_DFL for signum in SIGNALS)
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == before


def test_before_training_there_is_nothing_to_wait_for():
    """Catches a signal during the preparation that is answered only after it."""
    with pytest.raises(Stopped, match="SIGTERM before the first step") as stopped, Signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.signum == signal.SIGTERM
