"""Errors that a user can act on, and suggestions for a wrong name."""

import re
import signal
from collections.abc import Iterable
from difflib import get_close_matches


class AiraError(Exception):
    """Something outside the code is wrong: the message says what, where, and what to do about it.

    The command line prints only the message; `debug=true` shows the traceback.
    """


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What a scheduler sends before it ends a job, Ctrl-C, what SLURM sends with `--signal=USR1@<seconds>`, and what a
closed terminal sends."""


def handled_signals() -> list[signal.Signals]:
    """The signals that a command handles: all, but SIGHUP not where `nohup` has it ignored."""
    return [signum for signum in SIGNALS if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN]


class Stopped(Exception):
    """A signal ended the run; what it had computed is saved. A shell expects 128 + `signum` as the exit status."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def reason_of(error: BaseException) -> str:
    """The first line of an error's message that is not empty, or its type; for a KeyError, the missing key."""
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def nearest(name: str, options: Iterable[str], listed_by: str = "") -> str:
    """Sentences that name the valid options nearest to `name`, or all options if they are few or none is near.

    Args:
        listed_by: the command that lists the options, for where they are many and none is near.
    """
    options = sorted(set(options))
    group, _, last = name.rpartition(".")
    in_group = [option for option in options if group and option.startswith(f"{group}.")]
    same_key = [option for option in options if option.split(".")[-1] == last]  # `lr` for `optimizer.lr`
    if group:  # the group's name, which its keys share, does not make two of them similar
        near = get_close_matches(last.lower(), [option[len(group) + 1 :] for option in in_group], n=1, cutoff=0.6)
        close = [f"{group}.{key}" for key in near] or get_close_matches(name, same_key, n=1, cutoff=0)
    else:
        close = same_key
    options = [option for option in in_group if "." not in option[len(group) + 1 :]] or options
    lower = name.lower()
    begun = [option for option in options if len(lower) > 2 and re.match(rf"{re.escape(lower)}(?!\.)", option)]
    close = close or begun[:8]  # all of a family: `gpt2`
    close = close or ([] if in_group else get_close_matches(lower, options, n=1, cutoff=0.6))
    close = close or [option for option in options if len(lower) > 2 and option.startswith(lower)][:1]
    suggested = " or ".join(", ".join(map(repr, close)).rsplit(", ", 1))
    sentences = [f"Did you mean {suggested}?"] if close else []
    if len(options) <= (6 if close else 40):
        sentences.append(f"Valid: {', '.join(options)}." if options else "There is none yet.")
    return " ".join(sentences) or (
        f"{listed_by} lists what is valid."
        if listed_by
        else f"Valid are {len(options)}, such as {', '.join(options[:3])}."
    )
