"""Trains each method in each way on one strategy, and writes what was logged: a script for torchrun, or alone.

python -m tests.methods.combinations <one|ddp|fsdp> <tokens_per_row> <folder> <file to write> [<combination> …]
"""

import json
import os
import random
import sys
from itertools import product
from pathlib import Path

import torch
from pytorch_lightning.strategies import ModelParallelStrategy

from aira.config.schema import Lora
from aira.methods.dpo import DPO
from aira.methods.reward import Reward
from aira.methods.sft import SFT
from aira.methods.toxicity import Toxicity
from aira.models.loading import load_model, load_tokenizer
from tests.methods.fitting import CONSTANT, OPTIMIZER, Recorder, fit, write

PRECISIONS = ("32-true", "bf16-mixed")
WAYS = {"all": {}, "lora": {"lora": Lora(r=4, alpha=8, dropout=0.0, target_modules="all-linear")}}
WAYS["checkpointing"] = {"gradient_checkpointing": True}
KINDS = {"sft": "instruction", "dpo": "preference", "reward": "preference", "toxicity": "labelled"}
FAMILIES = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 256},
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
    },
}
COMBINATIONS = [
    " ".join(names) for names in product(KINDS, WAYS, FAMILIES, PRECISIONS) if names[1] == "all" or names[2] == "gpt2"
]
STRATEGIES = {"one": "auto", "ddp": "ddp", "fsdp": ModelParallelStrategy}
WORDS = ["the", "a", "moon", "sea", "is", "was", "red", "blue", "old", "new", "so", "and", "not"]
TINY = "pkg://aira.models/tiny/causal"


def make_data(folder: Path) -> None:
    """Three batches of a long example, six that fill more than half a row, and a short one: the ranks' rows differ."""
    draw = random.Random(0)

    def words(number: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(number))

    sizes = [52, *[32] * 6, 8] * 3
    rows = {
        "instruction": [{"prompt": words(4), "completion": words(size - 4)} for size in sizes],
        "preference": [
            {"prompt": words(2), "chosen": words(size // 4), "rejected": words(size - 2 - size // 4)} for size in sizes
        ],
        "labelled": [{"text": words(size), "label": i % 2} for i, size in enumerate(sizes)],
    }
    for kind, of_kind in rows.items():
        write(folder / kind, of_kind)


class Rows(Recorder):
    """Keeps the number of rows of each step, too."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.rows.append(batch.real_rows)


def train(method: str, way: str, family: str, precision: str, strategy: str, tokens_per_row: int, folder: Path):
    score = method in ("reward", "toxicity")
    tokenizer, added = load_tokenizer(TINY, head="score" if score else "lm")
    torch.manual_seed(0)
    head = {"head": "score", "label": "reward"} if score else {}
    model = load_model(TINY, tokenizer, added, config=FAMILIES[family], **head, **WAYS[way])
    optimizer = OPTIMIZER.model_copy(
        update={"eps": 1e-6}
    )  # where gradients cancel, Adam would divide rounding by itself
    settings = (model, optimizer, CONSTANT)
    if method == "dpo":
        module = DPO(*settings, tokenizer=tokenizer, cache_dir=str(folder / "cache" / f"{strategy}-{tokens_per_row}"))
    else:
        module = {"sft": SFT, "reward": Reward, "toxicity": Toxicity}[method](*settings)
    chosen = STRATEGIES[strategy]
    recorder, trainer, _ = fit(
        module,
        tokenizer,
        str(folder / KINDS[method]),
        folder / "cache",
        KINDS[method],
        batch_size=8,
        precision=precision,
        strategy=chosen if isinstance(chosen, str) else chosen(save_distributed_checkpoint=False),
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        recorder=Rows(),
        head="score" if score else "lm",
        tokens_per_row=tokens_per_row,
    )
    rows = [recorder.rows]
    if trainer.world_size > 1:
        rows = [[]] * trainer.world_size
        torch.distributed.all_gather_object(rows, recorder.rows)
    return {"loss": recorder.values("loss"), "grad_norm": recorder.values("grad_norm"), "rows": rows}


def main() -> None:
    strategy, tokens_per_row, folder, output, *chosen = sys.argv[1:]
    torch.set_num_threads(1)
    found = {name: train(*name.split(), strategy, int(tokens_per_row), Path(folder)) for name in chosen or COMBINATIONS}
    if os.environ.get("RANK", "0") == "0":
        Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
