"""Groups of sequences that share a prefix, so that few tokens are computed twice; planned from token ids alone."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

SHORTEST = 8
"""Caching the keys and values of a shared prefix of fewer tokens is not worth it."""

Run = tuple[int, int]  # first and last-plus-one index in sorted order


class Group(NamedTuple):
    """Trees with a shared prefix, which is computed once and cached for all of them."""

    cached: int  # tokens of that prefix
    trees: list[list[int]]  # indices of the sequences that make up each tree


def plan(sequences: Sequence[Sequence[int]], contexts: Sequence[int], budget: int) -> list[Group]:
    """Group sequences so that the tokens to compute are few.

    A tree shares one beginning between its sequences, a group one between its trees; of all ways to nest these two
    levels into the sorted sequences, the one that saves most tokens is taken.

    Args:
        sequences: token ids, each with at least two tokens.
        contexts: of each, how many tokens come before the first scored one.
        budget: tokens of a tree; where it would have more, and more than twice its first sequence, it is cut into
            several.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    room = [contexts[i] - 1 for i in order]  # the token that predicts the first scored one is each tree's own
    shared = np.array(
        [min(_common(sequences[a], sequences[b]), *room[k : k + 2]) for k, (a, b) in enumerate(pairwise(order))],
        dtype=np.int64,
    )
    groups = []
    for cached, runs in _groups(shared, (0, len(order)))[1]:
        trees = []
        for first, last in runs:
            prefix = int(shared[first : last - 1].min(initial=10**9))
            tree, size = [order[first]], len(sequences[order[first]])
            for i in order[first + 1 : last]:
                size += len(sequences[i]) - prefix
                if size - cached > max(budget, 2 * (len(sequences[tree[0]]) - cached)):
                    trees.append(tree)
                    tree, size = [], len(sequences[i])
                tree.append(i)
            trees.append(tree)
        groups.append(Group(cached, trees))
    return groups


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens that two sequences begin with alike."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(np.asarray(first[:length]) != np.asarray(second[:length]))
    return int(differing[0]) if len(differing) else length


def _cut(shared: np.ndarray, run: Run) -> tuple[int, Iterator[Run]]:
    """What a run shares, and the parts that it falls into where its neighbours share no more than that."""
    between = shared[run[0] : run[1] - 1]
    least = int(between.min())
    return least, pairwise([run[0], *(run[0] + 1 + np.flatnonzero(between == least)).tolist(), run[1]])


def _trees(shared: np.ndarray, run: Run, base: int) -> tuple[int, list[Run]]:
    """Tokens saved, and runs that become trees, where the first `base` tokens cost nothing."""
    if run[1] - run[0] == 1:
        return 0, [run]
    least, parts = _cut(shared, run)
    solved = [_trees(shared, part, base) for part in parts]
    saved, as_one_tree = sum(tokens for tokens, _ in solved), (least - base) * (run[1] - run[0] - 1)
    return (as_one_tree, [run]) if as_one_tree > saved else (saved, [one for _, runs in solved for one in runs])


def _groups(shared: np.ndarray, run: Run) -> tuple[int, list[tuple[int, list[Run]]]]:
    """Tokens saved, and for each group its cached tokens and the runs that become its trees."""
    if run[1] - run[0] == 1:
        return 0, [(0, [run])]
    least, parts = _cut(shared, run)
    solved = [_groups(shared, part) for part in parts]
    saved, groups = sum(tokens for tokens, _ in solved), [group for _, inner in solved for group in inner]
    as_one_tree = least * (run[1] - run[0] - 1)
    inside, trees = _trees(shared, run, least) if least >= SHORTEST else (0, [])
    if inside and as_one_tree + inside > saved:
        return as_one_tree + inside, [(least, trees)]
    return (as_one_tree, [(0, [run])]) if as_one_tree > saved else (saved, groups)
