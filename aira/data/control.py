"""Control tokens whose names occur in users' texts: they are read as plain text."""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from tokenizers import NormalizedString
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

BROKEN = "\ufdd0\ufdd1"
"""Noncharacters, which no text has: they split a control token's name in two until the tokenizer removes them."""


class _ControlNames(NamedTuple):
    """What is needed to find control tokens' names in a text, and to read them as text."""

    names: re.Pattern[str]  # as they are written, the longest first
    forms: re.Pattern[str] | None  # as they are matched in normalized text; None if the tokenizer does not normalize
    normalizer: Any  # the tokenizer's
    text_tokenizer: list[PreTrainedTokenizerBase]  # the tokenizer that `as_text` returns, once it is needed


_control_names_of: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, _ControlNames]] = WeakKeyDictionary()


def _any(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches any of the names, the longest first."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _control_names(tokenizer: PreTrainedTokenizerBase) -> _ControlNames:
    state = (len(tokenizer), tokenizer.all_special_tokens, tokenizer.chat_template)
    cached = _control_names_of.get(tokenizer)
    if cached is None or cached[0] != state:
        added = tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        backend, forms = tokenizer.backend_tokenizer, set()
        if backend.normalizer:
            forms = {backend.normalizer.normalize_str(token.content) for token in added if token.normalized}
            forms &= {backend.normalizer.normalize_str(name) for name in names}
            forms |= names if isinstance(backend.model, Unigram) else set()
        cached = state, _ControlNames(_any(names), _any(forms) if forms else None, backend.normalizer, [])
        _control_names_of[tokenizer] = cached
    return cached[1]


def _split_points(control: _ControlNames, text: str) -> list[int]:
    """Where the names of control tokens in a text are split in two: after the first character of each.

    A name may occur only once the tokenizer has normalized the text (full width, capitals, invisible characters).
    """
    points = {match.start() + 1 for match in control.names.finditer(text)}
    if control.forms:
        normalized = NormalizedString(text)
        control.normalizer.normalize(normalized)
        ends = (match.start() + 1 for match in control.forms.finditer(normalized.normalized))
        points |= {len(before.original) for end in ends if (before := normalized[:end])}
    return sorted(points)


def as_text(tokenizer: PreTrainedTokenizerBase, value: T) -> tuple[PreTrainedTokenizerBase, T]:
    """Texts, and a tokenizer that reads control tokens in them as plain text.

    A template renders a conversation to text before it is tokenized, where `<|endofinstruction|>`, typed by a user,
    would end the user's turn. So the name is split by `BROKEN`, which the returned tokenizer drops after it has looked
    for control tokens: the ids are those of the text as it was written.

    Args:
        value: a text, or lists, tuples and mappings of texts, such as messages.

    Returns:
        Both arguments unchanged if no text has a control token's name, which is nearly always.
    """
    control = _control_names(tokenizer)
    if not any(_split_points(control, text) for text in _texts(value)):
        return tokenizer, value
    if not control.text_tokenizer:
        text_tokenizer = copy.deepcopy(tokenizer)
        state = json.loads(text_tokenizer.backend_tokenizer.to_str())
        pattern = {"pattern": {"String": BROKEN}}
        if state["model"]["type"] == "Unigram":  # which would also find a name that is in its vocabulary
            split = {"type": "Split", **pattern, "behavior": "Removed", "invert": False}
            steps = [*filter(None, [state["pre_tokenizer"]]), split]
            state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        else:
            steps = [{"type": "Replace", **pattern, "content": ""}, *filter(None, [state["normalizer"]])]
            state["normalizer"] = {"type": "Sequence", "normalizers": steps}
        for token in state["added_tokens"]:  # they are looked for before the normalizer, and not again after it
            token["normalized"] &= not control.names.fullmatch(token["content"])
        text_tokenizer.backend_tokenizer.__setstate__(json.dumps(state).encode())
        control.text_tokenizer.append(text_tokenizer)
    return control.text_tokenizer[0], _split(control, value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part) if key != "role" else ()
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _split(control: _ControlNames, value: Any) -> Any:
    """The value with `BROKEN` in each control token's name in its texts."""
    if isinstance(value, str):
        return BROKEN.join(value[start:end] for start, end in pairwise([0, *_split_points(control, value), None]))
    if isinstance(value, Mapping):
        return {key: part if key == "role" else _split(control, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_split(control, part) for part in value)
    return value
