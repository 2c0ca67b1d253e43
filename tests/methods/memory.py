"""Measures what a process holds while DPO's reference runs with sharded weights: a script for torchrun.

torchrun --nproc_per_node 2 -m tests.methods.memory <folder> <file to write> [<reference>]
"""

import gc
import json
import sys
from pathlib import Path

import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from aira.methods.dpo import DPO
from aira.models.loading import load_model, load_tokenizer
from tests.methods.combinations import TINY
from tests.methods.fitting import CONSTANT, OPTIMIZER, fit

SHAPE = {"model_type": "gpt2", "n_layer": 16, "n_embd": 128, "n_head": 2, "n_positions": 256}


def held() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.device.type == "cpu"]
    storages = [(one.to_local() if isinstance(one, DTensor) else one).untyped_storage() for one in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def main() -> None:
    folder, output, *reference = sys.argv[1:]
    torch.set_num_threads(1)
    tokenizer, added = load_tokenizer(TINY)
    torch.manual_seed(0)
    model = load_model(TINY, tokenizer, added, config=SHAPE)
    whole, layer = (sum(p.numel() * 4 for p in part.parameters()) for part in (model, model.transformer.h[0]))
    module = DPO(
        model, OPTIMIZER, CONSTANT, tokenizer=tokenizer, cache_dir=f"{folder}/cache", reference=(reference or [None])[0]
    )
    seen: list[int] = []

    def look(*_):
        if len(seen) < 2 * SHAPE["n_layer"]:  # two rows; a look takes a second
            seen.append(held())

    for one in (module._reference[0].model if reference else model).transformer.h:
        one.register_forward_hook(look)
    del one
    recorder, trainer, _ = fit(
        module,
        tokenizer,
        f"{folder}/preference",
        Path(folder) / "cache",
        "preference",
        steps=1,
        strategy=ModelParallelStrategy(save_distributed_checkpoint=False),
        devices=2,
        tokens_per_row=64,
    )
    found: list = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, max(seen))
    if trainer.is_global_zero:
        text = json.dumps({"whole": whole, "layer": layer, "held": found, "loss": recorder.values("loss")[0]})
        Path(output).write_text(text)


if __name__ == "__main__":
    main()
