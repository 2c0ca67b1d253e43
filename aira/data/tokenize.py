"""Conversations into token ids and a mask of what is scored; the same ids that the exported chat template gives."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Sequence, Value
from datasets.utils.logging import disable_progress_bar, enable_progress_bar
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from aira import __version__
from aira.data.schemas import SCHEMAS, BadRow, Message, mapped_columns, pick
from aira.data.trees import tree_length

FEATURES = Features(
    {
        "branches": Sequence(Sequence(Value("int32"))),
        "scored": Sequence(Sequence(Value("bool"))),
        "length": Value("int32"),  # tokens of the packed tree
        "targets": Value("int32"),  # scored tokens
        "cut": Value("bool"),  # whether the text was longer than max_length
        "problem": Value("string"),  # why the row cannot be used; empty if it can
    }
)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and the character ranges of the assistant's turns, each with the end token.

    A range begins where a generation would: after the generation prompt.

    Raises:
        BadRow: the template refuses the conversation, or writes it in a way that has no such ranges.
    """
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as error:
        raise BadRow(f"the chat template refuses it: {error}") from error
    ranges = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
            if not whole.startswith(after) or not after.startswith(before):
                raise BadRow("the chat template does not write turns one after another")
            ranges.append((len(before), len(after)))
    return whole, ranges


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: list[list[Message]], max_length: int, loss_on: str
) -> dict[str, Any]:
    """Encode the branches of one example, each as one text, prefix and all.

    Args:
        conversations: one conversation a branch.
        max_length: tokens of a branch; what is longer is cut at its end.
        loss_on: `completion` scores what the assistant says, `all` every token but the first.

    Raises:
        BadRow: no scored token is left within `max_length`.
    """
    branches, scored, cut = [], [], False
    for messages in conversations:
        whole, ranges = render(tokenizer, messages)
        encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = encoded["input_ids"]
        if loss_on == "all":
            mask = [False] + [True] * (len(ids) - 1)
        else:
            starts = np.array([start for start, _ in encoded["offset_mapping"]])
            inside = np.zeros(len(ids), dtype=bool)
            for first, last in ranges:
                inside |= (starts >= first) & (starts < last)
            mask = inside.tolist()
        cut |= len(ids) > max_length
        branches.append(ids[:max_length])
        scored.append(mask[:max_length])
        if not any(scored[-1]):
            prompt = next((i for i, flag in enumerate(mask) if flag), len(ids))
            raise BadRow(
                f"the prompt leaves no room for the answer within data.max_length={max_length} ({prompt} tokens)"
            )
    return {
        "branches": branches,
        "scored": scored,
        "length": tree_length(branches),
        "targets": sum(map(sum, scored)),
        "cut": cut,
        "problem": "",
    }


def tokenize(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str,
    source: str,
    key: str,
    columns: dict[str, Any] | None,
    max_length: int,
    loss_on: str,
    cache_dir: str,
    num_proc: int = 1,
) -> Dataset:
    """Tokenize rows once; the result is kept on disk under a key of everything it depends on.

    Args:
        key: changes when the content of `rows` does.
        columns: see `aira.data.schemas.mapped_columns`.

    Returns:
        A memory-mapped table with the columns of `FEATURES`, a row for each row, usable or not.

    Raises:
        AiraError: the columns are not those of the kind.
    """
    mapping = mapped_columns(kind, rows.column_names, columns, source)
    to_conversations = SCHEMAS[kind][1]

    def encode_row(row: dict[str, Any]) -> dict[str, Any]:
        try:
            picked = {name: pick(row, column) for name, column in mapping.items()}
            return encode(tokenizer, to_conversations(picked), max_length, loss_on)
        except BadRow as problem:
            return {"branches": [], "scored": [], "length": 0, "targets": 0, "cut": False, "problem": str(problem)}

    parts = [
        __version__,
        key,
        kind,
        mapping,
        max_length,
        loss_on,
        tokenizer.chat_template,
        tokenizer.backend_tokenizer.to_str(),
    ]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(cache_dir).expanduser() / "tokenized"
    folder.mkdir(parents=True, exist_ok=True)
    (disable_progress_bar if len(rows) < 10_000 else enable_progress_bar)()
    return rows.map(
        encode_row,
        remove_columns=rows.column_names,
        features=FEATURES,
        num_proc=num_proc if num_proc > 1 else None,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        load_from_cache_file=True,
        desc=f"Tokenizing {source}",
    )


def usable(encoded: Dataset, source: str) -> tuple[np.ndarray, list[str]]:
    """Which rows can be trained on, and what to tell about the others.

    Returns:
        Indices of the usable rows, and sentences that say how many were dropped or cut, and why.
    """
    problems = np.array(encoded["problem"], dtype=object)
    said = []
    for reason, count in Counter(problem.split(" (")[0] for problem in problems if problem).most_common():
        first = next(i for i, problem in enumerate(problems) if problem.split(" (")[0] == reason)
        said.append(f"{source}: dropped {count} of {len(problems)} rows: {reason} (first: row {first + 1}).")
    cut = int(np.sum(encoded["cut"]))
    if cut:
        said.append(f"{source}: cut {cut} of {len(problems)} rows to data.max_length.")
    return np.flatnonzero(problems == ""), said
