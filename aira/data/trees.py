"""Trees of tokens, and the rows they are packed into. Imports torch alone.

An example is a tree: a prefix and the branches that continue it (a prompt and its chosen and rejected response; a
question and its choices). In a packed row the prefix stands once, each branch counts its positions on from it, and
there is no padding. Bidirectional encoders cannot share a prefix: `pad` makes the same `Row` out of whole branches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Tree(NamedTuple):
    """One example. Each branch is encoded whole, prefix included, so nothing depends on where the prefix ends."""

    branches: Sequence[Sequence[int]]  # token ids, one sequence a branch
    scored: Sequence[Sequence[bool]]  # which of these tokens are scored, that is, predicted


class Span(NamedTuple):
    """A tree's place in its row."""

    start: int
    end: int
    mask: Tensor | None  # [1, 1, T, cached + T] bool, T = end - start, True where attended; None: causal (one branch)
    prefix: int  # tokens that stand once for all branches
    lengths: tuple[int, ...]  # of each branch, its own tokens, which follow one branch after the other


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


def shared_prefix(branches: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all branches begin with; 0 for a single branch, which has nothing to share."""
    if len(branches) == 1:
        return 0
    shortest = min(map(len, branches))
    first = branches[0]
    for i in range(shortest):
        if any(branch[i] != first[i] for branch in branches[1:]):
            return i
    return shortest


def tree_length(branches: Sequence[Sequence[int]]) -> int:
    """The number of tokens that a tree takes in a packed row."""
    prefix = shared_prefix(branches)
    return prefix + sum(len(branch) - prefix for branch in branches)


def padded_length(branches: Sequence[Sequence[int]]) -> int:
    """The number of positions that a tree takes in a padded row, beside trees that are not longer."""
    return len(branches) * max(map(len, branches))


def tree_mask(prefix: int, lengths: Sequence[int], cached: int = 0) -> Tensor:
    """Which token attends to which inside one tree: causal, to the prefix and its own branch only.

    Args:
        prefix: number of prefix tokens.
        lengths: number of tokens of each branch after the prefix.
        cached: number of tokens before the prefix, which all tokens attend to.

    Returns:
        [1, 1, T, cached + T] bool with T = prefix + sum(lengths); row attends to column where True.
    """
    owner = torch.repeat_interleave(torch.arange(len(lengths) + 1), torch.tensor([prefix, *lengths]))
    visible = (owner[:, None] == owner[None, :]) | (owner[None, :] == 0)
    return torch.cat([visible.new_ones(len(owner), cached), visible.tril()], dim=1)[None, None]


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
        shared = max(shared_prefix(branches), cached)
        prefix, lengths = shared - cached, [len(tokens) - shared for tokens in branches]
        ids += branches[0][cached:shared]
        positions.append(torch.arange(cached, shared))
        offset = start + prefix  # where the next branch's tokens after the prefix begin
        for tokens, packed, scored, length in zip(tree.branches, branches, tree.scored, lengths, strict=True):
            ids += packed[shared:]
            positions.append(torch.arange(shared, shared + length))
            place = torch.cat([torch.arange(start - cached, start + prefix), torch.arange(offset, offset + length)])
            predicted = torch.tensor(scored[1:], dtype=torch.bool).nonzero()[:, 0] + 1
            source.append(place[predicted - 1])
            target.append(torch.tensor(tokens)[predicted])
            branch.append(torch.full_like(predicted, len(end)))
            end.append(int(place[-1]))
            owner.append(number)
            offset += length
        mask = None if not cached and len(lengths) == 1 else tree_mask(prefix, lengths, cached)
        spans.append(Span(start, offset, mask, prefix, tuple(lengths)))
        start = offset
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
