"""Memory of weights, gradients, optimizer state and activations, from shapes alone: python benchmarks/memory.py

Models are built without memory (on the meta device); the optimizer says which of its parts each weight is for.
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from aira.config.compose import compose_settings
from aira.config.schema import Lora, Optimizer, Train
from aira.methods.memory import run_memory, weight_memory
from aira.models.lora import add_lora

GPT2 = {"model_type": "gpt2"}
OPT = {"model_type": "opt", "vocab_size": 50272}
MODELS = {
    "gpt2-124m": {**GPT2, "n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-355m": {**GPT2, "n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-774m": {**GPT2, "n_layer": 36, "n_embd": 1280, "n_head": 20},
    "gpt2-1b5": {**GPT2, "n_layer": 48, "n_embd": 1600, "n_head": 25},
    "opt-125m": {**OPT, "num_hidden_layers": 12, "hidden_size": 768, "ffn_dim": 3072, "num_attention_heads": 12},
    "opt-350m": {
        **{**OPT, "num_hidden_layers": 24, "hidden_size": 1024, "ffn_dim": 4096, "num_attention_heads": 16},
        **{"word_embed_proj_dim": 512, "do_layer_norm_before": False},
    },
    "opt-1b3": {
        **{**OPT, "num_hidden_layers": 24, "hidden_size": 2048, "ffn_dim": 8192},
        **{"num_attention_heads": 32, "word_embed_proj_dim": 2048},
    },
    "tinyllama-1b1": {
        **{"model_type": "llama", "num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632},
        **{"num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False},
    },
    "smollm2-135m": {
        **{"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    },
}
"""As in the config.json of each on the hub."""

LARGE = ("opt-1b3", "tinyllama-1b1", "gpt2-1b5")
LORA = Lora(r=16, alpha=16, dropout=0.0, target_modules="all-linear")
SETTINGS = [
    *((precision, name) for precision in ("32-true", "bf16-mixed", "bf16-true") for name in
      ("adamw", "adamw-8bit", "adafactor", "muon")),
    ("32-true, LoRA", "adamw"),
    ("bf16-true, LoRA", "adamw"),
    ("bf16-true, LoRA, 4 bits", "adamw"),
]  # fmt: skip


def built(shape: dict, lora: bool, dtype: torch.dtype, device: str = "meta") -> nn.Module:
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=torch.float32)
        if lora:
            model = add_lora(model, LORA, [], "lm")
    return model.to(dtype)


def optimizer(name: str) -> Optimizer:
    return Optimizer(
        name=name, lr=1e-3, weight_decay=0.0, betas=[0.9, 0.999], eps=1e-8, momentum=0.95, max_grad_norm=1.0
    )


def activations(shape: dict, precision: str, tokens: int = 1024) -> float:
    """Bytes that autograd keeps of a token of a row."""
    model = compose_settings(Train, ["model=gpt2-tiny"]).model
    config = AutoConfig.for_model(**shape)
    return run_memory(config, model, optimizer("adamw"), precision, "lm", 1, tokens)["activations"] / tokens


def main() -> None:
    print("| model | float32, MB a token | bf16-mixed, MB a token | bf16-mixed, GB a row of 1024 |\n|---|--:|--:|--:|")
    for name, shape in MODELS.items():
        single, half = (activations(shape, precision) for precision in ("32-true", "bf16-mixed"))
        print(f"| {name} | {single / 1e6:.2f} | {half / 1e6:.2f} | {1024 * half / 1e9:.1f} |")
    print(f"\n| trainer.precision | optimizer | {' | '.join(LARGE)} |\n|---|---|{'--:|' * len(LARGE)}")
    for setting, name in SETTINGS:
        cells = []
        for shape in map(MODELS.get, LARGE):
            model = built(shape, "LoRA" in setting, torch.bfloat16 if "bf16-true" in setting else torch.float32)
            parts = weight_memory(model, optimizer(name), mixed="mixed" in setting, in_4bit="4 bits" in setting)
            cells.append(f"{sum(parts.values()) / 1e9:.1f} ({parts['state'] / 1e9:.1f})")
        print(f"| {setting} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
