"""Memory of weights, gradients and optimizer state, from shapes alone: python benchmarks/memory.py

Models are built without memory (on the meta device); the optimizer says which of its parts each weight is for.
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from aira.config.schema import Lora, Optimizer
from aira.methods.optimizers import make_optimizer
from aira.models.lora import add_lora

MODELS = {
    "opt-1b3": {
        **{"model_type": "opt", "num_hidden_layers": 24, "hidden_size": 2048, "ffn_dim": 8192},
        **{"num_attention_heads": 32, "word_embed_proj_dim": 2048, "vocab_size": 50272},
    },
    "tinyllama-1b1": {
        **{"model_type": "llama", "num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632},
        **{"num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False},
    },
    "gpt2-1b5": {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25},
}
"""As in the config.json of each on the hub."""

LORA = Lora(r=16, alpha=16, dropout=0.0, target_modules="all-linear")
SETTINGS = [
    *((precision, name) for precision in ("32-true", "bf16-mixed", "bf16-true") for name in
      ("adamw", "adamw-8bit", "adafactor", "muon")),
    ("32-true, LoRA", "adamw"),
    ("bf16-true, LoRA", "adamw"),
]  # fmt: skip


def built(shape: dict, lora: bool, dtype: torch.dtype, device: str = "meta") -> nn.Module:
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.float32)
        if lora:
            model = add_lora(model, LORA, [], "lm")
    return model.to(dtype)


def state_bytes(weight: torch.Tensor, name: str, muon: set[int]) -> int:
    """What an optimizer keeps of a weight, in bytes, beside the number of its steps."""
    count, size = weight.numel(), weight.element_size()
    if name == "adafactor":  # the squares' sums of rows and columns; of a vector, all squares
        return size * (sum(weight.shape[-2:]) if weight.dim() > 1 else count)
    if name == "adamw-8bit" and count >= 4096:  # below, bitsandbytes keeps float32
        return 2 * count + 2 * 4 * -(-count // 256)  # two moments, and a float32 for each 256 numbers of each
    if name == "adamw-8bit":
        return 2 * 4 * count
    return size * count * (1 if id(weight) in muon else 2)


def estimate(model: nn.Module, name: str, mixed: bool = False) -> dict[str, int]:
    """Bytes of weights, of their casts under autocast, of gradients and of the optimizer's state."""
    settings = Optimizer(
        name=name, lr=1e-3, weight_decay=0.0, betas=[0.9, 0.999], eps=1e-8, momentum=0.95, max_grad_norm=1.0
    )
    muon: set[int] = set()
    if name == "muon":
        optimizer = make_optimizer(model, settings, fused=False)
        muon = {id(weight) for group in optimizer.parts[0].param_groups for weight in group["params"]}
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    whole = sum(weight.numel() * weight.element_size() for weight in weights)
    return {
        "weights": whole,
        "casts": whole // 2 if mixed else 0,
        "gradients": sum(weight.numel() * weight.element_size() for weight in trained),
        "state": sum(state_bytes(weight, name, muon) for weight in trained),
    }


def main() -> None:
    print(f"| precision | optimizer | {' | '.join(MODELS)} |\n|---|---|{'--:|' * len(MODELS)}")
    for setting, name in SETTINGS:
        cells = []
        for shape in MODELS.values():
            model = built(shape, "LoRA" in setting, torch.bfloat16 if "bf16-true" in setting else torch.float32)
            parts = estimate(model, name, "mixed" in setting)
            cells.append(f"{sum(parts.values()) / 1e9:.1f} ({parts['state'] / 1e9:.1f})")
        print(f"| {setting} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
