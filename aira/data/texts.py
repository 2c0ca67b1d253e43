"""Texts, as they are compared: which are empty, and which say the same."""

import hashlib
import re
import unicodedata
from typing import Any

UNSEEN = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Zero-width characters that are not in the category of format characters, and control characters except spacing."""


class BadRow(Exception):
    """A row that cannot be used; it is dropped and counted by reason: the message without the part in parentheses."""

    @property
    def reason(self) -> str:
        """The reason by which dropped rows are counted."""
        return reason_in(str(self))


def reason_in(problem: str) -> str:
    """The reason in the message of a `BadRow`."""
    return problem.partition(" (")[0]


def is_blank(value: Any) -> bool:
    """Whether a value is missing, or a text without visible characters."""
    if isinstance(value, str):
        return all(char.isspace() or unicodedata.category(char) == "Cf" or UNSEEN.match(char) for char in value)
    return value is None or bool(value != value)


def short(value: Any) -> str:
    """A value, shortened for a message."""
    full = repr(value)
    return full if len(full) <= 60 else f"{full[:60]}…"


def text_key(value: str) -> int:
    """A signed 64-bit hash of a text; letter case, spacing, Unicode forms and invisible characters do not matter.

    Texts are compared in NFKC form (combined or separate accents, full width or not) without format characters
    (zero-width spaces, soft hyphens, direction marks), variation selectors and control characters.
    """
    form = UNSEEN.sub("", value).casefold()
    if not form.isascii():  # invisible characters are removed before accents are joined to letters
        form = "".join(char for char in value if unicodedata.category(char) != "Cf")
        form = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", UNSEEN.sub("", form)).casefold())
    return hash_of(" ".join(form.split()))


def hash_of(value: str) -> int:
    """A signed 64-bit hash of a text as it is."""
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
