"""Trains a method whose loss needs a statistic of its batch, and writes the first gradients: a script for torchrun.

torchrun --nproc_per_node 2 -m tests.methods.baseline <ddp|fsdp> <tokens_per_row> <folder> <file to write>
"""

import json
import os
import sys
from pathlib import Path

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from aira.methods.base import Method
from aira.models.forward import branch_log_probs
from aira.models.loading import load_model, load_tokenizer
from tests.methods.fitting import CONSTANT, OPTIMIZER, Recorder, fit

TINY = "pkg://aira.models/tiny/causal"
SHAPE = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 256}
BETA = 0.01
ROWS = [
    {"prompt": f"What is {i} + 3?", "chosen": f"{i} + 3 is {i + 3}." + " Yes." * (i % 4), "rejected": "No. " * (20 - i)}
    for i in range(9)
]
STRATEGIES = {"one": lambda: "auto", "ddp": lambda: "ddp"}
STRATEGIES["fsdp"] = lambda: ModelParallelStrategy(save_distributed_checkpoint=False)


def losses(chosen, rejected, baseline):
    """[P] of KTO's shape (Ethayarajh et al., 2024, eq. 8), with log-probs [P] in place of log-ratios."""
    return 2 - torch.sigmoid(BETA * (chosen - baseline)) - torch.sigmoid(BETA * (baseline - rejected))


class Baseline(Method):
    """Compares log-probs with the mean over the batch of log pi(chosen) - log pi(rejected), which is at least 0."""

    unit = "examples"

    def row_statistics(self, row):
        summed, _ = branch_log_probs(self.model, row)
        return {"difference": (summed[0::2] - summed[1::2]).sum(), "pairs": summed.new_tensor(len(summed) / 2)}

    def row_loss(self, row, totals):
        summed, _ = branch_log_probs(self.model, row)
        assert summed.requires_grad == self.training
        baseline = max(0.0, totals["difference"] / totals["examples"])
        difference = (summed[0::2] - summed[1::2]).detach().sum()
        reported = {"difference": difference, "baseline": summed.new_tensor(baseline * len(summed) / 2)}
        return losses(summed[0::2], summed[1::2], baseline).sum(), reported


class Gradients(Recorder):
    """Keeps the gradients before each step, too."""

    def __init__(self):
        super().__init__()
        self.gradients = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append(
            {
                name.removeprefix("model."): p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()
                for name, p in module.named_parameters()
            }
        )


def start(dropout=0.0):
    """The model, always from the same weights, and its tokenizer."""
    tokenizer, added = load_tokenizer(TINY)
    torch.manual_seed(0)
    return load_model(TINY, tokenizer, added, config=SHAPE, dropout=dropout), tokenizer


def train(strategy, tokens_per_row, folder, path, module=Baseline, dropout=0.0, **settings):
    """One step over all rows, and a validation on them with weights that have not moved."""
    model, tokenizer = start(dropout)
    module = module(model, OPTIMIZER.model_copy(update={"lr": 0.0, "max_grad_norm": 0.0}), CONSTANT)
    settings = {"steps": 1, "batch_size": len(ROWS), "validate": True, "recorder": Gradients(), **settings}
    settings |= {"strategy": STRATEGIES[strategy](), "devices": int(os.environ.get("LOCAL_WORLD_SIZE", 1))}
    budget = {"tokens_per_row": tokens_per_row, "loss_on": "response"}
    recorder, trainer, _ = fit(module, tokenizer, str(path), Path(folder), "preference", **settings, **budget)
    return recorder, {name: float(value) for name, value in trainer.callback_metrics.items()}


def main():
    strategy, tokens_per_row, folder, output = sys.argv[1:]
    torch.set_num_threads(1)
    recorder, metrics = train(strategy, int(tokens_per_row), folder, Path(folder) / "rows")
    if os.environ.get("RANK", "0") == "0":
        torch.save(recorder.gradients[0], output)
        Path(output).with_suffix(".json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main()
