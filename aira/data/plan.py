"""Which examples make up which step, rank and row: planned from lengths alone, the same on every rank."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Step(NamedTuple):
    """One optimizer step as one rank sees it. The totals are over all ranks: losses are normalised by them."""

    number: int
    rows: list[list[int]]  # example indices of each forward pass of this rank
    real_rows: int  # the first ones; padding rows follow, which count for nothing and only keep ranks in step
    examples: int
    tokens: int  # scored tokens
    input_tokens: int  # all tokens that the model reads, without padding


def balance(batch: np.ndarray, lengths: np.ndarray, ranks: int) -> list[list[int]]:
    """Distribute a batch over ranks, longest example first, each to the rank that has the fewest tokens so far.

    Returns:
        Example indices of each rank, longest first. Ties are broken by index, so every rank computes the same.
    """
    order = batch[np.lexsort((batch, -lengths[batch]))]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for index in order.tolist():
        rank = load.index(min(load))
        shares[rank].append(index)
        load[rank] += int(lengths[index])
    return shares


def fill_rows(examples: list[int], lengths: np.ndarray, tokens_per_row: int, padded: bool) -> list[list[int]]:
    """Cut a rank's share into rows of at most `tokens_per_row` tokens (a longer example has a row of its own).

    Args:
        examples: indices, longest first.
        lengths: tokens of each example: of the whole tree, or of its padded branches.
        tokens_per_row: the budget; a padded row costs its longest example times its number of examples.
        padded: pad examples of similar length together, instead of packing first-fit-decreasing.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in examples:
        length = int(lengths[index])
        if padded:
            fits = bool(rows) and (len(rows[-1]) + 1) * int(lengths[rows[-1][0]]) <= tokens_per_row
            row = len(rows) - 1 if fits else -1
        else:
            row = next((i for i, free in enumerate(room) if free >= length), -1)
        if row < 0:
            rows.append([index])
            room.append(tokens_per_row - length)
        else:
            rows[row].append(index)
            room[row] -= length
    return rows


class Plan(Sampler[Step]):
    """All the steps of a run, epoch after epoch.

    Shuffled by (seed, epoch); step k can be computed without the steps before it, so a resumed run starts the plan at
    its step. With `shuffle=False` it is one pass in the order of the data.

    Args:
        lengths: [examples] tokens of each example in a row.
        scored: [examples] scored tokens of each example.
        batch_size: examples of one step over all ranks; the last step of an epoch may have fewer.
        tokens_per_row: see `fill_rows`.
        steps: how many steps the whole run has.
        start: the first step to run.
        equal_rows: give every rank the same number of rows, for strategies whose forward passes need all ranks.
        input_tokens: [examples] tokens of each example without padding; None if there is no padding (`lengths`).
        shares: groups of examples, each with the number of its examples in an epoch: whole passes over the group, and
            for the rest other examples in each epoch. None for one pass over all.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        scored: np.ndarray,
        *,
        batch_size: int,
        tokens_per_row: int,
        padded: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        steps: int | None = None,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
        equal_rows: bool = False,
        input_tokens: np.ndarray | None = None,
        shares: Sequence[tuple[np.ndarray, int]] | None = None,
    ) -> None:
        self.lengths, self.scored = lengths, scored
        self.input_tokens = lengths if input_tokens is None else input_tokens
        self.batch_size, self.tokens_per_row, self.padded = batch_size, tokens_per_row, padded
        self.shuffle, self.seed, self.rank, self.ranks = shuffle, seed, rank, ranks
        self.shares = [(np.arange(len(lengths)), len(lengths))] if shares is None else shares
        self.steps_per_epoch = -(-sum(count for _, count in self.shares) // batch_size)
        self.steps = self.steps_per_epoch if steps is None else steps
        self.start, self.equal_rows = start, equal_rows

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        for epoch in range(self.start // self.steps_per_epoch, -(-self.steps // self.steps_per_epoch)):
            random = np.random.default_rng([self.seed, epoch])
            parts = []
            for group, count in self.shares:
                passes, rest = divmod(count, len(group))
                parts += [group] * passes + ([random.permutation(group)[:rest]] if rest else [])
            order = np.concatenate(parts)
            if self.shuffle:
                random.shuffle(order)
            first = epoch * self.steps_per_epoch
            for number in range(max(first, self.start), min(first + self.steps_per_epoch, self.steps)):
                at = (number - first) * self.batch_size
                yield self.step(number, order[at : at + self.batch_size])

    def step(self, number: int, batch: np.ndarray) -> Step:
        """This rank's part of the batch of one step."""
        shares = balance(batch, self.lengths, self.ranks)
        rows = self._rows(shares[self.rank])
        least = max(len(self._rows(share)) for share in shares) if self.equal_rows else 1
        return Step(
            number=number,
            rows=rows + (rows[-1:] or [[int(batch[0])]]) * (least - len(rows)),
            real_rows=len(rows),
            examples=len(batch),
            tokens=int(self.scored[batch].sum()),
            input_tokens=int(self.input_tokens[batch].sum()),
        )

    def _rows(self, share: list[int]) -> list[list[int]]:
        return fill_rows(share, self.lengths, self.tokens_per_row, self.padded)
