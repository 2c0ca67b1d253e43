"""What simple rules reach on the same rows: an accuracy means nothing without them.

Each is fitted on the rows of `train` and applied to those of `test`. `cross_fitted` does without training rows: every
tenth of the data is answered by a rule that was fitted on the other nine.
"""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
"""Inverse regularisation, of which cross-validation within the training rows picks one."""

Text = str
Pair = tuple[str, str]  # the better response and the worse


def _regression(intercept: bool = True) -> GridSearchCV:
    return GridSearchCV(LogisticRegression(fit_intercept=intercept, max_iter=2000), {"C": STRENGTHS}, cv=5)


def _words() -> TfidfVectorizer:
    """Words and pairs of neighbours."""
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)


def text_baselines(train: Sequence[Text], labels: np.ndarray, test: Sequence[Text]) -> dict[str, np.ndarray]:
    """The classes that simple rules give to texts.

    Args:
        train: texts to learn from.
        labels: [len(train)] their classes.
        test: texts to classify.

    Returns:
        [len(test)] classes by the rules `length` (logistic regression on the logarithms of the numbers of characters
        and of words) and `bag_of_words` (on TF-IDF).
    """
    count = np.bincount(labels, minlength=2)
    if count.min() < 5:  # too few to learn from
        return dict.fromkeys(("length", "bag_of_words"), np.full(len(test), count.argmax()))
    lengths = [np.log1p([[len(text), len(text.split())] for text in texts]) for texts in (train, test)]
    return {
        "length": _regression().fit(lengths[0], labels).predict(lengths[1]),
        "bag_of_words": bag_of_words(train, labels).predict(test),
    }


def bag_of_words(train: Sequence[Text], labels: np.ndarray) -> Pipeline:
    """Logistic regression on TF-IDF, fitted to texts and their classes."""
    return make_pipeline(_words(), _regression()).fit(train, labels)


def pair_baselines(train: Sequence[Pair], test: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Whether simple rules find the better response of a pair.

    Args:
        train: pairs to learn from.
        test: pairs to decide.

    Returns:
        [len(test)] 1 where a rule is right, 0 where it is wrong and 0.5 where it cannot tell, by `length` (the shorter
        or the longer wins, whichever did in training) and `bag_of_words` (logistic regression on the difference of
        TF-IDF). A pair has no majority: that baseline is chance.
    """
    if len(train) < 10:  # too few to learn from
        return dict.fromkeys(("length", "bag_of_words"), np.full(len(test), 0.5))
    longer = [np.sign([len(better) - len(worse) for better, worse in pairs]) for pairs in (train, test)]
    words = _words().fit([response for pair in train for response in pair])
    differences = [
        words.transform([a for a, _ in pairs]) - words.transform([b for _, b in pairs]) for pairs in (train, test)
    ]
    side = np.where(np.arange(len(train)) % 2, 1, -1)  # half of the pairs the other way round: two classes
    flipped = differences[0].multiply(side[:, None]).tocsr()
    by_words = _regression(intercept=False).fit(flipped, side).decision_function(differences[1])
    return {
        "length": 0.5 + 0.5 * longer[1] * np.sign(longer[0].mean()),
        "bag_of_words": 0.5 + 0.5 * np.sign(by_words),
    }


def cross_fitted(
    fit: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]], groups: np.ndarray
) -> dict[str, np.ndarray]:
    """Baselines for data that has no training rows.

    Args:
        fit: from the indices of rows to learn from and of rows to predict, to the rules' predictions for the latter.
        groups: [N] rows of one group are never on both sides.

    Returns:
        [N] the prediction of each rule for each row.
    """
    predictions: dict[str, np.ndarray] = {}
    count, group_count = len(groups), len(np.unique(groups))
    if group_count == 1:
        return fit(np.empty(0, int), np.arange(count))
    for train, test in GroupKFold(min(10, group_count)).split(np.empty(count), groups=groups):
        for name, values in fit(train, test).items():
            predictions.setdefault(name, np.empty(count, values.dtype))[test] = values
    return predictions
