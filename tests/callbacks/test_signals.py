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


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGPIPE])
def test_an_end_of_the_output_stops_a_run_once(monkeypatch, signum):
    """Catches a closed terminal or pipe that ends the process before it has saved, or at the second line."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with Signals() as signals:
            signals.training = True
            if signum == signal.SIGHUP:
                os.kill(os.getpid(), signum)
                os.kill(os.getpid(), signum)  # the shell tells it too
            for _ in range(3):
                print("told")
            assert signals.received == signum


def test_nohup_is_kept():
    """Catches a run under nohup that a closed terminal stops."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
