"""Control tokens whose names stand in people's texts: there, they are text."""

import copy
import json
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from tokenizers import NormalizedString
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase

from aira.data.schemas import Message

BROKEN = "\ufdd0\ufdd1"
"""Noncharacters, which no text has: they break a control token's name in two until the tokenizer takes them out."""


class _Reader(NamedTuple):
    """What is needed to find control tokens' names in a text, and to read them as text."""

    names: re.Pattern[str]  # as they are written, the longest first
    forms: re.Pattern[str] | None  # as the tokenizer finds them once it has normalized a text; None where it does not
    normalizer: Any  # the tokenizer's
    made: list[PreTrainedTokenizerBase]  # what `as_text` makes of the tokenizer, once it is needed


_readers: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, _Reader]] = WeakKeyDictionary()


def _any(names: Iterable[str]) -> re.Pattern[str]:
    """What finds any of some names, the longest first."""
    longest = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")


def _reader(tokenizer: PreTrainedTokenizerBase) -> _Reader:
    state = (len(tokenizer), tokenizer.all_special_tokens, tokenizer.chat_template)
    kept = _readers.get(tokenizer)
    if kept is None or kept[0] != state:
        added = tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        backend, forms = tokenizer.backend_tokenizer, set()
        if backend.normalizer:
            forms = {backend.normalizer.normalize_str(token.content) for token in added if token.normalized}
            forms &= {backend.normalizer.normalize_str(name) for name in names}
            forms |= names if isinstance(backend.model, Unigram) else set()
        kept = state, _Reader(_any(names), _any(forms) if forms else None, backend.normalizer, [])
        _readers[tokenizer] = kept
    return kept[1]


def _breaks(reader: _Reader, text: str) -> list[int]:
    """Where the names of control tokens in a text are to be broken in two: behind the first sign of each.

    A name may be there only once the tokenizer has normalized the text (full width, capitals, what is not seen).
    """
    places = {match.start() + 1 for match in reader.names.finditer(text)}
    if reader.forms:
        whole = NormalizedString(text)
        reader.normalizer.normalize(whole)
        ends = (match.start() + 1 for match in reader.forms.finditer(whole.normalized))
        places |= {len(before.original) for end in ends if (before := whole[:end])}
    return sorted(places)


def as_text(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message]
) -> tuple[PreTrainedTokenizerBase, list[Message]]:
    """A conversation, and the tokenizer that reads it, by which control tokens in a message are plain text.

    A template renders a conversation to text before it is tokenized, where `<|endofinstruction|>`, typed by a user,
    would end the user's turn. So the name is broken by `BROKEN`, which the returned tokenizer drops after it has looked
    for control tokens: the ids are those of the text as it was written.

    Returns:
        Both as they were given where no message has a control token's name, which is nearly always.
    """
    known = _reader(tokenizer)
    breaks = [_breaks(known, message["content"]) for message in messages]
    if not any(breaks):
        return tokenizer, messages
    if not known.made:
        reader = copy.deepcopy(tokenizer)
        state = json.loads(reader.backend_tokenizer.to_str())
        where = {"pattern": {"String": BROKEN}}
        if state["model"]["type"] == "Unigram":  # which would find a name that is in its vocabulary, too
            split = {"type": "Split", **where, "behavior": "Removed", "invert": False}
            parts = [*filter(None, [state["pre_tokenizer"]]), split]
            state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
        else:
            parts = [{"type": "Replace", **where, "content": ""}, *filter(None, [state["normalizer"]])]
            state["normalizer"] = {"type": "Sequence", "normalizers": parts}
        for token in state["added_tokens"]:  # they are looked for before the normalizer, and not once more behind it
            token["normalized"] &= not known.names.fullmatch(token["content"])
        reader.backend_tokenizer.__setstate__(json.dumps(state).encode())
        known.made.append(reader)
    broken = []
    for message, places in zip(messages, breaks, strict=True):
        parts = [message["content"][start:end] for start, end in pairwise([0, *places, None])]
        broken.append(message | {"content": BROKEN.join(parts)})
    return known.made[0], broken
