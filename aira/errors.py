"""The error that a user can act on, and how a wrong name is answered."""

from collections.abc import Iterable
from difflib import get_close_matches


class AiraError(Exception):
    """Something outside the code is wrong: the message says what, where, and what to do about it.

    The command line prints the message alone; a traceback is shown with `debug=true`.
    """


def nearest(name: str, options: Iterable[str]) -> str:
    """A sentence that names the valid option nearest to `name`, or all of them where none is near."""
    options = sorted(options)
    same_key = [option for option in options if option.split(".")[-1] == name]  # `lr` for `optimizer.lr`
    close = same_key or get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Valid: {', '.join(options)}." if len(options) <= 40 else "`--cfg job` prints what is valid."
