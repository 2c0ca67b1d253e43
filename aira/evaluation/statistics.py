"""Confidence intervals, and comparisons of systems on the same rows."""

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from aira.data.labels import TOXIC

DRAWS = 10_000

CHANCE = "chance"
"""The baseline that is right half the time, which is known, and not measured."""


def interval(
    values: np.ndarray, groups: np.ndarray | None = None, seed: int = 0, bounds: tuple[float, float] = (0, 1)
) -> tuple[float, float]:
    """The 95 % interval of a mean of bounded values (Gaffke, 2005; percentiles of 10,000 draws).

    It is the Bayesian bootstrap with one more row, of the lowest possible value for the lower end and of the highest
    for the upper one. So it covers the mean for few rows, too, and for rows that all agree, for which a bootstrap has
    zero width. Of zeros and ones it is the interval of Clopper and Pearson.

    Where one system's values are subtracted from another's of the same rows, it is the paired interval of the
    difference: the two differ where it excludes 0.

    Args:
        values: [N] such as 1 for a row that was answered correctly, and 0 for another.
        groups: [N] rows of one group (the same prompt) are drawn together, because they are not independent.
        seed: of the draws.
        bounds: the lowest and the highest value that a row can have; those of a difference are -1 and 1.
    """
    _, group = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(DRAWS // 100):  # in parts, so that memory stays small
        weights = draw.standard_exponential((100, len(sums) + 1))
        unseen = weights[:, -1:] * sizes.mean()
        total, rows = (weights[:, :-1] @ per_group for per_group in (sums, sizes))
        means.append((total[:, None] + unseen * bounds) / (rows[:, None] + unseen))
    lows, highs = np.concatenate(means).T
    return float(np.percentile(lows, 2.5)), float(np.percentile(highs, 97.5))


def class_figures(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy, and the F1 score of the toxic class; of one class alone, accuracy alone is defined.

    Args:
        predicted: [N] classes.
        labels: [N] true classes.
    """
    figures = {"accuracy": float(accuracy_score(labels, predicted))}
    if len(np.unique(labels)) == 2:
        figures["balanced_accuracy"] = float(balanced_accuracy_score(labels, predicted))
        figures["f1"] = float(f1_score(labels, predicted, pos_label=TOXIC))
    return figures


def compare_systems(
    right: dict[str, np.ndarray], groups: np.ndarray | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """The accuracies of several systems on the same rows, and how each differs from the best of those after the first.

    Args:
        right: the model first, then the baselines: [N] 1 where the answer is right, 0 where it is wrong, 0.5 for a tie.
        groups, seed: see `interval`.

    Returns:
        For each system `accuracy` and, but for `chance`, `low` and `high`; for the first also `difference`, `lower` and
        `upper`: its accuracy minus that of the best baseline, with the paired interval.
    """
    first, *others = right
    figures: dict[str, dict[str, float]] = {}
    for name, values in right.items():
        figures[name] = {"accuracy": float(values.mean())}
        if name != CHANCE:
            figures[name] |= zip(("low", "high"), interval(values, groups, seed))
    best = max(others, key=lambda name: figures[name]["accuracy"])
    difference = right[first] - right[best]
    lower, upper = interval(difference, groups, seed, (-1, 1))
    figures[first] |= {"difference": float(difference.mean()), "lower": lower, "upper": upper}
    return figures
