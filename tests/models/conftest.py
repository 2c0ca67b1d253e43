"""Small models of every verified architecture, with weights large enough that a wrong mask shows."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

SIZES = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
OPT = {"model_type": "opt", "num_hidden_layers": 2, "hidden_size": 64, "ffn_dim": 128, "num_attention_heads": 4}
CAUSAL = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 128},
    "opt": {**OPT, "word_embed_proj_dim": 64, "max_position_embeddings": 128},
    # opt-350m's shape: normalised after each block, embeddings of another width
    "opt-350m": {**OPT, "word_embed_proj_dim": 32, "max_position_embeddings": 128, "do_layer_norm_before": False},
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
    # a number of heads that is no power of 2 has slopes of two series
    "bloom": {"model_type": "bloom", "n_layer": 2, "hidden_size": 60, "n_head": 6, "initializer_range": 0.05},
}
ENCODERS = {
    "bert": {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128},
    "roberta": {"model_type": "roberta", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128},
}


def make(shape, auto, attn_implementation):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**SIZES, **shape})
    model = auto.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model.eval()


IMPLEMENTATIONS = [(name, how) for name in CAUSAL for how in (["eager"] if name == "bloom" else ["trees", "sdpa"])]


@pytest.fixture(params=IMPLEMENTATIONS, ids="-".join)
def causal(request):
    name, implementation = request.param
    return make(CAUSAL[name], AutoModelForCausalLM, implementation)


@pytest.fixture(params=ENCODERS)
def encoder(request):
    heads = {"num_attention_heads": 4}
    return make({**ENCODERS[request.param], **heads}, AutoModel, "sdpa")
