"""The plan of what is computed once."""

import numpy as np

from aira.data.trees import tree_length
from aira.evaluation.tries import plan


def cost(sequences, groups):
    """Tokens that are computed."""
    return sum(
        group.cached + sum(tree_length([sequences[i] for i in tree]) - group.cached for tree in group.trees)
        for group in groups
    )


def made(*parts):
    return [token for part in parts for token in part]


def numbers(start, count):
    return list(range(start, start + count))


INSTRUCTION = numbers(0, 40)
QUESTIONS = [numbers(1000 + 100 * q, 20) for q in range(5)]
CHOICES = [numbers(5000 + 10 * c, 6) for c in range(4)]


def test_one_instruction_and_several_questions():
    """Each question is a tree, and the instruction is computed once for all of them."""
    sequences = [made(INSTRUCTION, question, choice) for choice in CHOICES for question in QUESTIONS]
    (group,) = plan(sequences, [60] * len(sequences), budget=1000)
    assert group.cached == 40
    assert sorted(sorted(tree) for tree in group.trees) == [[q, q + 5, q + 10, q + 15] for q in range(5)]
    assert cost(sequences, [group]) == 40 + 5 * (20 + 4 * 6)


def test_nothing_in_common():
    sequences = [made(question, choice) for question in QUESTIONS for choice in CHOICES[:2]]
    groups = plan(sequences, [20] * len(sequences), budget=1000)
    assert [group.cached for group in groups] == [0] * 5
    assert cost(sequences, groups) == 5 * (20 + 2 * 6)


def test_two_subjects_with_examples_of_their_own():
    subjects = [numbers(0, 50), numbers(200, 50)]
    sequences = [made(s, q, c) for s in subjects for q in QUESTIONS for c in CHOICES]
    groups = plan(sequences, [70] * len(sequences), budget=1000)
    assert [group.cached for group in groups] == [50, 50]
    assert cost(sequences, groups) == 2 * (50 + 5 * (20 + 4 * 6))


def test_the_predicting_token_is_never_cached():
    """Two sequences that differ in their scored token alone."""
    sequences = [[*INSTRUCTION, 7], [*INSTRUCTION, 8], [*INSTRUCTION, 9, 9, 7], [*INSTRUCTION, 9, 9, 8]]
    contexts = [40, 40, 42, 42]
    groups = plan(sequences, contexts, budget=1000)
    for group in groups:
        assert all(group.cached < contexts[i] for tree in group.trees for i in tree)


def test_budget():
    """A tree is cut where it gets too long; every sequence stays in the plan once."""
    sequences = [made(INSTRUCTION, choice) for choice in [numbers(100 + 10 * i, 10) for i in range(20)]]
    groups = plan(sequences, [40] * 20, budget=100)
    trees = [tree for group in groups for tree in group.trees]
    assert sorted(i for tree in trees for i in tree) == list(range(20))
    assert max(tree_length([sequences[i] for i in tree]) for tree in trees) <= 100


def test_a_context_beyond_the_budget_is_shared_all_the_same():
    """As with 25 examples before each question: cutting would compute them once a choice."""
    sequences = [made(numbers(0, 150), question, choice) for question in QUESTIONS[:1] for choice in CHOICES]
    groups = plan(sequences, [170] * len(sequences), budget=100)
    assert cost(sequences, groups) == 150 + 20 + len(CHOICES) * 6


def test_random_sequences_are_planned_once_and_never_cost_more():
    draw = np.random.default_rng(0)
    for _ in range(30):
        sequences = list({tuple(draw.integers(0, 2, draw.integers(12, 30)).tolist()) for _ in range(25)})
        groups = plan(sequences, [len(sequence) - 1 for sequence in sequences], budget=60)
        planned = [i for group in groups for tree in group.trees for i in tree]
        assert sorted(planned) == list(range(len(sequences)))
        assert cost(sequences, groups) <= sum(map(len, sequences))
        for group in groups:
            firsts = {sequences[i][: group.cached] for tree in group.trees for i in tree}
            assert len(firsts) == 1
