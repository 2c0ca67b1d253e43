"""Conversations into token ids and a mask of what is scored; the same ids that the exported chat template gives."""

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
from aira.data.tables import Parts, place
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
        "control": Value("bool"),  # whether the names of control tokens stand in it, as text
        "problem": Value("string"),  # why the row cannot be used; empty if it can
    }
)


ENCODER = 6
"""The version of how rows become tokens and keys; what changes them counts it up, or kept tables would be stale."""

LONGEST = 10_000
"""Characters that a chat template may write for each character of a conversation."""


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and the character ranges of the assistant's turns, each with the end token.

    A range begins where a generation would: after the generation prompt.

    Raises:
        BadRow: the template refuses the conversation, or writes it in a way that has no such ranges.
    """
    try:
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:  # a template is a program of others
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
    """Encode the branches of one example for a language model, each whole: the generation prompt, and what follows it.

    Args:
        conversations: one conversation a branch.
        max_length: tokens of a branch; what is longer is cut at its end.
        loss_on: `completion` scores what the assistant says, `response` its last turn alone, `all` every token but
            the first.

    Raises:
        BadRow: no scored token is left within `max_length`, two branches are cut to the same, or a scored turn cannot
            be encoded as the continuation of its generation prompt.
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
            raise _no_room(next((i for i, flag in enumerate(mask) if flag), len(ids)), max_length)
    return _example(branches, scored, cut, control, padded=False)


def _ids(
    tokenizer: PreTrainedTokenizerBase, whole: str, ranges: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a conversation, which begin with those of each range's generation prompt, and the ranges in tokens.

    Args:
        whole, ranges: of `render`; the last range is the conversation's last turn.

    Raises:
        BadRow: there are no such tokens.
    """
    ids, offsets = _encoded(tokenizer, whole)
    apart = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if not added.normalized}
    walls = [  # what stands on one side of a token that was found in the text does not change the other
        i for i, token in enumerate(ids) if token in apart and apart[token] in whole[slice(*offsets[i])]
    ]
    prompts = []
    for first, _ in ranges:
        wall = next((i for i in reversed(walls) if offsets[i][1] <= first), None)
        at = 0 if wall is None else offsets[wall][0]
        prompts.append(ids[: wall or 0] + _encoded(tokenizer, whole[at:first])[0])
    prompt, answered = prompts[-1], ranges[-1][0]
    if ids[: len(prompt)] != prompt:
        joint, ids = ids, prompt + _continuation(tokenizer, whole[answered:])
        if _text(tokenizer, ids) not in (
            _text(tokenizer, joint),
            unicodedata.normalize("NFKC", whole.replace(BROKEN, "")),
        ):
            raise BadRow("the tokenizer cannot write the answer as a continuation of its generation prompt")
        offsets = _encoded(tokenizer, whole[:answered])[1]
    if any(ids[: len(earlier)] != earlier for earlier in prompts):
        raise BadRow(
            "an earlier answer has other tokens where a later one is given than where it is given itself, by this chat "
            "template; model.template=aira has no such rows"
        )
    starts = [start for start, _ in offsets]
    ends = [*(bisect_left(starts, last) for _, last in ranges[:-1]), len(ids)]
    return ids, list(zip(map(len, prompts), ends, strict=True))


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a text, and the characters that each stands for."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return encoded["input_ids"], encoded["offset_mapping"]


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return unicodedata.normalize("NFKC", tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that stands behind others: without the space that some tokenizers put before a text."""
    ids, offsets = _encoded(tokenizer, text)
    added = tokenizer.added_tokens_decoder
    special = next((i for i, token in enumerate(ids) if token in added), len(ids))
    first = offsets[special][0] if special < len(ids) else len(text)  # from here on it is as ever
    backend = tokenizer.backend_tokenizer
    bare = Tokenizer(backend.model)
    bare.normalizer, bare.pre_tokenizer = _bare(backend.normalizer), _bare(backend.pre_tokenizer)
    return [*bare.encode(text[:first]).ids, *ids[special:]]


def _bare(part: Any) -> Any:
    """A normalizer or pre-tokenizer that puts nothing before a text; the tokenizer's own is left as it is."""

    def edited(state: Any) -> Any:
        if isinstance(state, list):
            return [edited(one) for one in state]
        if not isinstance(state, dict):
            return state
        if state.get("type") == "Prepend":
            return {"type": "Sequence", "normalizers": []}
        without: dict[Any, dict[str, Any]] = {
            "Metaspace": {"prepend_scheme": "never"},
            "ByteLevel": {"add_prefix_space": False},
        }
        return {key: edited(value) for key, value in state.items()} | without.get(state.get("type"), {})

    if part is not None:
        part.__setstate__(json.dumps(edited(json.loads(part.__getstate__()))).encode())
    return part


def encode_scorer(
    tokenizer: PreTrainedTokenizerBase, conversations: list[list[Message]], max_length: int, padded: bool
) -> dict[str, Any]:
    """Encode the branches of one example for a scorer, each with its end token, which a cut spares.

    A text that answers nothing is encoded as `tokenizer(text)` does. A response is encoded with its prompt: by the chat
    template for a causal model, as a pair of segments (`tokenizer(prompt, response)`) for an encoder, of which the
    longer is cut first.

    Args:
        padded: for an encoder.

    Raises:
        BadRow: a prompt leaves no room for its response, or two branches are cut to the same.
    """
    branches, cut, control = [], False, False
    for messages in conversations:
        reader, shown = as_text(tokenizer, messages)
        control |= reader is not tokenizer
        *prompt, response = shown
        if padded or not prompt:
            texts = [segment(prompt), response["content"]] if prompt else [response["content"]]
            ids = reader(*texts, verbose=False)["input_ids"]
            kept = reader(*texts, truncation=True, max_length=max_length)["input_ids"]
            reader.backend_tokenizer.no_truncation()  # or the export would have it, too
        else:
            whole, ranges = render(reader, shown)
            ids, offsets = _encoded(reader, whole)
            before = sum(start < ranges[-1][0] for start, _ in offsets)
            end = tokenizer.eos_token_id
            ending = ids[::-1].index(end) + 1 if end in ids[before:] else 0
            if len(ids) > max_length and before + ending >= max_length:
                raise _no_room(before, max_length)
            kept = ids[: max_length - ending] + ids[len(ids) - ending :] if len(ids) > max_length else ids
        cut |= len(ids) > max_length
        branches.append(kept)
    scored = [[False] * len(ids) for ids in branches]
    return _example(branches, scored, cut, control, padded)


SETTINGS = (
    "model_input_names",
    "truncation_side",
    "padding_side",
    "split_special_tokens",
    "clean_up_tokenization_spaces",
    "model_max_length",
)
"""What a tokenizer reads and writes by, beside its file, its special tokens and its chat template."""


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that a tokenizer makes of a conversation, and of ids; not of where it was read from."""
    file = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}  # of the last call
    settings = {name: getattr(tokenizer, name) for name in SETTINGS}
    special = [tokenizer.special_tokens_map, tokenizer.all_special_tokens]
    identity = [type(tokenizer).__name__, file, settings, special, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends the first of an encoder's two segments; None where it has no segments."""
    return tokenizer.sep_token_id if "token_type_ids" in tokenizer.model_input_names else None


def segment(messages: list[Message]) -> str:
    """A prompt as an encoder's first segment: what is asked, or the turns of a dialogue with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _no_room(prompt: int, max_length: int) -> BadRow:
    return BadRow(f"the prompt leaves no room for the answer within {max_length} tokens (it has {prompt})")


def _example(
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
    """Tokenize rows once; the result is kept on disk under a key of everything it depends on.

    Where several processes ask for the same, the first tokenizes, and the others wait and read what it has kept.

    Args:
        key: changes when the content of `rows` does.
        columns: see `aira.data.schemas.mapped_columns`.
        head: `lm` encodes by `encode`, `score` by `encode_scorer`.
        padded: for an encoder.
        labels: see `aira.data.schemas.read_example`.
        parts: the files of `rows`, for messages; see `aira.data.tables.place`.

    Returns:
        A memory-mapped table with the columns of `FEATURES`, a row for each row, usable or not.

    Raises:
        AiraError: the columns are not those of the kind, or a label is none of two classes.
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
            raise type(error)(f"{source}, {place(parts, index)}: {error}") from error
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
    folder = Path(cache_dir).expanduser() / "tokenized"
    folder.mkdir(parents=True, exist_ok=True)
    (disable_progress_bar if len(rows) < 10_000 else enable_progress_bar)()
    mapped = partial(
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
        with FileLock(
            folder / f"{fingerprint}.lock"
        ):  # of several processes one makes the table; a kill frees the lock
            try:
                kept: Dataset = mapped(load_from_cache_file=True)
                if len(kept) == len(rows):
                    return kept
            except (pa.ArrowInvalid, OSError) as error:
                if no_room(error):
                    raise
            return mapped(load_from_cache_file=False)  # the kept table is damaged, or ends early
    except UnknownLabel as error:
        raise AiraError(f"{error} {labels_hint(rows, mapping['label'], labels, names)}") from error
    except OSError as error:
        if not no_room(error):
            raise
        raise AiraError(
            f"No space left for tokenized data in {folder}. cache_dir=<folder> puts it elsewhere."
        ) from error


MOST_REASONS = 10
"""Reasons for dropping rows that are identity one by one."""


def usable(encoded: Dataset, source: str, parts: Parts = ()) -> tuple[np.ndarray, list[str]]:
    """Which rows can be trained on, and what to tell about the others, by their places in `parts`.

    Returns:
        Indices of the usable rows, and sentences that say how many were dropped, cut or have control tokens, and why.
    """
    problems = encoded.data.column("problem")
    bad = pc.not_equal(problems, "")
    where = np.flatnonzero(bad.to_numpy())
    reasons = [reason_in(problem)[:200] for problem in problems.filter(bad).to_pylist()]
    notices = []
    counts = Counter(reasons).most_common()
    for reason, count in counts[:MOST_REASONS]:
        first = where[reasons.index(reason)]
        notices.append(f"{source}: dropped {count} of {len(problems)} rows: {reason} (first: {place(parts, first)}).")
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
            f"text (first: {place(parts, control[0])}); they are plain text there."
        )
    return np.flatnonzero(~bad.to_numpy()), notices
