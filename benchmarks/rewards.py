"""Whether a model's answers got better by a reward model: before and after training, on the same held-out prompts.

    python benchmarks/rewards.py <run before> <run after> --reward <run> [--judge <run>] \\
        --prompts pkg://aira.data/sample/instruction-en --split validation

Each prompt is answered `--n` times by both models with the same sampling. Printed are the means, and the paired
difference with a 95 % bootstrap interval over prompts. A reward that was optimised goes up more easily than what it
stands for: `--judge` names a reward model that the training did not see, and the lengths of the answers stand beside.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aira.chat.pipeline import Chat  # noqa: E402
from aira.data.sources import read  # noqa: E402
from aira.inference.scorers import ScoringModel  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--reward", required=True)
    parser.add_argument("--judge")
    parser.add_argument("--prompts", default="pkg://aira.data/sample/instruction-en")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--column", default="prompt")
    parser.add_argument("--first", type=int, default=0, help="the first prompt that is asked")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--cache-dir", default="~/.cache/aira")
    given = parser.parse_args()
    rows = read(given.prompts, cache_dir=given.cache_dir).split(given.split)
    prompts = list(dict.fromkeys(rows[given.column]))[given.first :][: given.count]
    sampling = {"n": given.n, "temperature": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    found: dict[str, list[np.ndarray]] = {}
    for model in (given.before, given.after):
        chat = Chat(model, given.reward, max_new_tokens=given.max_new_tokens, **sampling)
        answers = chat.candidates(asked, seed=1)
        found.setdefault("reward", []).append(np.array([np.mean([one.reward for one in some]) for some in answers]))
        lengths = [np.mean([len(one.text.split()) for one in some]) for some in answers]
        found.setdefault("words", []).append(np.array(lengths))
        if given.judge:
            chat.reward = ScoringModel(given.judge)
            chat.score(asked, answers)
            found.setdefault("judge", []).append(np.array([np.mean([one.reward for one in some]) for some in answers]))
    print(f"{len(prompts)} prompts, {given.n} answers to each\n\n| | before | after | difference |\n|---|--:|--:|--:|")
    rng = np.random.default_rng(0)
    for name, (before, after) in found.items():
        gain = after - before
        means = [gain[rng.integers(len(gain), size=len(gain))].mean() for _ in range(2000)]
        low, high = np.quantile(means, [0.025, 0.975])
        print(f"| {name} | {before.mean():.3f} | {after.mean():.3f} | {gain.mean():+.3f} [{low:+.3f}, {high:+.3f}] |")


if __name__ == "__main__":
    main()
