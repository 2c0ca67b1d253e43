"""How many toxic texts a toxicity model stops, and how many harmless ones with them, beside a bag of words.

    python benchmarks/guard.py outputs/<date>/<toxicity run> --task sample_labelled_en
    python benchmarks/guard.py outputs/<date>/<toxicity run> --task hatecheck_en --data-dir $AIRA_DATA

The bag of words learns from the training rows of the run's own data and answers the same texts. A line for each share
of false alarms, by the threshold that gives it on these very rows, then what the model's own threshold does, which was
chosen on the validation rows of its training. Intervals are 95 % bootstrap intervals over texts.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aira.data.labels import TOXIC  # noqa: E402
from aira.data.schemas import mapped_columns, read_example  # noqa: E402
from aira.data.sources import read  # noqa: E402
from aira.evaluation.baselines import bag_of_words  # noqa: E402
from aira.evaluation.tasks import scorer_rows  # noqa: E402
from aira.files import run_of_export  # noqa: E402
from aira.inference.scorers import ScoringModel  # noqa: E402
from aira.reports.runs import read_run  # noqa: E402

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)


def stopped(scores: np.ndarray, toxic: np.ndarray, share: float) -> float:
    """The share of toxic texts with a lower score than all but `share` of the harmless ones."""
    return float((scores[toxic] < np.quantile(scores[~toxic], share)).mean())


def interval(scores: np.ndarray, toxic: np.ndarray, share: float, rng: np.random.Generator) -> str:
    drawn = [rng.integers(len(toxic), size=len(toxic)) for _ in range(1000)]
    low, high = np.quantile([stopped(scores[i], toxic[i], share) for i in drawn], [0.025, 0.975])
    return f"{stopped(scores, toxic, share):.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--task", default="sample_labelled_en")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--cache-dir", default="~/.cache/aira")
    given = parser.parse_args()
    folder = run_of_export(given.run)
    if folder is None:
        sys.exit(f"{given.run} is no folder of a run.")
    data = read_run(folder).values["data"]
    rows = read(data["path"], cache_dir=given.cache_dir).split(data["split"])
    mapping = mapped_columns("labelled", rows.column_names, data["columns"], data["path"])
    learnt = [read_example("labelled", row, mapping, data["labels"]) for row in rows]
    texts = [one[-1]["content"] for example in learnt for one in example.conversations]
    labels = np.array([label for example in learnt for label in example.labels])

    asked, said = scorer_rows(given.task, given.data_dir, None, 0, given.cache_dir)
    examples = [row.example for row in asked]
    tested = [one[-1]["content"] for example in examples for one in example.conversations]
    toxic = np.array([label for example in examples for label in example.labels]) == TOXIC
    scorer = ScoringModel(str(folder / "export"))
    trees = [scorer.encode([[{"role": "assistant", "content": text}]]) for text in tested]
    found = np.array([score for (score,) in scorer.score(trees)])
    words = bag_of_words(texts, labels)
    systems = {folder.name: found, "bag of words": -words.decision_function(tested)}
    print(*said, f"{given.task}: {len(toxic)} texts, {toxic.sum()} of them toxic; learnt from {len(texts)}\n", sep="\n")
    print("| false alarms | " + " | ".join(f"{name}: toxic texts stopped" for name in systems) + " |")
    print("|--:|" + "--:|" * len(systems))
    for share in SHARES:
        rng = np.random.default_rng(0)
        print(f"| {share:.0%} | " + " | ".join(interval(s, toxic, share, rng) for s in systems.values()) + " |")
    print("| AUROC | " + " | ".join(f"{roc_auc_score(~toxic, s):.3f}" for s in systems.values()) + " |")
    flagged = found < scorer.threshold
    print(f"\nBy its own threshold: {flagged[toxic].mean():.1%} stopped, {flagged[~toxic].mean():.1%} false alarms.")
    if TOXIC in words.classes_:
        taken = words.predict(tested) == TOXIC
        print(
            f"The bag of words by its own: {taken[toxic].mean():.1%} stopped, {taken[~toxic].mean():.1%} false alarms."
        )


if __name__ == "__main__":
    main()
