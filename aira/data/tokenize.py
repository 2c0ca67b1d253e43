"""Conversations to token ids and a mask of the scored tokens; the same ids that the exported chat template gives."""

import hashlib
import json
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.utils.logging import disable_progress_bar, enable_progress_bar
from filelock import FileLock
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from aira.data.control import BROKEN, as_text
from aira.data.labels import UnknownLabel, class_names, labels_hint, named_classes
from aira.data.rendering import Turn, render
from aira.data.schemas import branch_keys, last_key, mapped_columns, prompt_key, read_example
from aira.data.tables import Parts, row_location
from aira.data.texts import BadRow, reason_in
from aira.data.trees import padded_length, shared_prefix, tree_length
from aira.data.turns import Message
from aira.environment import versions
from aira.errors import AiraError
from aira.files import no_room

FEATURES = Features(
    {
        "branches": List(List(Value("int32"))),
        "scored": List(List(Value("bool"))),
        "row": Value("int64"),  # of the source; a long document has several examples
        "labels": List(Value("float32")),  # of each branch of labelled texts: the probability that it is toxic
        "margin": Value("float32"),
        "prompt": Value("int64"),  # see `aira.data.schemas.prompt_key`
        "last": Value("int64"),  # see `aira.data.schemas.last_key`
        "length": Value("int32"),  # positions of the packed tree, or of its padded branches
        "tokens": Value("int32"),  # those that hold a token and no padding
        "targets": Value("int32"),  # scored tokens
        "cut": Value("bool"),  # whether the text was longer than max_length
        "control": Value("bool"),  # whether its text has names of control tokens
        "notes": List(Value("string")),  # what is unusual about it
        "content": Value("int64"),  # see `aira.data.schemas.branch_keys`
        "first": Value("int64"),
        "problem": Value("string"),  # why the row cannot be used; empty if it can
    }
)


ENCODER = 7
"""The version of how rows become tokens and keys; a change of them increases it, or cached tables would be stale."""


def encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[list[Message]],
    max_length: int,
    loss_on: str,
    tools: Sequence[dict[str, Any]] = (),
    consecutive: str = "keep",
) -> dict[str, Any]:
    """Encode one example for a language model: each answer after the generation prompt that asks for it.

    If the chat template writes turns one after another, a conversation is one branch. If it rewrites what stands before
    an answer, each answer is a branch of its own, with the history that generation would see; the branches of a tree
    share the tokens that they begin with in common. Answers beyond `max_length` are left out.

    Args:
        conversations: one conversation for each response; a single turn is a text without a prompt (`encode_document`).
        max_length: tokens of a branch; a longer branch is truncated at its end.
        loss_on: `completion` scores all turns of the assistant, `response` only its last turn, `all` every token but
            the first.
        tools, consecutive: see `aira.data.rendering.render`.

    Raises:
        BadRow: no scored token is left within `max_length`, two responses are equal after truncation, or an answer
            cannot be encoded as the continuation of its generation prompt.
    """
    branches: list[list[int]] = []
    scored: list[list[bool]] = []
    cut, control = False, False
    notes: dict[str, None] = {}
    for messages in conversations:
        reader, (shown, offered) = as_text(tokenizer, (messages, tools))
        control |= reader is not tokenizer
        turns, more = render(reader, shown, offered, loss_on == "response", consecutive)
        notes |= dict.fromkeys(more)
        if loss_on == "response":
            turns = [turn._replace(train=True) for turn in turns]
        if not any(turn.train for turn in turns):
            raise BadRow("no answer is trained on (their weight is 0)")
        encoded = [
            (ids[:max_length], mask[:max_length], len(ids))
            for ids, mask in _branches(reader, turns, every_token=loss_on == "all")
        ]
        cut |= any(length > max_length for *_, length in encoded)
        fitting = [(ids, mask) for ids, mask, _ in encoded if any(mask)]
        if not fitting:
            prompt = len(_encode_text(reader, turns[0].text[: turns[0].start])[0])
            raise _prompt_too_long(prompt, max_length)
        branches += [ids for ids, _ in fitting]
        scored += [mask for _, mask in fitting]
    if len(conversations) == len(branches) == 2:
        _check_different(branches)
    return _encoded_example(branches, scored, cut, control, padded=False) | {"notes": list(notes)}


def _branches(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], every_token: bool
) -> list[tuple[list[int], list[bool]]]:
    """The tokens of a conversation, and which of them are scored: as one branch, or else as one for each answer.

    Args:
        every_token: score every token but the first, once; not those of an answer that is not trained on.
    """
    whole = turns[-1].text
    if all(whole.startswith(turn.text) for turn in turns):
        with suppress(_Rewritten):
            ids, ranges = _ids(tokenizer, whole, [(turn.start, len(turn.text)) for turn in turns])
            mask = [every_token and i > 0 for i in range(len(ids))]
            for (first, after), turn in zip(ranges, turns, strict=True):
                mask[first:after] = [turn.train] * (after - first)
            return [(ids, mask)]
    branches: list[tuple[list[int], list[bool]]] = []
    for turn in turns:
        if turn.train:
            ids, ((first, after),) = _ids(tokenizer, turn.text, [(turn.start, len(turn.text))])
            shared = max((shared_prefix(ids, earlier) for earlier, _ in branches), default=1)
            branches.append((ids, [first <= i < after or (every_token and i >= shared) for i in range(len(ids))]))
    return branches


def encode_document(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[dict[str, Any]]:
    """Encode a text to be continued, with its end token, in chunks that are examples of their own.

    A chunk begins with the last token of the one before, so that every token of the text but its first is predicted
    once. Nothing attends beyond its chunk.
    """
    reader, shown = as_text(tokenizer, text)
    ids = reader(shown, verbose=False)["input_ids"]
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    control = reader is not tokenizer
    if len(ids) < 2:
        raise BadRow("a text of a single token, of which none can be predicted")
    chunks = [ids[start : start + max_length] for start in range(0, len(ids) - 1, max_length - 1)]
    return [
        _encoded_example([chunk], [[False, *[True] * (len(chunk) - 1)]], False, control, padded=False)
        for chunk in chunks
    ]


class _Rewritten(BadRow):
    """An earlier answer has other tokens in the whole conversation than when it was generated."""


def _ids(
    tokenizer: PreTrainedTokenizerBase, whole: str, ranges: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of a conversation, which begin with those of each range's generation prompt, and the ranges in tokens.

    Args:
        whole, ranges: a text, and where the answers in it are; the last of them ends it.

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
        raise _Rewritten
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
    notes: dict[str, None] = {}
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
            ((whole, answer_start, _),), more = render(reader, shown, last=True)
            notes |= dict.fromkeys(more)
            ids, offsets = _encode_text(reader, whole)
            before = sum(start < answer_start for start, _ in offsets)
            end = tokenizer.eos_token_id
            ending = ids[::-1].index(end) + 1 if end in ids[before:] else 0
            if len(ids) > max_length and before + ending >= max_length:
                raise _prompt_too_long(before, max_length)
            branch = ids[: max_length - ending] + ids[len(ids) - ending :] if len(ids) > max_length else ids
        cut |= len(ids) > max_length
        branches.append(branch)
    scored = [[False] * len(ids) for ids in branches]
    if len(branches) == 2:
        _check_different(branches)
    return _encoded_example(branches, scored, cut, control, padded) | {"notes": list(notes)}


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
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _check_different(branches: list[list[int]]) -> None:
    if branches[0] == branches[1]:
        raise BadRow("its two responses are equal within data.max_length")


def _prompt_too_long(prompt: int, max_length: int) -> BadRow:
    return BadRow(f"the prompt leaves no room for the answer within {max_length} tokens (it has {prompt})")


def _encoded_example(
    branches: list[list[int]], scored: list[list[bool]], cut: bool, control: bool, padded: bool
) -> dict[str, Any]:
    length = (padded_length if padded else tree_length)(branches)
    tokens = sum(map(len, branches)) if padded else length
    sizes = {"length": length, "tokens": tokens, "targets": sum(map(sum, scored))}
    example = {"branches": branches, "scored": scored, **sizes, "cut": cut, "control": control}
    return UNUSABLE | example | {"problem": ""}


UNUSABLE: dict[str, Any] = {
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
    "notes": [],
    "content": 0,
    "first": 0,
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
    consecutive: str = "keep",
) -> Dataset:
    """Tokenize rows once; the result is cached on disk under a key of everything it depends on.

    If several processes need the same table, the first one tokenizes, and the others wait and read the cached table.

    Args:
        key: changes when the content of `rows` does.
        columns: see `aira.data.schemas.mapped_columns`.
        head: `lm` encodes by `encode`, `score` by `encode_scorer`.
        padded: for an encoder.
        labels: see `aira.data.schemas.read_example`.
        consecutive: see `aira.data.rendering.render`.
        parts: the files of `rows`, for messages; see `aira.data.tables.row_location`.

    Returns:
        A memory-mapped table with the columns of `FEATURES` and one row for each row, usable or not; several for a
        document that is longer than `max_length`.

    Raises:
        AiraError: the columns are not those of the kind, or a label belongs to neither class.
    """
    first_row = rows[0] if len(rows) else None
    mapping = mapped_columns(kind, rows.column_names, columns, source, first_row)
    names = named_classes(rows.features)

    def encode_row(row: dict[str, Any], index: int) -> list[dict[str, Any]]:
        try:
            example = read_example(kind, row, mapping, labels, names)
            ((first, *others), *_) = example.conversations
            if head == "score":
                encoded = [encode_scorer(tokenizer, example.conversations, max_length, padded)]
            elif first["role"] == "assistant" and not others:
                encoded = encode_document(tokenizer, first["content"], max_length)
            else:
                encoded = [encode(tokenizer, example.conversations, max_length, loss_on, example.tools, consecutive)]
        except BadRow as problem:
            return [{**UNUSABLE, "problem": str(problem), "row": index}]
        except AiraError as error:
            raise type(error)(f"{source}, {row_location(parts, index)}: {error}") from error
        content, first_key = branch_keys(example)
        keys = {"prompt": prompt_key(example), "last": last_key(example), "content": content, "first": first_key}
        more = keys | {"row": index, "labels": list(example.labels), "margin": example.margin}
        return [one | more | {"notes": [*example.notes, *one["notes"]]} for one in encoded]

    def encode_batch(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        values = {name: batch[name] for name in rows.column_names}
        encoded = [
            one
            for place, index in enumerate(indices)
            for one in encode_row({name: column[place] for name, column in values.items()}, index)
        ]
        return {name: [one[name] for one in encoded] for name in FEATURES}

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
        consecutive,
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
        encode_batch,
        with_indices=True,
        batched=True,
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
                if len(cached) and cached[-1]["row"] == len(rows) - 1:
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
    """The examples that can be trained on, and notices about the others, with their locations in `parts`.

    Returns:
        Indices of the usable examples, and sentences on how many were dropped, truncated, read otherwise than they are
        written, or contradict each other, and why.
    """
    problems, rows = encoded.data.column("problem"), encoded.data.column("row").to_numpy()
    total = int(rows[-1]) + 1 if len(rows) else 0
    bad = pc.not_equal(problems, "")
    indices = np.flatnonzero(bad.to_numpy())
    reasons = [reason_in(problem)[:200] for problem in problems.filter(bad).to_pylist()]
    notices = []
    counts = Counter(reasons).most_common()
    for reason, count in counts[:MOST_REASONS]:
        first = row_location(parts, rows[indices[reasons.index(reason)]])
        notices.append(f"{source}: dropped {count} of {total} rows: {reason} (first: {first}).")
    if others := counts[MOST_REASONS:]:
        count = sum(count for _, count in others)
        notices.append(f"{source}: dropped {count} of {total} rows for {len(others)} other reasons.")
    cut = pc.sum(encoded.data.column("cut")).as_py()
    if cut:
        notices.append(f"{source}: cut {cut} of {total} rows to data.max_length.")
    if len(rows) > total:
        notices.append(f"{source}: {len(rows)} chunks of at most data.max_length tokens, from {total} texts.")
    control = np.flatnonzero(encoded.data.column("control").to_numpy())
    if len(control):
        notices.append(
            f"{source}: {len(control)} of {total} rows have names of the tokenizer's control tokens in their "
            f"text (first: {row_location(parts, rows[control[0]])}); they are read as plain text."
        )
    notes = encoded.data.column("notes")
    noted = np.repeat(np.arange(len(rows)), pc.list_value_length(notes).to_numpy())
    of_note = np.array(pc.list_flatten(notes).to_pylist(), dtype=object)
    for note, count in Counter(of_note.tolist()).most_common():
        first = row_location(parts, rows[noted[of_note == note][0]])
        notices.append(f"{source}: in {count} of {total} rows {note} (first: {first}).")
    good = np.flatnonzero(~bad.to_numpy())
    first_chunks = good[np.unique(rows[good], return_index=True)[1]]
    return good, notices + [f"{source}: {line}" for line in _repetitions(encoded, first_chunks, rows, parts)]


def _repetitions(encoded: Dataset, chosen: np.ndarray, rows: np.ndarray, parts: Parts) -> list[str]:
    """How many rows occur more than once, and how many say the opposite of another."""
    content, first = (encoded.data.column(name).to_numpy()[chosen] for name in ("content", "first"))
    labels = encoded.data.column("labels")
    flat = pc.list_flatten(labels).to_numpy()
    starts = np.cumsum(pc.list_value_length(labels).to_numpy()) - 1
    single = pc.list_value_length(labels).to_numpy()[chosen] == 1
    label = np.where(single, flat[np.minimum(starts[chosen], len(flat) - 1)] if len(flat) else 0, 0)
    meaning = np.stack([content, first, (label * 1e6).astype(np.int64)])
    _, whole, count = np.unique(meaning, axis=1, return_index=True, return_counts=True)
    lines = []
    if (count > 1).any():
        again = row_location(parts, rows[chosen[np.sort(whole[count > 1])[0]]])
        lines.append(f"{(count - 1).sum()} of {len(chosen)} rows are repetitions of another (first: {again}).")
    distinct, variants = np.unique(content[whole], return_counts=True)
    if (variants > 1).any():
        where = row_location(parts, rows[chosen[np.isin(content, distinct[variants > 1]).argmax()]])
        what = "texts have more than one label" if len(flat) else "pairs occur with either response as the better one"
        lines.append(f"{(variants > 1).sum()} {what} (first: {where}).")
    return lines
