"""The source of a run's batches: planned from lengths (`aira.data.module`), or generated while it trains."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy

from aira.data.plan import fill_rows
from aira.data.trees import Row, Tree, tree_length


class Batch(NamedTuple):
    """One optimizer step of one rank: its rows, and the totals over all ranks that losses are normalised by."""

    rows: list[Row]
    indices: list[int]  # rows of the split that this rank's examples come from
    number: int  # of the step
    real_rows: int  # the first ones; padding rows follow, which count for nothing and only keep ranks in step
    examples: int
    tokens: int  # scored tokens
    input_tokens: int  # all tokens that the model reads, without padding


class BatchSource(pl.LightningDataModule, ABC):
    """The data of a run, as batches.

    A batch depends only on the number of its step, the rank and the weights, so a resumed run sees the same batches as
    a run without interruption.

    Attributes:
        path: where the data comes from, for display.
        key: a hash of the source, by which runs are compared.
        rows_key: a hash of the rows and their split, which a resumed run must share.
        layouts: what each split is read as, a line each.
        notices: further lines to be printed before training.
        batch_size: examples of one step over all ranks.
        source_names: of the loaders of `val_dataloader`, where there are several.
        train, validation: the examples, or prompts, of one epoch and of one validation.
    """

    path: str
    key: str
    rows_key: str
    layouts: Sequence[str] = ()
    source_names: Sequence[str] = ()
    notices: list[str]
    batch_size: int
    train: Sized
    validation: Sized

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over `train`; the last one may have fewer examples."""
        return -(-len(self.train) // self.batch_size)

    @abstractmethod
    def train_dataloader(self) -> Iterable[Batch]:
        """The rest of the run, from the trainer's current step on; its length is that of the whole run."""

    @abstractmethod
    def val_dataloader(self) -> Iterable[Batch] | Sequence[Iterable[Batch]]:
        """One pass over `validation`; a list is one of loaders, whose losses are reported apart (`source_names`)."""


class Generated:
    """A loader that makes each batch when its step is due: in training, with the weights after the previous step.

    Args:
        make: returns this rank's batch of a step, by the step's number.
        steps: of the whole run.
        start: the first step to run.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int, start: int = 0) -> None:
        self.make, self.steps, self.start = make, steps, start

    def __len__(self) -> int:
        return self.steps  # where this is known, Lightning fetches no batch ahead

    def __iter__(self) -> Iterator[Batch]:
        return map(self.make, range(self.start, self.steps))


def generated_batch(
    trainer: pl.Trainer,
    number: int,
    trees: Sequence[Tree],
    indices: Sequence[int],
    tokens_per_row: int,
    row: Callable[[list[int]], Row],
) -> Batch:
    """The batch of the trees that each rank has generated. All ranks call this, each with at least one tree.

    Args:
        trainer: of the run.
        number: of the step.
        trees: of this rank.
        indices: [trees] rows of the split that they come from.
        tokens_per_row: see `aira.data.plan.fill_rows`.
        row: packs trees, given by their indices in `trees`, with their labels and the like (`Row.labels`).
    """
    lengths = np.array([tree_length(tree.branches) for tree in trees])
    longest_first = np.argsort(-lengths, kind="stable").tolist()
    filled = fill_rows(longest_first, lengths, tokens_per_row, padded=False)
    scored = sum(sum(map(sum, tree.scored)) for tree in trees)
    strategy, device = trainer.strategy, trainer.strategy.root_device
    totals = strategy.reduce(torch.tensor([len(trees), scored, lengths.sum()], device=device), reduce_op="sum")
    examples, tokens, input_tokens = totals.tolist()
    rows = [row(chosen) for chosen in filled]
    if needs_equal_rows(trainer):
        most = strategy.reduce(torch.tensor(len(rows), device=device), reduce_op="max")
        rows += rows[-1:] * (int(most) - len(filled))
    return Batch(
        rows, [indices[i] for chosen in filled for i in chosen], number, len(filled), examples, tokens, input_tokens
    )


def needs_equal_rows(trainer: pl.Trainer) -> bool:
    """Whether each forward pass needs all ranks, as with sharded weights, so that all must run equally many rows."""
    return isinstance(trainer.strategy, ModelParallelStrategy)
