"""Where the batches of a run come from: planned from lengths (`aira.data.module`), or generated while it trains."""

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
    real_rows: int  # the first ones; padding rows follow, which count for nothing and are run since other ranks wait
    examples: int
    tokens: int  # scored tokens
    input_tokens: int  # all tokens that the model reads, but for padding


class BatchSource(pl.LightningDataModule, ABC):
    """What a run reads of its data.

    A batch depends on the number of its step, the rank and the weights alone, so that a run which is gone on with has
    the batches that it would have come to.

    Attributes:
        path: where the data is from, to be shown.
        key: a hash of the source, by which runs are compared.
        rows_key: a hash of the rows and their split, which a run that is gone on with has to share.
        notices: lines to be printed before training.
        batch_size: examples of one step over all ranks.
        train, validation: what an epoch, and a validation, goes through once: examples, or prompts.
    """

    path: str
    key: str
    rows_key: str
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
        """The rest of the run, from the step that the trainer is at; its length is that of the whole run."""

    @abstractmethod
    def val_dataloader(self) -> Iterable[Batch]:
        """One pass over `validation`; no list, which Lightning takes for one of loaders."""


class Generated:
    """A loader that makes each batch when its step is due: in training, by the weights after the step before.

    Args:
        make: gives this rank's batch of a step, by the step's number.
        steps: how many there are in all.
        start: the first one to run.
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
    """The batch of trees that each rank has made for itself. All ranks call this, each with a tree at least.

    Args:
        trainer: of the run.
        number: of the step.
        trees: of this rank.
        indices: [trees] rows of the split that they come from.
        tokens_per_row: see `aira.data.plan.fill_rows`.
        row: packs trees, named by their places in `trees`, with what stands beside them (`Row.labels` and the like).
    """
    lengths = np.array([tree_length(tree.branches) for tree in trees])
    longest_first = np.argsort(-lengths, kind="stable").tolist()
    places = fill_rows(longest_first, lengths, tokens_per_row, padded=False)
    scored = sum(sum(map(sum, tree.scored)) for tree in trees)
    strategy, device = trainer.strategy, trainer.strategy.root_device
    totals = strategy.reduce(torch.tensor([len(trees), scored, lengths.sum()], device=device), reduce_op="sum")
    examples, tokens, input_tokens = totals.tolist()
    rows = [row(chosen) for chosen in places]
    if needs_equal_rows(trainer):
        most = strategy.reduce(torch.tensor(len(rows), device=device), reduce_op="max")
        rows += rows[-1:] * (int(most) - len(places))
    return Batch(
        rows, [indices[i] for chosen in places for i in chosen], number, len(places), examples, tokens, input_tokens
    )


def needs_equal_rows(trainer: pl.Trainer) -> bool:
    """Whether each forward pass needs all ranks, as with sharded weights, so that all have to run as many rows."""
    return isinstance(trainer.strategy, ModelParallelStrategy)
