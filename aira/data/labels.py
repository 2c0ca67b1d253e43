"""The classes of labelled texts: what a label means."""

import contextlib
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from aira.config.overrides import parse_override
from aira.data.cells import finite, pick
from aira.data.texts import BadRow, short
from aira.errors import AiraError

HARMLESS, TOXIC = 0, 1
"""The two classes of labelled texts. A harmless text has a high score: see `aira.methods.toxicity`."""

TOXIC_FROM = 0.5
"""The least probability of a text that is taken to be toxic."""

LABELS: dict[str, int | None] = {
    **dict.fromkeys(("0", "false", "harmless", "non-toxic", "not-toxic", "non-hateful"), HARMLESS),
    **dict.fromkeys(("1", "true", "harmful", "toxic", "hateful"), TOXIC),
}
"""The labels that need no `data.labels`, in lower case."""

CLEAR = {
    **dict.fromkeys(("safe", "neutral", "normal", "none", "neither", "clean", "ok", "benign", "civil"), HARMLESS),
    **dict.fromkeys(("not", "ham", "no", "nontoxic", "not_toxic", "not toxic", "non_toxic", "acceptable"), HARMLESS),
    **dict.fromkeys(("unsafe", "offensive", "off", "hate", "abusive", "abuse", "insult", "yes", "profane"), TOXIC),
    **dict.fromkeys(("severe_toxic", "obscene", "threat", "hate speech", "hate_speech", "hatespeech"), TOXIC),
}
"""The class that a hint proposes for further labels; for all others it asks."""


class UnknownLabel(AiraError):
    """A label that belongs to neither class; see `labels_hint`."""


def is_toxic(label: float) -> bool:
    """The class of a label that may be a probability: toxic from one half on."""
    return label >= TOXIC_FROM


def label(value: Any, known: Mapping[str, int | None]) -> float:
    """The class of a label, or the probability of toxic (between 0 and 1); of several columns (a list), toxic if any is
    above 0.

    Raises:
        BadRow: there is no label: the cell is empty, null, NaN, or -1 (as in data sets of the hub), or `known`
            has None for it. Of several columns, one has no label, and no other is above 0.
        AiraError: it belongs to neither class.
    """
    if isinstance(value, list):
        present = [part for part in value if not _is_unlabelled(part)]
        toxic = any(finite(part, "label") > 0 for part in present)
        if not toxic and len(present) < len(value):
            raise BadRow("empty label, or -1")
        return TOXIC if toxic else HARMLESS
    name = _normalize(value)
    name = name if name in known else _class_name(value)
    if name not in known:
        if (probability := _probability(name)) is not None:
            return probability
        if _is_unlabelled(value):
            raise BadRow("empty label, or -1")
        raise UnknownLabel(f"the label {short(value)} is neither toxic nor harmless. Known are {', '.join(known)}.")
    label_class = known[name]
    if label_class is None:
        raise BadRow(f"data.labels leaves out {short(value)}")
    return label_class


def _probability(name: str) -> float | None:
    """A number between 0 and 1; None for anything else."""
    with contextlib.suppress(ValueError):
        if 0 < float(name) < 1:
            return float(name)
    return None


MOST_LABELS = 8
"""Labels listed in a hint."""


def labels_hint(
    rows: Dataset, column: str, labels: Mapping[str, int | None] | None, names: Mapping[str, Sequence[str]]
) -> str:
    """How a user defines unknown labels: an override with the labels of the data.

    Args:
        column: of the labels, as of `mapped_columns`.
        labels, names: as of `read_example`.
    """
    user, cells = class_names(labels), []
    top = rows.select_columns(column if column in rows.column_names else column.split(".")[0])
    for row in top.take(min(len(top), 100_000)):
        with contextlib.suppress(BadRow):
            cells.append(pick(row, column))
    values = [class_label(cell, names.get(column), user) for cell in cells]
    known = LABELS | user
    texts = dict.fromkeys(str(value).strip() for value in values if not _is_unlabelled(value))
    unknown = [name for name in texts if _normalize(name) not in known and _class_name(name) not in known]
    escaped = [re.sub(r"[\\()\[\]{}:=,]| (?= |$)", r"\\\g<0>", name) for name in unknown]
    typable = [
        (key, CLEAR.get(_normalize(name), "?"))
        for key, name in zip(escaped, unknown, strict=True)
        if len(name) <= 40 and _can_be_typed(key, name)
    ]
    pairs = ", ".join(f"{key}: {cls}" for key, cls in typable[:MOST_LABELS])
    asked = ", with 1, 0 or null for each ?" if any(cls == "?" for _, cls in typable[:MOST_LABELS]) else ""
    example = f" For example {shlex.quote(f'data.labels={{{pairs}}}')}{asked}." if pairs else ""
    more = f" {len(unknown)} labels are not known." if len(unknown) > MOST_LABELS else ""
    if len(typable) < len(unknown):
        more += " A label that Hydra cannot read there, such as one with a quote, is set in a file (docs/extending.md)."
    return f"data.labels defines other labels: 1 is toxic, 0 is not, null leaves rows out.{example}{more}"


def _can_be_typed(key: str, name: str) -> bool:
    """Whether Hydra reads a key of a mapping as this name."""
    try:
        mapping = parse_override(f"data.labels={{{key}: 1}}").value()
    except AiraError:
        return False
    return isinstance(mapping, dict) and [_normalize(one) for one in mapping] == [_normalize(name)]


def _is_unlabelled(value: Any) -> bool:
    """Whether a cell says that there is no label."""
    return _class_name(value) in ("", "nan", "null", "none", "-1")


def _normalize(value: Any) -> str:
    return unicodedata.normalize("NFC", str(value).strip().casefold())


def _class_name(value: Any) -> str:
    """A label in the form that is compared: text without letter case; whole numbers so that 1.0 is 1, and -0 is 0."""
    name = _normalize(value)
    with contextlib.suppress(ValueError, OverflowError):
        number = float(name)
        return str(int(number)) if number == int(number) else name
    return name


def class_names(labels: Mapping[Any, int | None] | None) -> dict[str, int | None]:
    """The user's class names in the form that is compared; a number also as written, so that 00 may differ from 0."""
    labels = labels or {}
    classes: dict[str, int | None] = {}
    for name, cls in labels.items():
        if classes.setdefault(_normalize(name), cls) != cls:
            raise AiraError(f"data.labels={dict(labels)}: {name} has two classes; letter case makes no difference.")
    return {_class_name(name): labels[name] for name in labels} | classes


def named_classes(features: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The columns of a data set that hold class numbers, with the data set's names of the classes."""
    return {name: one.names for name, one in (features or {}).items() if isinstance(one, ClassLabel)}


def class_label(value: Any, names: Sequence[str] | None, user: Mapping[str, Any]) -> Any:
    """The data set's name of a class if it has one, and the user does not define the number."""
    if names is None or str(value) in user or type(value) is not int or not 0 <= value < len(names):
        return value
    return names[value]
