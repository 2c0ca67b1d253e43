"""What a row must hold for each kind of data, and how a user's columns are brought into that form."""

from collections.abc import Callable, Mapping
from typing import Any

from aira.errors import AiraError

Message = dict[str, str]
Row = dict[str, Any]

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


class BadRow(Exception):
    """A row that cannot be used; it is dropped, and the message is the reason that is counted."""


def pick(row: Row, column: str | list[str]) -> Any:
    """Read a column, by its name, by a dotted path into it (`answers.0.text`), or several joined by blank lines.

    Raises:
        BadRow: the path leads nowhere in this row, or a part to join is no text.
    """
    if isinstance(column, list):
        parts = {name: pick(row, name) for name in column}
        return "\n\n".join(text(parts, name) for name, part in parts.items() if part not in (None, ""))
    value: Any = row
    for name in [column] if column in row else column.split("."):
        if value is None or (isinstance(value, list) and name.isdecimal() and int(name) >= len(value)):
            raise BadRow(f"empty {column}")
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)]
        elif isinstance(value, Mapping) and name in value:  # a row of the datasets library is no dict
            value = value[name]
        else:
            raise BadRow(f"there is no {column}")
    return value


def text(row: Row, name: str) -> str:
    """A column that must be non-empty text."""
    value = row[name]
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise BadRow(f"empty {name}")
    if not isinstance(value, str):
        raise BadRow(f"{name} is no text but {type(value).__name__}")
    return value


def conversation(turns: Any) -> list[Message]:
    """Turns as role and content (or from and value), ending with the assistant's.

    Raises:
        BadRow: an unknown role, an empty turn, no answer by the assistant, or no question before it.
    """
    if not isinstance(turns, list) or not turns:
        raise BadRow("empty conversations")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRow("a turn is no mapping")
        role = turn.get("role") or turn.get("from")
        content = turn.get("content") or turn.get("value")
        if role not in ROLES:
            raise BadRow(f"unknown role {role!r} (known: {', '.join(ROLES)})")
        if not content or (isinstance(content, str) and not content.strip()):
            raise BadRow("an empty turn")
        if not isinstance(content, str):
            raise BadRow(f"a turn is no text but {type(content).__name__}")
        messages.append({"role": ROLES[role], "content": content})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise BadRow("no turn of the assistant")
    if next(message["role"] for message in messages if message["role"] != "system") == "assistant":
        raise BadRow("the assistant speaks first")
    return messages


def instruction(row: Row) -> list[list[Message]]:
    """One conversation, from {prompt, completion} or {conversations}."""
    if "conversations" in row:
        return [conversation(row["conversations"])]
    return [
        [{"role": "user", "content": text(row, "prompt")}, {"role": "assistant", "content": text(row, "completion")}]
    ]


SCHEMAS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[[Row], list[list[Message]]]]] = {
    "instruction": ((("prompt", "completion"), ("conversations",)), instruction),
}
"""For each kind of data: the sets of columns it may have, and the function from a row to its conversations."""


def mapped_columns(kind: str, available: list[str], columns: dict[str, Any] | None, source: str) -> dict[str, Any]:
    """The mapping from a kind's column names to those of the data.

    Args:
        columns: the user's mapping; names that are not mapped stand for themselves.

    Raises:
        AiraError: the data has none of the sets of columns that the kind needs.
    """
    columns = columns or {}
    alternatives, _ = SCHEMAS[kind]
    for names in alternatives:
        mapping = {name: columns.get(name, name) for name in names}
        needed = [part for column in mapping.values() for part in (column if isinstance(column, list) else [column])]
        if all(name in available or name.split(".")[0] in available for name in needed):
            return mapping
    valid = " or ".join("{" + ", ".join(names) + "}" for names in alternatives)
    raise AiraError(
        f"{source} has the columns {', '.join(available)}, and {kind} data needs {valid}. "
        f"Map them: data.columns='{{{alternatives[0][0]}: <column>, …}}'."
    )
