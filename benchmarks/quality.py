"""How good reward and toxicity models get on real data, beside simple baselines on the same held-out rows.

    python benchmarks/quality.py reward [--epochs 1] [--rows N] [--subsets helpful] [--keep <folder>]
    python benchmarks/quality.py toxicity

- ``reward``: HH-RLHF's harmless and helpful pairs; a fifth of the prompts is held out before anything is trained.
- ``toxicity``: ToLD-Br, trained on the rows that are in neither official split, tested on the official test split and,
  as it is, on HateCheck in Portuguese.

Training is `train.py` with the options that are printed. The threshold of the toxicity model is chosen on validation
rows of the training data. Baselines learn from the same training rows; `majority` is the most frequent class of the
test rows themselves. Intervals are 95 % bootstrap intervals over prompts, and "against the best" is the paired
difference in accuracy to the best baseline.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DATA = Path(os.environ.get("AIRA_DATA", ROOT.parent / "shared" / "data"))

from aira.data.schemas import Example, mapped_columns, prompt_key, read_example  # noqa: E402
from aira.data.texts import BadRow, text_key  # noqa: E402
from aira.evaluation.baselines import pair_baselines, text_baselines  # noqa: E402
from aira.evaluation.statistics import class_figures, compare_systems  # noqa: E402
from aira.inference.scorers import ScoringModel  # noqa: E402

HEAD = "| {} | accuracy | 95 % interval | balanced | F1 | against the best |\n|---|--:|--:|--:|--:|--:|"


def train(options: Sequence[str], folder: str) -> str:
    """Run train.py, and return the folder of its export."""
    run = str(Path(folder, "run").resolve())
    command = [sys.executable, "train.py", *options, f"hydra.run.dir={run}"]
    print("python", *command[1:-1], flush=True)
    start = time.time()
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    metrics = json.loads(Path(run, "metrics.json").read_text(encoding="utf-8"))
    print(f"{time.time() - start:.0f} s, of which start and export; {json.dumps(metrics)}\n", flush=True)
    return f"{run}/export"


def table(
    title: str, right: dict[str, np.ndarray], groups: np.ndarray | None, figures: dict[str, dict[str, float]]
) -> None:
    print(HEAD.format(title))
    for name, row in compare_systems(right, groups).items():
        against = f"{row['difference']:+.1%} [{row['lower']:+.1%}, {row['upper']:+.1%}]" if "lower" in row else ""
        more = [f"{figures[name][key]:.1%}" if name in figures else "–" for key in ("balanced_accuracy", "f1")]
        span = f"{row['low']:.1%} – {row['high']:.1%}"
        print(f"| {name} | {row['accuracy']:.2%} | {span} | {' | '.join(more)} | {against} |")
    print(flush=True)


def reward(arguments: argparse.Namespace, folder: str) -> None:
    """Pairs whose prompts are in the first fifth of a shuffle are for testing."""
    halves: dict[str, list[tuple[str, Example, str]]] = {"train": [], "test": []}
    held: dict[int, bool] = {}
    draw = np.random.default_rng(0)
    for subset in arguments.subsets:
        for line in (DATA / f"hh_rlhf_{subset}_base_test.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            try:
                example = read_example("preference", row, mapped_columns("preference", list(row), None, subset))
            except BadRow:
                continue
            half = "test" if held.setdefault(prompt_key(example), draw.random() < 0.2) else "train"
            halves[half].append((line, example, subset))
    order = np.random.default_rng(1).permutation(len(halves["train"]))[: arguments.rows]
    halves["train"] = [halves["train"][i] for i in order]
    file = Path(folder, "train.jsonl")
    file.write_text("\n".join(line for line, _, _ in halves["train"]) + "\n", encoding="utf-8")
    options = ["method=reward", f"data.path={file}", "data.max_length=512", *shared(arguments)]
    model = ScoringModel(train(options, folder))
    start = time.time()
    scores = np.array(model.score([model.encode(example.conversations) for _, example, _ in halves["test"]]))
    print(f"{len(scores)} test pairs scored in {time.time() - start:.0f} s; {len(halves['train'])} to learn from\n")
    better, worse = scores[:, 0], scores[:, 1]
    responses = {
        half: [tuple(turns[-1]["content"] for turns in example.conversations) for _, example, _ in rows]
        for half, rows in halves.items()
    }
    right = {f"Aira, {arguments.model}": np.where(better == worse, 0.5, better > worse)}
    right["chance"] = np.full(len(scores), 0.5)
    right |= pair_baselines(responses["train"], responses["test"])
    groups = np.array([prompt_key(example) for _, example, _ in halves["test"]])
    subsets = np.array([subset for _, _, subset in halves["test"]])
    for subset in (*([None] if len(arguments.subsets) > 1 else []), *arguments.subsets):
        chosen = subsets == subset if subset else np.full(len(subsets), True)
        title = f"{subset or 'all'}, {chosen.sum()} pairs"
        table(title, {name: values[chosen] for name, values in right.items()}, groups[chosen], {})


def rows_of(file: str, columns: dict[str, Any]) -> list[tuple[str, int]]:
    """Texts and classes of a file."""
    found = []
    with (DATA / file).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            try:
                example = read_example("labelled", row, columns)
            except BadRow:
                continue
            found.append((example.conversations[0][0]["content"], example.labels[0]))
    return found


def toxicity(arguments: argparse.Namespace, folder: str) -> None:
    splits = ["told_br_test_binary.csv", "told_br_validation_binary.csv"]
    classes = ["homophobia", "obscene", "insult", "racism", "misogyny", "xenophobia"]
    tests = {
        "ToLD-Br, official test split": rows_of(splits[0], {"text": "text", "label": "toxic"}),
        "HateCheck-pt": rows_of("hatecheck_pt.csv", {"text": "test_case", "label": "label_gold"}),
    }
    forbidden = {text_key(text) for name in splits for text, _ in rows_of(name, {"text": "text", "label": "toxic"})}
    rows = rows_of("told_br.csv", {"text": "text", "label": classes})
    learnt = [(text, label) for text, label in rows if text_key(text) not in forbidden]
    options = ["method=toxicity", "language=pt", "data=told-br", f"data.path={DATA}/told_br.csv", "data.max_length=128"]
    options += [f"data.exclude=[{DATA}/{splits[0]},{DATA}/{splits[1]}]", *shared(arguments)]
    if arguments.rows:
        options.append(f"data.max_examples={arguments.rows}")
    model = ScoringModel(train(options, folder))
    texts, labels = [text for text, _ in learnt], np.array([label for _, label in learnt])
    for title, test in tests.items():
        start = time.time()
        scores = np.concatenate(
            model.score([model.encode([[{"role": "assistant", "content": text}]]) for text, _ in test])
        )
        print(f"{len(test)} texts scored in {time.time() - start:.0f} s; {len(learnt)} to learn from\n")
        true = np.array([label for _, label in test])
        predicted = {f"Aira, {arguments.model}": (scores < model.threshold).astype(int)}
        predicted["majority"] = np.full(len(true), np.bincount(true).argmax())
        predicted |= text_baselines(texts, labels, [text for text, _ in test])
        figures = {name: class_figures(values, true) for name, values in predicted.items()}
        groups = np.array([text_key(text) for text, _ in test])
        right = {name: (values == true).astype(float) for name, values in predicted.items()}
        table(f"{title}, {len(true)} texts", right, groups, figures)


def shared(arguments: argparse.Namespace) -> list[str]:
    return [f"model={arguments.model}", f"trainer.max_epochs={arguments.epochs}", *arguments.options]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["reward", "toxicity"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rows", type=int, help="train on this many rows only")
    parser.add_argument("--subsets", nargs="+", default=["harmless", "helpful"], help="of the reward model's pairs")
    parser.add_argument("--keep", help="a folder for the run and its training rows; by default they are thrown away")
    parser.add_argument("options", nargs="*", help="further options of train.py")
    arguments = parser.parse_intermixed_args()
    if arguments.keep:
        Path(arguments.keep).mkdir(parents=True)
    with tempfile.TemporaryDirectory() as passing:
        {"reward": reward, "toxicity": toxicity}[arguments.what](arguments, arguments.keep or passing)


if __name__ == "__main__":
    main()
