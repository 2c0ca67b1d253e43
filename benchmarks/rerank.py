"""Reranking n candidates: one tree a prompt, beside one forward pass a candidate with plain Transformers.

    python benchmarks/rerank.py [--sets dialogue short] [--prompts 6] [--n 8] [--repeat 3] [--quick]

A reward model of SmolLM2-135M-Instruct's weights and a score head of fixed random weights, in float32, scores n
candidates for each prompt, one prompt after another, as a chat does. Candidates are responses of other dialogues in
``hh_rlhf_helpful_base_test.jsonl``, since only their lengths matter to the time.

- ``dialogue``: the first prompts of that file that have at least 300 tokens, which are dialogues of several turns.
- ``short``: the first that have at most 40 tokens, which are lone questions.

- ``transformers``: ``AutoModelForSequenceClassification``, a forward pass a candidate.
- ``transformers-batch``: the same, with the n candidates of a prompt padded into one batch.
- ``aira``: ``aira.inference.scorers.ScoringModel``, the n candidates of a prompt as one tree.

Every run is a process of its own, and the runs take turns. The time is that of tokenizing and scoring all prompts,
after one prompt for warming up. Tokens are counted for each candidate with its prompt, for all contenders alike.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import interleave, run_child
from study import DATA, ROOT, made_up, save_scorer, save_smollm2, save_tiny_llama, turn

sys.path.insert(0, str(ROOT))
Talk = list[dict[str, str]]
LENGTHS = {"dialogue": (300, 700), "short": (1, 40)}
CONTENDERS = ("transformers", "transformers-batch", "aira")


def talks_of(arguments: argparse.Namespace, tokenizer: Any) -> list[list[Talk]]:
    """For each prompt its n conversations, each ending with a candidate."""
    from aira.data.schemas import preference
    from aira.data.texts import BadRow

    rows = [(turn("user", p), turn("assistant", c)[0]) for p, c, _ in made_up(arguments.prompts + arguments.n)]
    if not arguments.quick:
        rows = []
        for line in (DATA / "hh_rlhf_helpful_base_test.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                *prompt, response = preference(json.loads(line)).conversations[0]
            except BadRow:
                continue
            rows.append((prompt, response))
    least, most = (1, 10**9) if arguments.quick else LENGTHS[arguments.set]
    found: list[list[Talk]] = []
    for i, (prompt, _) in enumerate(rows):
        if least <= len(tokenizer.apply_chat_template(prompt, return_dict=False)) <= most:
            candidates = [rows[(i + 1 + k) % len(rows)][1] for k in range(arguments.n)]
            found.append([[*prompt, candidate] for candidate in candidates])
        if len(found) == arguments.prompts + 1:  # one for warming up
            return found
    raise SystemExit(f"{arguments.prompts + 1} prompts of {arguments.set} are needed, {len(found)} are there")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from aira.inference.scorers import ScoringModel

    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    talks = talks_of(arguments, tokenizer)
    if arguments.child == "aira":
        scorer = ScoringModel(arguments.folder)

        def score(several: list[Talk]) -> list[float]:
            return scorer.score([scorer.encode(several)])[0]
    else:
        model = AutoModelForSequenceClassification.from_pretrained(arguments.folder, dtype=torch.float32).eval()

        @torch.inference_mode()
        def score(several: list[Talk]) -> list[float]:
            together = len(several) if arguments.child == "transformers-batch" else 1
            parts = [several[i : i + together] for i in range(0, len(several), together)]
            given = {"padding": True, "return_dict": True, "return_tensors": "pt"}
            batches = [tokenizer.apply_chat_template(part, **given) for part in parts]
            return [value for batch in batches for value in model(**batch).logits[:, 0].tolist()]

    score(talks[0])
    start = time.perf_counter()
    scores = [score(several) for several in talks[1:]]
    seconds = time.perf_counter() - start
    prompts = [len(tokenizer.apply_chat_template(several[0][:-1], return_dict=False)) for several in talks[1:]]
    whole = [len(tokenizer.apply_chat_template(one, return_dict=False)) for several in talks[1:] for one in several]
    return {
        "scores": [value for several in scores for value in several],
        "seconds": seconds,
        "prompt": statistics.mean(prompts),
        "answer": statistics.mean(whole) - statistics.mean(prompts),
        "tokens_per_second": sum(whole) / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--prompts", type=int, default=6, help="prompts that are timed")
    parser.add_argument("--n", type=int, default=8, help="candidates of each")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny random model, made-up rows")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--set", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run(arguments)))
        return
    print("| prompts | contender | prompt, tokens | answer, tokens | s a prompt | times as fast | max difference |")
    print("|---|---|--:|--:|--:|--:|--:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (save_tiny_llama if arguments.quick else save_smollm2)(folder)
        save_scorer(folder)
        for name in arguments.sets:
            given = ["--folder", folder, "--set", name, "--prompts", str(arguments.prompts), "--n", str(arguments.n)]
            given += ["--quick"] * arguments.quick
            runs = interleave(
                CONTENDERS,
                arguments.repeat,
                lambda child, to=given: run_child(Path(__file__).resolve(), ["--child", child, *to]),
            )
            seconds = {child: statistics.median(one["seconds"] for one in several) for child, several in runs.items()}
            expected = runs["transformers"][0]
            for child, several in runs.items():
                difference = max(abs(a - b) for one in several for a, b in zip(one["scores"], expected["scores"]))
                cells = [name, child, f"{expected['prompt']:.0f}", f"{expected['answer']:.0f}"]
                cells.append(f"{seconds[child] / arguments.prompts:.2f}")
                cells.append(f"{seconds['transformers'] / seconds[child]:.2f}")
                print(f"| {' | '.join(cells)} | {difference:.1e} |", flush=True)
    print(f"\n{torch.get_num_threads()} threads.")


if __name__ == "__main__":
    main()
