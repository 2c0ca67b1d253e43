"""Search spaces: mappings of keys to the values to try, in the syntax of Hydra's sweeps.

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


def parse_space(space: Space) -> dict[str, IntervalSweep | ChoiceSweep]:
    """The keys of a space with their choices or intervals.

    Raises:
        AiraError: an entry is neither a `choice` nor an `interval`, or an interval is empty.
    """
    sweeps = {}
    for key, text in space.items():
        value = parse_override(f"{key}={text}").value()
        if not isinstance(value, (ChoiceSweep, IntervalSweep)):
            raise AiraError(f"sweep.space: {key}: {text} is none of choice(…), interval(…) and tag(log, interval(…)).")
        if isinstance(value, IntervalSweep):
            low, high = float(value.start or 0), float(value.end or 0)
            if low >= high or ("log" in value.tags and low <= 0):
                raise AiraError(f"sweep.space: {key}: {text} must go up, and with log begin above 0.")
        sweeps[key] = value
    return sweeps


def examples(space: Space) -> list[str]:
    """Overrides with every value of each choice, and with both ends of each interval."""
    return [
        as_override(key, value)
        for key, sweep in parse_space(space).items()
        for value in (choice_values(sweep) if isinstance(sweep, ChoiceSweep) else (sweep.start, sweep.end))
    ]


def as_override(key: str, value: Any) -> str:
    """A value as an override; a text with a space or any of Hydra's special characters is quoted."""
    return override(key, value) if isinstance(value, str) and re.search(r"[^\w./:-]", value) else f"{key}={value}"


def choice_values(choice: ChoiceSweep) -> list[Any]:
    """The values of a choice."""
    return [value.text if isinstance(value, QuotedString) else value for value in choice.list]
