"""Trees of tokens, and the rows they are packed into. Imports torch alone.

An example is a tree of branches: a prompt with its chosen and rejected response; a question and its choices; a
dialogue whose template rewrites earlier turns, with a branch for each answer. In a packed row, tokens that branches
begin with in common stand once, each branch counts its positions through, and there is no padding. Bidirectional
encoders cannot share a prefix: `pad` makes the same `Row` out of whole branches.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Runs = list[tuple[int, int]]
"""Stretches of positions, each from its first to the one after its last."""


class Tree(NamedTuple):
    """One example. Each branch is encoded whole, prefix included, so nothing depends on where the prefix ends."""

    branches: Sequence[Sequence[int]]  # token ids, one sequence a branch
    scored: Sequence[Sequence[bool]]  # which of these tokens are scored, that is, predicted


class Span(NamedTuple):
    """A tree's place in its row."""

    start: int
    end: int
    mask: Tensor | None  # [1, 1, T, cached + T] bool, T = end - start, True where attended; None: causal (one branch)
    branches: list[Runs]  # where the tokens of each branch are, counted from the start of the span


class Row(NamedTuple):
    """What one forward pass reads. N scored tokens, B branches; positions index the flattened [R * T] hidden states."""

    input_ids: Tensor  # [R, T]; R is 1 for packed trees
    position_ids: Tensor | None  # [R, T] for packed trees
    attention_mask: Tensor | None  # [R, T] for padded branches, 1 on real tokens
    token_type_ids: Tensor | None  # [R, T] for padded branches of an encoder with two segments
    spans: list[Span] | None  # the trees of a packed row
    source: Tensor  # [N] position whose hidden state predicts the scored token
    target: Tensor  # [N] id of the scored token
    branch: Tensor  # [N] branch that the scored token belongs to, counted through the row
    end: Tensor  # [B] position of each branch's last token (packed) or first token (padded)
    tree: Tensor  # [B] tree that each branch belongs to, counted through the row
    labels: Tensor | None = None  # [B] class of each branch, for labelled texts
    margin: Tensor | None = None  # [trees] by how much the first branch is to be better than the second
    reference: Tensor | None = None  # [B] log-prob of each branch by the reference model, summed over scored tokens


def shared_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The number of tokens that two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # the sequences are equal up to `low`
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _parents(branches: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """For each branch the earlier one that it shares most tokens with (the first of equals), and how many."""
    for i, branch in enumerate(branches):
        shared = [shared_prefix(branch, earlier) for earlier in branches[:i]]
        most = max(shared, default=0)
        yield (shared.index(most) if shared else 0), most


def tree_length(branches: Sequence[Sequence[int]]) -> int:
    """The number of tokens that a tree takes in a packed row."""
    return sum(len(branch) - shared for branch, (_, shared) in zip(branches, _parents(branches), strict=True))


def padded_length(branches: Sequence[Sequence[int]]) -> int:
    """The number of positions that a tree takes in a padded row, beside trees that are not longer."""
    return len(branches) * max(map(len, branches))


def _runs(branches: Sequence[Sequence[int]], cached: int) -> tuple[list[Runs], int]:
    """Where the tokens of each branch are in its tree, and the tree's length."""
    layout: list[Runs] = []
    length = 0
    for branch, (parent, shared) in zip(branches, _parents(branches), strict=True):
        runs, left = [], max(shared, cached) - cached
        for start, end in layout[parent] if layout else []:
            runs += [(start, min(end, start + left))] * (left > 0)
            left -= end - start
        new = len(branch) - max(shared, cached)
        if new > 0:
            runs.append((length, length + new))
            length += new
        layout.append(runs)
    return layout, length


def tree_mask(branches: Sequence[Runs], length: int, cached: int = 0) -> Tensor:
    """Which token attends to which inside one tree: causal, and along its own branches only.

    Args:
        branches: where the tokens of each branch are.
        length: tokens of the tree, T.
        cached: number of tokens before the tree, which all tokens attend to.

    Returns:
        [1, 1, T, cached + T] bool; row attends to column where True.
    """
    edges = torch.tensor(sorted({edge for runs in branches for run in runs for edge in run} | {0, length}))
    first, owner = edges[:-1], torch.repeat_interleave(torch.arange(len(edges) - 1), edges.diff())
    on = torch.stack(  # [branches, stretches between two edges]
        [sum(((first >= start) & (first < end) for start, end in runs), torch.zeros_like(first)) for runs in branches]
    ).float()
    together = (on.T @ on) > 0
    visible = together[owner[:, None], owner[None, :]].tril()
    return torch.cat([visible.new_ones(length, cached), visible], dim=1)[None, None]


def pack(trees: Sequence[Tree], cached: int = 0, last: bool = True) -> Row:
    """Lay trees one after another into a single row without padding.

    Args:
        trees: the examples.
        cached: this many tokens, which all branches of all trees begin with, are not laid out: their keys and values
            are already computed. The first scored token has at least one token before it that is laid out.
        last: lay out each branch's last token, which predicts nothing; it is needed only where it is read (`Row.end`).
    """
    ids: list[int] = []
    end: list[int] = []
    positions, spans, source, target, branch, owner = [], [], [], [], [], []
    start = 0
    for number, tree in enumerate(trees):
        branches = tree.branches if last else [tokens[:-1] for tokens in tree.branches]
        layout, length = _runs(branches, cached)
        for tokens, laid_out, scored, runs in zip(tree.branches, branches, tree.scored, layout, strict=True):
            at, to = runs[-1]
            if to > len(ids) - start:  # tokens that no earlier branch has
                ids += laid_out[at - to :]
                positions.append(torch.arange(len(laid_out) - (to - at), len(laid_out)))
            place = torch.cat([torch.arange(start + first, start + after) for first, after in runs])
            predicted = torch.tensor(scored[1:], dtype=torch.bool).nonzero()[:, 0] + 1
            source.append(place[predicted - 1 - cached])
            target.append(torch.tensor(tokens)[predicted])
            branch.append(torch.full_like(predicted, len(end)))
            end.append(int(place[-1]))
            owner.append(number)
        mask = None if not cached and len(layout) == 1 else tree_mask(layout, length, cached)
        spans.append(Span(start, start + length, mask, layout))
        start += length
    return Row(
        input_ids=torch.tensor([ids]),
        position_ids=torch.cat(positions)[None],
        attention_mask=None,
        token_type_ids=None,
        spans=spans,
        source=torch.cat(source),
        target=torch.cat(target),
        branch=torch.cat(branch),
        end=torch.tensor(end),
        tree=torch.tensor(owner),
    )


def pad(trees: Sequence[Tree], pad_id: int, separator_id: int | None = None) -> Row:
    """Lay every branch of every tree into a padded row of its own, for bidirectional encoders.

    Args:
        trees: the examples; single tokens are not scored, so `scored` is not read.
        pad_id: fills up to the longest branch.
        separator_id: tokens after the first separator are segment 1; None for an encoder without segments.
    """
    branches = [tokens for tree in trees for tokens in tree.branches]
    width = max(map(len, branches))
    ids = torch.tensor([[*tokens, *[pad_id] * (width - len(tokens))] for tokens in branches])
    lengths = torch.tensor([len(tokens) for tokens in branches])
    mask = (torch.arange(width) < lengths[:, None]).long()
    types = None
    if separator_id is not None:
        seen = (ids == separator_id).cumsum(1)
        types = (((seen - (ids == separator_id).long()) > 0) & mask.bool()).long()
    empty = torch.empty(0, dtype=torch.long)
    return Row(
        input_ids=ids,
        position_ids=None,
        attention_mask=mask,
        token_type_ids=types,
        spans=None,
        source=empty,
        target=empty,
        branch=empty,
        end=torch.arange(len(branches)) * width,
        tree=torch.repeat_interleave(torch.arange(len(trees)), torch.tensor([len(tree.branches) for tree in trees])),
    )
