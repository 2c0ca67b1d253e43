"""Log-likelihood benchmarks: lm-evaluation-harness's own Hugging Face model and Aira's on the same requests.

    python benchmarks/evaluation.py [--tasks arc_challenge truthfulqa_mc2 toxigen] [--limit 12] [--repeat 3] [--quick]

SmolLM2-135M-Instruct in float32, the harness's tasks on the first rows of the files in the data folder, ARC with 25
examples before each question. Every run is a process of its own, and the runs take turns. A run's time is that of the
harness's ``loglikelihood`` (tokenizing included, loading not), its memory the peak of the process during it. The
harness runs at each of ``--batch-sizes``, and its fastest stands in the table.
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
from common import interleave, release_freed_pages, reset_peak, resident, run_child
from study import DATA, ROOT, save_smollm2, save_tiny_llama

sys.path.insert(0, str(ROOT))
SHOTS = {"arc_challenge": 25}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from aira.evaluation.harness import PackedLM
    from aira.evaluation.tasks import harness_task
    from aira.models.loading import load_model, load_tokenizer

    tokenizer, added = load_tokenizer(arguments.folder, template=None)
    contender, _, batch_size = arguments.child.partition("-")
    attention = "trees" if contender == "aira" else "sdpa"
    model = load_model(arguments.folder, tokenizer, added, attn_implementation=attention).eval()
    if contender == "aira":
        lm = PackedLM(model, tokenizer, arguments.tokens_per_row)
    else:
        lm = HFLM(model, tokenizer=tokenizer, backend="causal", batch_size=int(batch_size))
    kept: dict[str, Any] = {}
    plain = lm.loglikelihood

    def timed(requests: list[Any], **settings: Any) -> list[Any]:
        release_freed_pages()
        reset_peak()
        before, start = resident("VmRSS"), time.perf_counter()
        answers = plain(requests, **settings)
        kept.update(seconds=time.perf_counter() - start, peak=resident("VmHWM") - before, answers=answers)
        return answers

    lm.loglikelihood = timed
    manager = TaskManager()
    task = harness_task(arguments.task, SHOTS.get(arguments.task), str(DATA), manager)
    found = simple_evaluate(lm, tasks=[task], limit=arguments.limit, task_manager=manager, bootstrap_iters=0)
    figures = {name.removesuffix(",none"): v for name, v in found["results"][arguments.task].items() if ",none" in name}
    figures = {name: value for name, value in figures.items() if isinstance(value, float) and "stderr" not in name}
    return kept | {"figures": figures, "tokens_per_second": len(kept["answers"]) / kept["seconds"]}


def line(task: str, runs: dict[str, list[dict[str, Any]]]) -> str:
    seconds = {name: statistics.median(run["seconds"] for run in repeated) for name, repeated in runs.items()}
    best = min((name for name in runs if name != "aira"), key=seconds.__getitem__)
    ours, theirs = runs["aira"][0], runs[best][0]
    differences = [abs(a - b) for (a, _), (b, _) in zip(ours["answers"], theirs["answers"], strict=True)]
    same = ", ".join(f"{name} {value:.4f} / {ours['figures'][name]:.4f}" for name, value in theirs["figures"].items())
    cells = [
        task,
        str(len(differences)),
        f"{seconds[best]:.1f} ({best})",
        f"{seconds['aira']:.1f}",
        f"{seconds[best] / seconds['aira']:.2f}",
        f"{theirs['peak'] / 1e6:.0f}",
        f"{ours['peak'] / 1e6:.0f}",
        f"{max(differences):.1e}",
        same,
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["arc_challenge", "truthfulqa_mc2", "toxigen"])
    parser.add_argument("--limit", type=int, default=12, help="questions of each task; ToxiGen takes ten times as many")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--tokens-per-row", type=int, default=1024, help="Aira's eval.tokens_per_row")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny random model")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run(arguments)))
        return
    print("| task | requests | harness, s | Aira, s | ratio | harness, MB | Aira, MB | max difference | figures |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (save_tiny_llama if arguments.quick else save_smollm2)(folder)
        for task in arguments.tasks:
            limit = arguments.limit * (10 if task == "toxigen" else 1)
            given = ["--folder", folder, "--task", task, "--limit", str(limit)]
            given += ["--tokens-per-row", str(arguments.tokens_per_row)]
            contenders = [*(f"harness-{size}" for size in arguments.batch_sizes), "aira"]
            runs = interleave(
                contenders,
                arguments.repeat,
                lambda name, to=given: run_child(Path(__file__).resolve(), ["--child", name, *to]),
            )
            print(line(task, runs), flush=True)
    print(f"\n{torch.get_num_threads()} threads.")


if __name__ == "__main__":
    main()
