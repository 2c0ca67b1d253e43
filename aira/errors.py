"""The error that a user can act on, and how a wrong name is answered."""

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class AiraError(Exception):
    """Something outside the code is wrong: the message says what, where, and what to do about it.

    The command line prints the message alone; a traceback is shown with `debug=true`.
    """


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What a scheduler sends before it takes a job away, Ctrl-C, what SLURM sends with `--signal=USR1@<seconds>`, and what
comes from a terminal that is closed."""


def taken() -> list[signal.Signals]:
    """The signals that a command answers: not that of a closed terminal where `nohup` has it ignored."""
    return [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]


class Stopped(Exception):
    """A signal asked the run to end; what it had computed is saved. A shell expects 128 + `signum` as the status."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def reason_of(error: BaseException) -> str:
    """The first line of an error that says something, or its type; of a key that is missing, which."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def nearest(name: str, options: Iterable[str]) -> str:
    """Sentences that name the valid option nearest to `name`, or all of them where they are few or none is near."""
    options = sorted(set(options))
    group, _, last = name.rpartition(".")
    inside = [option for option in options if group and option.startswith(f"{group}.")]
    same_key = [option for option in options if option.split(".")[-1] == last]  # `lr` for `optimizer.lr`
    if group:  # what two keys of one group have in common makes them no alike
        near = get_close_matches(last.lower(), [option[len(group) + 1 :] for option in inside], n=1, cutoff=0.6)
        close = [f"{group}.{one}" for one in near] or get_close_matches(name, same_key, n=1, cutoff=0)
    else:
        close = same_key
    options = [option for option in inside if "." not in option[len(group) + 1 :]] or options
    close = close or ([] if inside else get_close_matches(name.lower(), options, n=1, cutoff=0.6))
    close = close or [option for option in options if len(name) > 2 and option.startswith(name.lower())][:1]
    said = [f"Did you mean {' or '.join(map(repr, close))}?"] if close else []
    if len(options) <= (6 if close else 40):
        said.append(f"Valid: {', '.join(options)}." if options else "There is none yet.")
    return " ".join(said) or "docs/reference.md lists what is valid."
