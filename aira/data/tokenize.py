"""Conversations to token ids and a mask of the scored tokens; the same ids that the exported chat template gives."""

import hashlib
import json
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Sequence, Value
from datasets.utils.logging import disable_progress_bar, enable_progress_bar
from filelock import FileLock
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from aira.data.control import BROKEN, as_text
from aira.data.schemas import (
    BadRow,
    Message,
    UnknownLabel,
    class_names,
    labels_hint,
    last_key,
    mapped_columns,
    named_classes,
    prompt_key,
    read_example,
    reason_in,
)
from aira.data.tables import Parts, row_location
from aira.data.trees import padded_length, tree_length
from aira.environment import versions
from aira.errors import AiraError, reason_of
from aira.files import no_room

FEATURES = Features(
    {
        "branches": Sequence(Sequence(Value("int32"))),
        "scored": Sequence(Sequence(Value("bool"))),
        "labels": Sequence(Value("int8")),  # the class of each branch of labelled texts
        "margin": Value("float32"),
        "prompt": Value("int64"),  # see `aira.data.schemas.prompt_key`
        "last": Value("int64"),  # see `aira.data.schemas.last_key`
        "length": Value("int32"),  # positions of the packed tree, or of its padded branches
        "tokens": Value("int32"),  # those that hold a token and no padding
        "targets": Value("int32"),  # scored tokens
        "cut": Value("bool"),  # whether the text was longer than max_length
        "control": Value("bool"),  # whether its text has names of control tokens
        "problem": Value("string"),  # why the row cannot be used; empty if it can
    }
)


ENCODER = 6
"""The version of how rows become tokens and keys; a change of them increases it, or cached tables would be stale."""

LONGEST = 10_000
"""Characters that a chat template may write for each character of a conversation."""


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and the character ranges of the assistant's turns, each with its end token.

    A range begins where generation would begin: after the generation prompt.

    Raises:
        BadRow: the template refuses the conversation, or renders it in a way that has no such ranges.
    """
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # a template is third-party code
        raise BadRow(f"the chat template refuses it: {reason_of(error)}") from error
    if len(whole) > LONGEST * (1 + sum(len(message["content"]) for message in messages)):
        raise BadRow(f"the chat template makes {len(whole)} characters of it")
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
    """Encode the branches of one example for a language model, each completely: the generation prompt and the answer.

    Args:
        conversations: one conversation per branch.
        max_length: tokens of a branch; a longer branch is truncated at its end.
        loss_on: `completion` scores all turns of the assistant, `response` only its last turn, `all` every token but
            the first.

    Raises:
        BadRow: no scored token is left within `max_length`, two branches are equal after truncation, or a scored turn
            cannot be encoded as the continuation of its generation prompt.
    """
    branches, scored, cut, control = [], [], False, False
    for messages in conversations:
        reader, shown = as_text(tokenizer, messages)
        control |= reader is not tokenizer
        whole, ranges = render(reader, shown)
        ids, turns = _ids(reader, whole, ranges[-1:] if loss_on == "response" else ranges)
        mask = [loss_on == "all" and i > 0 for i in range(len(ids))]
        for first, last in turns:
            mask[first:last] = [True] * (last - first)
        cut |= len(ids) > max_length
        branches.append(ids[:max_length])
        scored.append(mask[:max_length])
        if not any(scored[-1]):
            raise _prompt_too_long(next((i for i, flag in enumerate(mask) if flag), len(ids)), max_length)
    return _encoded_example(branches, scored, cut, control, padded=False)


def _ids(
    tokenizer: PreTrainedTokenizerBase, whole: str, ranges: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a conversation, which begin with those of each range's generation prompt, and the ranges in tokens.

    Args:
        whole, ranges: of `render`; the last range is the conversation's last turn.

    Raises:
        BadRow: no such tokens exist.
    """
    ids, offsets = _encode_text(tokenizer, whole)
    added_tokens = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if not token.normalized}
    boundaries = [  # the text before such a token does not change the tokens after it
        i for i, token in enumerate(ids) if token in added_tokens and added_tokens[token] in whole[slice(*offsets[i])]
    ]
    prompts = []
    for first, _ in ranges:
        boundary = next((i for i in reversed(boundaries) if offsets[i][1] <= first), None)
        start = 0 if boundary is None else offsets[boundary][0]
        prompts.append(ids[: boundary or 0] + _encode_text(tokenizer, whole[start:first])[0])
    prompt, answer_start = prompts[-1], ranges[-1][0]
    if ids[: len(prompt)] != prompt:
        joint, ids = ids, prompt + _continuation(tokenizer, whole[answer_start:])
        if _decode(tokenizer, ids) not in (
            _decode(tokenizer, joint),
            unicodedata.normalize("NFKC", whole.replace(BROKEN, "")),
        ):
            raise BadRow("the tokenizer cannot write the answer as a continuation of its generation prompt")
        offsets = _encode_text(tokenizer, whole[:answer_start])[1]
    if any(ids[: len(earlier)] != earlier for earlier in prompts):
        raise BadRow(
            "an earlier answer has other tokens in a longer conversation than when it was generated, by this chat "
            "template; model.template=aira has no such rows"
        )
    starts = [start for start, _ in offsets]
    ends = [*(bisect_left(starts, last) for _, last in ranges[:-1]), len(ids)]
    return ids, list(zip(map(len, prompts), ends, strict=True))


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text, and the character range of each."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return unicodedata.normalize("NFKC", tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that follows another: without the space that some tokenizers put before a text."""
    ids, offsets = _encode_text(tokenizer, text)
    added = tokenizer.added_tokens_decoder
    special = next((i for i, token in enumerate(ids) if token in added), len(ids))
    first = offsets[special][0] if special < len(ids) else len(text)  # from here on, encoding is as usual
    backend = tokenizer.backend_tokenizer
    bare = Tokenizer(backend.model)
    bare.normalizer, bare.pre_tokenizer = _without_prefix(backend.normalizer), _without_prefix(backend.pre_tokenizer)
    return [*bare.encode(text[:first]).ids, *ids[special:]]


def _without_prefix(part: Any) -> Any:
    """A normalizer or pre-tokenizer that puts nothing before a text; the tokenizer's own is unchanged."""

    def edit(state: Any) -> Any:
        if isinstance(state, list):
            return [edit(one) for one in state]
        if not isinstance(state, dict):
            return state
        if state.get("type") == "Prepend":
            return {"type": "Sequence", "normalizers": []}
        options: dict[Any, dict[str, Any]] = {
            "Metaspace": {"prepend_scheme": "never"},
            "ByteLevel": {"add_prefix_space": False},
        }
        return {key: edit(value) for key, value in state.items()} | options.get(state.get("type"), {})

    if part is not None:
        part.__setstate__(json.dumps(edit(json.loads(part.__getstate__()))).encode())
    return part


def encode_scorer(
    tokenizer: PreTrainedTokenizerBase, conversations: list[list[Message]], max_length: int, padded: bool
) -> dict[str, Any]:
    """Encode the branches of one example for a scorer, each with its end token, which truncation spares.

    A text without a prompt is encoded as by `tokenizer(text)`. A response is encoded with its prompt: by the chat
    template for a causal model, as a pair of segments (`tokenizer(prompt, response)`) for an encoder, of which the
    longer is truncated first.

    Args:
        padded: for an encoder.

    Raises:
        BadRow: a prompt leaves no room for its response, or two branches are equal after truncation.
    """
    branches, cut, control = [], False, False
    for messages in conversations:
        reader, shown = as_text(tokenizer, messages)
        control |= reader is not tokenizer
        *prompt, response = shown
        if padded or not prompt:
            texts = [segment(prompt), response["content"]] if prompt else [response["content"]]
            ids = reader(*texts, verbose=False)["input_ids"]
            branch = reader(*texts, truncation=True, max_length=max_length)["input_ids"]
            reader.backend_tokenizer.no_truncation()  # or the export would have it, too
        else:
            whole, ranges = render(reader, shown)
            ids, offsets = _encode_text(reader, whole)
            before = sum(start < ranges[-1][0] for start, _ in offsets)
            end = tokenizer.eos_token_id
            ending = ids[::-1].index(end) + 1 if end in ids[before:] else 0
            if len(ids) > max_length and before + ending >= max_length:
                raise _prompt_too_long(before, max_length)
            branch = ids[: max_length - ending] + ids[len(ids) - ending :] if len(ids) > max_length else ids
        cut |= len(ids) > max_length
        branches.append(branch)
    scored = [[False] * len(ids) for ids in branches]
    return _encoded_example(branches, scored, cut, control, padded)


SETTINGS = (
    "model_input_names",
    "truncation_side",
    "padding_side",
    "split_special_tokens",
    "clean_up_tokenization_spaces",
    "model_max_length",
)
"""Settings of a tokenizer besides its file, its special tokens and its chat template."""


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that determines how a tokenizer encodes and decodes; not of where it was read from."""
    file = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}  # of the last call
    settings = {name: getattr(tokenizer, name) for name in SETTINGS}
    special = [tokenizer.special_tokens_map, tokenizer.all_special_tokens]
    identity = [type(tokenizer).__name__, file, settings, special, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends the first of an encoder's two segments; None if it has no segments."""
    return tokenizer.sep_token_id if "token_type_ids" in tokenizer.model_input_names else None


def segment(messages: list[Message]) -> str:
    """A prompt as an encoder's first segment: a single message, or the turns of a dialogue with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _prompt_too_long(prompt: int, max_length: int) -> BadRow:
    return BadRow(f"the prompt leaves no room for the answer within {max_length} tokens (it has {prompt})")


def _encoded_example(
    branches: list[list[int]], scored: list[list[bool]], cut: bool, control: bool, padded: bool
) -> dict[str, Any]:
    if len(branches) == 2 and branches[0] == branches[1]:
        raise BadRow("its two responses are equal within data.max_length")
    length = (padded_length if padded else tree_length)(branches)
    tokens = sum(map(len, branches)) if padded else length
    sizes = {"length": length, "tokens": tokens, "targets": sum(map(sum, scored))}
    return {"branches": branches, "scored": scored, **sizes, "cut": cut, "control": control, "problem": ""}


UNUSABLE = {
    "branches": [],
    "scored": [],
    "labels": [],
    "margin": 0.0,
    "prompt": 0,
    "last": 0,
    "length": 0,
    "tokens": 0,
    "targets": 0,
    "cut": False,
    "control": False,
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
    head: str = "lm",
    padded: bool = False,
    labels: Mapping[str, int | None] | None = None,
    parts: Parts = (),
    num_proc: int = 1,
) -> Dataset:
    """Tokenize rows once; the result is cached on disk under a key of everything it depends on.

    If several processes need the same table, the first one tokenizes, and the others wait and read the cached table.

    Args:
        key: changes when the content of `rows` does.
        columns: see `aira.data.schemas.mapped_columns`.
        head: `lm` encodes by `encode`, `score` by `encode_scorer`.
        padded: for an encoder.
        labels: see `aira.data.schemas.read_example`.
        parts: the files of `rows`, for messages; see `aira.data.tables.row_location`.

    Returns:
        A memory-mapped table with the columns of `FEATURES` and one row for each row, usable or not.

    Raises:
        AiraError: the columns are not those of the kind, or a label belongs to neither class.
    """
    mapping, names = mapped_columns(kind, rows.column_names, columns, source), named_classes(rows.features)

    def encode_row(row: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            example = read_example(kind, row, mapping, labels, names)
            if head == "score":
                encoded = encode_scorer(tokenizer, example.conversations, max_length, padded)
            else:
                encoded = encode(tokenizer, example.conversations, max_length, loss_on)
        except BadRow as problem:
            return {**UNUSABLE, "problem": str(problem)}
        except AiraError as error:
            raise type(error)(f"{source}, {row_location(parts, index)}: {error}") from error
        keys = {"prompt": prompt_key(example), "last": last_key(example)}
        return encoded | keys | {"labels": list(example.labels), "margin": example.margin}

    identity = [
        ENCODER,
        versions("tokenizers", "transformers", "datasets", "jinja2"),
        sorted(FEATURES),
        key,
        kind,
        mapping,
        max_length,
        loss_on,
        head,
        padded,
        class_names(labels),
        names,
        tokenizer_hash(tokenizer),
    ]
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    folder = Path(cache_dir).expanduser() / "tokenize_rows"
    folder.mkdir(parents=True, exist_ok=True)
    (disable_progress_bar if len(rows) < 10_000 else enable_progress_bar)()
    tokenize_rows = partial(
        rows.map,
        encode_row,
        with_indices=True,
        remove_columns=rows.column_names,
        features=FEATURES,
        num_proc=num_proc if num_proc > 1 else None,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        desc=f"Tokenizing {source}",
    )
    try:
        # one process of several writes the table; killing it frees the lock
        with FileLock(folder / f"{fingerprint}.lock"):
            try:
                cached: Dataset = tokenize_rows(load_from_cache_file=True)
                if len(cached) == len(rows):
                    return cached
            except (pa.ArrowInvalid, OSError) as error:
                if no_room(error):
                    raise
            return tokenize_rows(load_from_cache_file=False)  # the cached table is damaged, or ends early
    except UnknownLabel as error:
        raise AiraError(f"{error} {labels_hint(rows, mapping['label'], labels, names)}") from error
    except OSError as error:
        if not no_room(error):
            raise
        raise AiraError(
            f"No space left for tokenize_rows data in {folder}. cache_dir=<folder> puts it elsewhere."
        ) from error


MOST_REASONS = 10
"""Reasons for dropping rows that are listed one by one."""


def usable(encoded: Dataset, source: str, parts: Parts = ()) -> tuple[np.ndarray, list[str]]:
    """The rows that can be trained on, and notices about the others, with their locations in `parts`.

    Returns:
        Indices of the usable rows, and sentences on how many were dropped, truncated or have control tokens, and why.
    """
    problems = encoded.data.column("problem")
    bad = pc.not_equal(problems, "")
    indices = np.flatnonzero(bad.to_numpy())
    reasons = [reason_in(problem)[:200] for problem in problems.filter(bad).to_pylist()]
    notices = []
    counts = Counter(reasons).most_common()
    for reason, count in counts[:MOST_REASONS]:
        first = indices[reasons.index(reason)]
        notices.append(
            f"{source}: dropped {count} of {len(problems)} rows: {reason} (first: {row_location(parts, first)})."
        )
    if others := counts[MOST_REASONS:]:
        count = sum(count for _, count in others)
        notices.append(f"{source}: dropped {count} of {len(problems)} rows for {len(others)} other reasons.")
    cut = pc.sum(encoded.data.column("cut")).as_py()
    if cut:
        notices.append(f"{source}: cut {cut} of {len(problems)} rows to data.max_length.")
    control = np.flatnonzero(encoded.data.column("control").to_numpy())
    if len(control):
        notices.append(
            f"{source}: {len(control)} of {len(problems)} rows have names of the tokenizer's control tokens in their "
            f"text (first: {row_location(parts, control[0])}); they are read as plain text."
        )
    return np.flatnonzero(~bad.to_numpy()), notices
