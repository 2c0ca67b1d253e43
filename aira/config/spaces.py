"""Spaces to search in: a mapping of keys to what they may be, in the words of Hydra's own sweeps.

Such as `choice(8, 16)`, `interval(0, 1)`, `tag(log, interval(1e-5, 1e-3))`.
"""

import re
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, QuotedString

from aira.config.overrides import parse_override
from aira.errors import AiraError
from aira.files import override

Space = Mapping[str, str]


def parsed(space: Space) -> dict[str, IntervalSweep | ChoiceSweep]:
    """The keys of a space with what they may be.

    Raises:
        AiraError: an entry is none of `choice` and `interval`, or an interval is empty.
    """
    found = {}
    for key, text in space.items():
        value = parse_override(f"{key}={text}").value()
        if not isinstance(value, (ChoiceSweep, IntervalSweep)):
            raise AiraError(f"sweep.space: {key}: {text} is none of choice(…), interval(…) and tag(log, interval(…)).")
        if isinstance(value, IntervalSweep):
            low, high = float(value.start or 0), float(value.end or 0)
            if low >= high or ("log" in value.tags and low <= 0):
                raise AiraError(f"sweep.space: {key}: {text} must go up, and with log begin above 0.")
        found[key] = value
    return found


def examples(space: Space) -> list[str]:
    """Overrides with every value that a choice has, and with both ends of an interval."""
    return [
        chosen_as(key, value)
        for key, where in parsed(space).items()
        for value in (listed(where) if isinstance(where, ChoiceSweep) else (where.start, where.end))
    ]


def chosen_as(key: str, value: Any) -> str:
    """A value of a choice as an override; a text with a space or any of Hydra's own characters is quoted."""
    return override(key, value) if isinstance(value, str) and re.search(r"[^\w./:-]", value) else f"{key}={value}"


def listed(choice: ChoiceSweep) -> list[Any]:
    """The values of a choice."""
    return [value.text if isinstance(value, QuotedString) else value for value in choice.list]
