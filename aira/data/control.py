"""Control tokens whose names stand in people's texts: there, they are text."""

import copy
import json
import re
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from aira.data.schemas import Message

BROKEN = "\ufdd0\ufdd1"
"""Noncharacters, which no text has: they break a control token's name in two until the tokenizer takes them out."""

_readers: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, re.Pattern[str], list[PreTrainedTokenizerBase]]]
_readers = WeakKeyDictionary()


def _reader(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], list[PreTrainedTokenizerBase]]:
    """What finds control tokens' names, the longest first, and a place for what `as_text` makes of the tokenizer."""
    state = (len(tokenizer), tokenizer.all_special_tokens, tokenizer.chat_template)
    kept = _readers.get(tokenizer)
    if kept is None or kept[0] != state:
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        names = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
        kept = state, re.compile("|".join(map(re.escape, filter(None, names))) or "(?!)"), []
        _readers[tokenizer] = kept
    return kept[1:]


def has_control_tokens(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> bool:
    """Whether the name of a control token stands in a message."""
    pattern, _ = _reader(tokenizer)
    return any(pattern.search(message["content"]) for message in messages)


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
    pattern, readers = _reader(tokenizer)
    if not has_control_tokens(tokenizer, messages):
        return tokenizer, messages
    if not readers:
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
            token["normalized"] &= not pattern.fullmatch(token["content"])
        reader.backend_tokenizer.__setstate__(json.dumps(state).encode())
        readers.append(reader)
    broken = [
        message | {"content": pattern.sub(lambda found: found[0][:1] + BROKEN + found[0][1:], message["content"])}
        for message in messages
    ]
    return readers[0], broken
