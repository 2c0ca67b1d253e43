"""The cells of a row, by the name of their column or by a path into it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aira.data.texts import BadRow, is_blank, short

Record = dict[str, Any]


def pick(row: Record, column: str | list[str]) -> Any:
    """Read a column by its name or by a dotted path into it (`answers.0.text`), or join several with blank lines.

    Raises:
        BadRow: the path does not exist in this row, or a part to join is not text.
    """
    if isinstance(column, list):
        parts = {name: pick(row, name) for name in column}
        return "\n\n".join(text(parts, name) for name, part in parts.items() if not is_blank(part))
    value: Any = row
    for name in [column] if column in row else column.split("."):
        if value is None or (isinstance(value, list) and name.isdecimal() and int(name) >= len(value)):
            raise BadRow(f"empty {column}")
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)]
        elif isinstance(value, Mapping) and name in value:  # a row of the datasets library is not a dict
            value = value[name]
        else:
            raise BadRow(f"there is no {column}")
    return value


def text(row: Record, name: str) -> str:
    """A column that must be non-empty text; a number or a boolean becomes its JSON text."""
    value = row[name]
    if is_blank(value):
        raise BadRow(f"empty {name}")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text but {type(value).__name__}")
    return value


def reachable(column: str | list[str], available: Sequence[str]) -> bool:
    """Whether a mapping's column, or the column that each of its paths begins with, exists; see `pick`."""
    names = column if isinstance(column, list) else [column]
    return all(name in available or name.split(".")[0] in available for name in names)


LARGEST = 3.4e38
"""The largest number, which is stored in 32 bits."""


def finite(value: Any, name: str) -> float:
    """A number, which may be given as text, or as true or false.

    Raises:
        BadRow: it is not a number, or not finite in 32 bits.
    """
    literal = str(value).strip().lower()
    try:
        number = float({"true": 1, "false": 0}.get(literal, literal))
    except ValueError as error:
        raise BadRow(f"{name} is not a number ({short(value)})") from error
    if not abs(number) <= LARGEST:
        raise BadRow(f"{name} is not a number ({short(value)})")
    return number
