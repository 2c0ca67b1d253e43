"""The plan of a run: every example once an epoch, the same steps on any number of ranks and from any start."""

import numpy as np
import pytest

from aira.data.plan import Plan, balance, fill_rows

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(3, 90, size=53)
LENGTHS[7] = 300  # longer than a row
SCORED = LENGTHS // 2
BATCH, BUDGET = 8, 120


def plan(**settings):
    return list(Plan(LENGTHS, SCORED, **{"batch_size": BATCH, "tokens_per_row": BUDGET, "seed": 3, **settings}))


def examples(step):
    return [index for row in step.rows for index in row]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_every_example_once_an_epoch(padded, shuffle):
    """Catches an example that is left out, repeated, or moved to another epoch."""
    per_epoch = -(-len(LENGTHS) // BATCH)
    steps = plan(padded=padded, shuffle=shuffle, steps=3 * per_epoch)
    assert [step.number for step in steps] == list(range(3 * per_epoch))
    for epoch in range(3):
        seen = [i for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for i in examples(step)]
        assert sorted(seen) == list(range(len(LENGTHS)))
    assert [len(examples(step)) for step in steps[:per_epoch]] == [8] * 6 + [5]


def test_order():
    """Catches epochs or seeds that share their order, a plan that differs from run to run, and shuffled validation."""
    steps = plan(steps=14)
    batches = [sorted(examples(step)) for step in steps]
    assert batches == [sorted(examples(step)) for step in plan(steps=14)]
    assert batches[:7] != batches[7:]
    assert batches[:7] != [sorted(examples(step)) for step in plan(steps=7, seed=4)]
    assert [sorted(examples(step)) for step in plan(shuffle=False)] == [
        list(range(start, min(start + BATCH, 53))) for start in range(0, 53, BATCH)
    ]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_batches_of_one(ranks):
    """Catches an example that two ranks train on, or none, and totals that only one rank counts."""
    single = plan(steps=14)
    for whole, *shares in zip(single, *(plan(steps=14, rank=rank, ranks=ranks) for rank in range(ranks)), strict=True):
        union = [i for share in shares if share.real_rows for i in examples(share)]
        assert sorted(union) == sorted(examples(whole))
        for share in shares:
            assert share._replace(rows=[], real_rows=0) == whole._replace(rows=[], real_rows=0)
        assert whole.examples == len(union) and whole.tokens == SCORED[union].sum()
        assert whole.input_tokens == LENGTHS[union].sum()


@pytest.mark.parametrize("start", [1, 6, 7, 10, 13])
def test_start(start):
    """Catches a run that is gone on with at other examples than it would have come to."""
    whole = plan(steps=14)
    assert plan(steps=14, start=start) == whole[start:]
    assert len(Plan(LENGTHS, SCORED, batch_size=BATCH, tokens_per_row=BUDGET, steps=14, start=start)) == 14


def test_a_run_may_end_within_an_epoch():
    """Catches a run whose number of steps is rounded to whole epochs."""
    assert plan(steps=10) == plan(steps=14)[:10]
    assert plan(steps=3) == plan(steps=14)[:3]


@pytest.mark.parametrize("padded", [True, False])
def test_rows_are_within_the_budget(padded):
    """Catches a row that needs more memory than allowed, or a long example that takes others along."""
    for step in plan(padded=padded):
        for row in step.rows:
            cost = len(row) * LENGTHS[row].max() if padded else LENGTHS[row].sum()
            assert cost <= BUDGET or len(row) == 1
    (long,) = [row for step in plan(padded=padded) for row in step.rows if 7 in row]
    assert long == [7]


def test_rows_are_filled():
    """Catches a packing that opens a row though there is room in an earlier one, or that a budget does not change."""
    lengths = np.array([60, 50, 40, 30, 20, 100])
    assert fill_rows([5, 0, 1, 2, 3, 4], lengths, 100, padded=False) == [[5], [0, 2], [1, 3, 4]]
    assert fill_rows([5, 0, 1, 2, 3, 4], lengths, 1000, padded=False) == [[5, 0, 1, 2, 3, 4]]
    assert fill_rows([5, 0, 1, 2, 3, 4], lengths, 120, padded=True) == [[5], [0, 1], [2, 3, 4]]


def test_padded_rows_hold_neighbours_in_length():
    """Catches padding of short examples up to long ones."""
    for step in plan(padded=True):
        lengths = [int(LENGTHS[i]) for i in examples(step)]
        assert lengths == sorted(lengths, reverse=True)


def test_a_rank_without_a_share_has_no_weight():
    """Catches a rank that has nothing to do and hangs, or adds another's example a second time."""
    lengths, scored = np.array([5, 6, 7]), np.array([2, 2, 2])
    ranks = [
        list(Plan(lengths, scored, batch_size=2, tokens_per_row=50, shuffle=False, rank=rank, ranks=2))
        for rank in range(2)
    ]
    assert [[step.real_rows for step in steps] for steps in ranks] == [[1, 1], [1, 0]]
    assert examples(ranks[1][1]) == [2] and ranks[1][1].examples == 1 and ranks[1][1].tokens == 2


def test_shares_are_balanced():
    """Catches ranks that wait for one another since one has the long examples."""
    lengths = np.array([90, 10, 80, 20, 50, 50])
    assert balance(np.array([0, 1, 2, 3, 4, 5]), lengths, 2) == [[0, 5, 1], [2, 4, 3]]
    assert balance(np.array([5, 4, 3, 2, 1, 0]), lengths, 2) == [[0, 5, 1], [2, 4, 3]]
