"""Baselines, intervals and comparisons on made-up rows whose answers are known."""

import numpy as np
import pytest
from scipy.stats import beta

from aira.evaluation.baselines import cross_fitted, pair_baselines, text_baselines
from aira.evaluation.statistics import class_figures, compare_systems, interval

NOUNS = ["house", "river", "garden", "table", "window"]


def texts(count, seed):
    """Toxic texts hold a word of insult; class 1 is longer, too."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    made = [" ".join([*draw.choice(NOUNS, 4 + 4 * toxic), "idiot" if toxic else "friend"]) for toxic in labels]
    return made, labels


def test_rules_for_texts():
    learnt, labels = texts(60, 0)
    asked, true = texts(40, 1)
    found = text_baselines(learnt, labels, asked)
    assert (found["bag_of_words"] == true).all()
    assert (found["length"] == true).all()
    one_length = ["friend of the house", "idiot of the river"]
    assert (text_baselines(learnt, labels, one_length)["bag_of_words"] == [0, 1]).all()
    assert len(set(text_baselines(learnt, labels, one_length)["length"])) == 1, "it must not see words"


def test_rules_for_pairs():
    """The better response has the kind word, and is the shorter one in all pairs but the last."""
    learnt = [(f"kind {a}", f"rude {a} {b} {a}") for a in NOUNS for b in NOUNS]
    asked = [("kind sea", "rude sea and sand"), ("kind sea and sand", "rude sea"), ("kind sea", "rude sea"), ("a", "b")]
    found = pair_baselines(learnt, asked)
    assert found["length"].tolist() == [1, 0, 0.5, 0.5]
    assert found["bag_of_words"].tolist() == [1, 1, 1, 0.5]


def test_few_rows():
    """Catches a smoke test on a few rows that fails in the rules beside it."""
    assert pair_baselines([("a", "b")] * 9, [("a", "b")])["bag_of_words"].tolist() == [0.5]
    found = cross_fitted(lambda a, b: pair_baselines([("x", "y")] * len(a), [("x", "y")] * len(b)), np.zeros(3, int))
    assert found["length"].tolist() == [0.5] * 3


def test_nothing_is_learnt_from_the_rows_that_are_answered():
    groups = np.arange(30) // 2
    seen = []

    def fit(train, test):
        assert not set(groups[train]) & set(groups[test])
        seen.extend(test)
        return {"rule": test * 10}

    assert (cross_fitted(fit, groups)["rule"] == np.arange(30) * 10).all()
    assert sorted(seen) == list(range(30))


@pytest.mark.parametrize("right, rows", [(0, 1), (1, 1), (4, 4), (3, 4), (0, 20), (7, 20), (20, 20), (199, 200)])
def test_intervals_of_few_rows(right, rows):
    """Catches an interval without width, or one that is narrower than the exact one of Clopper and Pearson."""
    low = beta.ppf(0.025, right, rows - right + 1) if right else 0
    high = beta.ppf(0.975, right + 1, rows - right) if right < rows else 1
    assert interval(np.repeat([1, 0], [right, rows - right])) == pytest.approx((low, high), abs=0.01)


@pytest.mark.parametrize("differences, clear", [([1] * 6, True), ([1] * 5, False), ([1, 0, 1, 1], False), ([0], False)])
def test_differences_of_few_rows(differences, clear):
    """Catches a model that is called better on a few rows that another would answer by luck, or for one that is."""
    for sign in (1, -1):
        low, high = interval(sign * np.array(differences, dtype=float), bounds=(-1, 1))
        assert (low > 0 or high < 0) == clear and high - low > 0.5
    groups = np.zeros(10 * len(differences), int)
    low, high = interval(np.repeat(np.array(differences, dtype=float), 10), groups, bounds=(-1, 1))
    assert low < 0 < high, "ten rows of one prompt are one"


def test_chance_is_known():
    """Catches an interval of what is right half the time by definition, and a rule beside it without one."""
    found = compare_systems({"model": np.ones(8), "chance": np.full(8, 0.5), "length": np.full(8, 0.5)})
    assert "low" not in found["chance"] and found["length"]["low"] < 0.4 < 0.6 < found["length"]["high"]


def test_interval_of_a_mean():
    """The interval of a proportion is near the normal one: 0.7 with 400 rows is 0.7 +- 0.045."""
    values = np.repeat([1.0, 0.0], [280, 120])
    assert interval(values) == pytest.approx((0.655, 0.745), abs=0.006)
    doubled = interval(np.tile(values, 2), groups=np.tile(np.arange(400), 2))
    assert doubled == pytest.approx(interval(values), abs=0.006), "copies of a prompt are no further evidence"


def test_difference_is_paired():
    """Two systems that differ on few rows, always to the same side, differ clearly, though their intervals overlap."""
    baseline = np.repeat([1.0, 0.0], [200, 200])
    model = baseline.copy()
    model[200:212] = 1
    found = compare_systems({"model": model, "weak": np.zeros(400), "strong": baseline})
    assert found["model"]["low"] < found["strong"]["high"]
    assert found["model"]["difference"] == pytest.approx(0.03)
    assert 0 < found["model"]["lower"] < 0.03 < found["model"]["upper"]


def test_figures_by_hand():
    """Three of four toxic found, one of six harmless taken for toxic: F1 is 2 * 3 / (2 * 3 + 1 + 1)."""
    true = np.repeat([1, 0], [4, 6])
    predicted = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0])
    figures = class_figures(predicted, true)
    assert figures == pytest.approx({"accuracy": 0.8, "balanced_accuracy": (3 / 4 + 5 / 6) / 2, "f1": 0.75})
