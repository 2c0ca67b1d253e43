"""A look at the data of a run before it: how the first examples read, lengths, and the cost of an epoch."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from aira.config.schema import Train
from aira.data.module import DataModule, Split
from aira.data.plan import Step
from aira.data.trees import shared_prefix
from aira.methods.memory import run_memory
from aira.training import prepare, resolve_precision

EXAMPLES = 3
"""Examples that are shown."""

BINS, WIDEST = 8, 40
"""Of the histogram: its lines, and characters of the longest bar."""

MEMORY = {
    "weights": "weights",
    "casts": "weights in half precision",
    "gradients": "gradients",
    "state": "optimizer state",
    "activations": "kept of the longest row",
}

COLOR = "\033[32m", "\033[0m"
MARKS = "«", "»"


def preview(settings: Train, color: bool = False) -> Iterator[str]:
    """What a run with these settings would read.

    Args:
        color: mark scored text by a terminal's colour.

    Yields:
        Lines of text.

    Raises:
        AiraError: as of `aira.training.prepare`.
    """
    data, tokenizer, _, _, config = prepare(settings)
    yield from data.layouts
    yield from data.notices
    if not isinstance(data, DataModule):
        yield "The batches of this method are generated while it trains, so there are no examples to show."
        return
    train = data.train
    for number, index in enumerate(train.index[:EXAMPLES], start=1):
        example = train.encoded[int(index)]
        row = train.rows_of([index])[0] + 1
        scored = f", {example['targets']} of them scored" if settings.method.head == "lm" else ""
        labels = f", toxic: {', '.join(f'{label:g}' for label in example['labels'])}" if example["labels"] else ""
        yield f"\nExample {number} (row {row}): {example['tokens']} tokens{scored}{labels}"
        yield from _branches(tokenizer, example["branches"], example["scored"], COLOR if color else MARKS)
    yield from _lengths(train)
    steps = list(data.plan(train))
    passes = _passes(data, steps)
    yield from _epoch(data, settings, steps, passes)
    yield from _memory(settings, config, passes)


def _branches(
    tokenizer: PreTrainedTokenizerBase,
    branches: Sequence[list[int]],
    scored: Sequence[list[bool]],
    marks: tuple[str, str],
) -> Iterator[str]:
    for i, (ids, mask) in enumerate(zip(branches, scored, strict=True)):
        shared = max((shared_prefix(ids, earlier) for earlier in branches[:i]), default=0)
        parts = [f"[{shared} tokens as before] "] if shared else []
        own = zip(mask[shared:], ids[shared:], strict=True)
        for flag, tokens in groupby(own, key=lambda each: each[0]):
            text = tokenizer.decode([token for _, token in tokens])
            parts.append(f"{marks[0]}{text}{marks[1]}" if flag else text)
        yield "\n".join(f"  {line}" for line in "".join(parts).splitlines())


def _lengths(split: Split) -> Iterator[str]:
    edges = np.unique(np.linspace(split.tokens.min(), split.tokens.max() + 1, BINS + 1).astype(int))
    counts, _ = np.histogram(split.tokens, edges)
    yield "\nTokens of the training examples:"
    for first, after, count in zip(edges, edges[1:], counts):
        bar = "█" * round(WIDEST * count / counts.max())
        yield f"  {first:6}–{after - 1:<6} {count:8}  {bar}"


def _passes(data: DataModule, steps: Sequence[Step]) -> list[tuple[int, int]]:
    """The shape of each forward pass of some steps: sequences, and tokens of each."""
    lengths = data.train.lengths
    rows = [[int(lengths[i]) for i in row] for step in steps for row in step.rows]
    return [(len(row), max(row)) if data.padded else (1, sum(row)) for row in rows]


def _memory(settings: Train, config: PretrainedConfig, passes: Sequence[tuple[int, int]]) -> Iterator[str]:
    precision = resolve_precision(settings.trainer)
    count, tokens = max(passes, key=lambda shape: shape[0] * shape[1])
    found = run_memory(config, settings.model, settings.optimizer, precision, settings.method.head, count, tokens)
    yield f"Memory in one process, by shapes, with {precision} and {settings.optimizer.name}:"
    for name, of in MEMORY.items():
        if found[name]:
            yield f"  {of:27}  {found[name] / 1e9:10.3f} GB"
    yield f"  {'in all':27}  {sum(found.values()) / 1e9:10.3f} GB, and temporaries of a layer and of the head"


def _epoch(
    data: DataModule, settings: Train, steps: Sequence[Step], passes: Sequence[tuple[int, int]]
) -> Iterator[str]:
    train = data.train
    room = [count * tokens for count, tokens in passes]
    branches = sum(sum(map(len, each)) for each in train.encoded[train.index.tolist()]["branches"])
    read, targets = int(train.tokens.sum()), int(train.targets.sum())
    prompts = len(np.unique(train.prompts[0]))
    yield f"\nAn epoch: {len(train)} examples in {len(steps)} steps of {data.batch_size}, {len(passes)} forward passes"
    yield f"  tokens read                  {read:10}"
    if not data.padded:
        yield f"  tokens of separate branches  {branches:10}  ({branches / read:.2f} times as many)"
    if settings.method.head == "lm":
        yield f"  tokens scored                {targets:10}  ({100 * targets / read:.0f} %)"
    yield f"  tokens of the longest row    {max(room):10}  (data.tokens_per_row={data.tokens_per_row})"
    yield f"  different prompts            {prompts:10}"
    yield f"Validation: {len(data.validation)} examples, {int(data.validation.tokens.sum())} tokens"
