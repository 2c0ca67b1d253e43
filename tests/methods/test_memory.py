"""Memory by shapes is what a small model, its optimizer and its activations hold."""

import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from aira.config.compose import compose_settings
from aira.config.schema import Train
from aira.data.trees import Tree, pack
from aira.methods.memory import run_memory, weight_memory
from aira.methods.optimizers import make_optimizer
from aira.models.forward import hidden_states
from aira.models.loading import load_config, load_model, load_tokenizer
from aira.models.lora import add_lora
from aira.models.quantized import Linear4Bit, quantize
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from memory import LORA, built, optimizer

TINY = "pkg://aira.models/tiny/causal"
SHAPE = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 160, "vocab_size": 500}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}


def held(tensors):
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "adamw-8bit", "adafactor", "muon"])
def test_an_estimate_is_what_is_held(name, dtype, lora):
    """Catches a state of another type or size than its library keeps, to the byte but for counts of steps."""
    expected = weight_memory(built(SHAPE, lora, dtype), optimizer(name))
    model = built(SHAPE, lora, dtype, "cpu")
    stepping = make_optimizer(model, optimizer(name), fused=False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.randn_like(weight)
    stepping.step()
    state = {id(one): one for kept in stepping.state.values() for key, one in kept.items()
             if torch.is_tensor(one) and key not in ("step", "qmap1", "qmap2")}  # fmt: skip
    assert expected["weights"] == held(model.parameters())
    assert expected["gradients"] == held(weight.grad for weight in trained)
    assert expected["state"] == held(state.values())


def test_an_estimate_of_4_bits_is_what_is_held():
    """Catches scales or tables that are not counted, to the byte."""
    expected = weight_memory(built(SHAPE, True, torch.bfloat16), optimizer("adamw"), in_4bit=True)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPE)).to(torch.bfloat16)
    quantize(model)
    adapted = add_lora(model, LORA, [], "lm").to(torch.bfloat16)
    found = held(adapted.parameters())
    for module in model.modules():
        if isinstance(module, Linear4Bit):
            state = module.weight.quant_state
            found += held((state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code))
    assert found == expected["weights"]


SHAPES = {
    "gpt2": {"model_type": "gpt2", "n_layer": 3, "n_embd": 64, "n_head": 2, "n_positions": 512},
    "opt": {"model_type": "opt", "num_hidden_layers": 3, "hidden_size": 64, "ffn_dim": 256, "word_embed_proj_dim": 64}
    | {"num_attention_heads": 2, "max_position_embeddings": 512},
    "llama": SHAPE,
    "gemma3": {"model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128}
    | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 512},
}


@pytest.mark.parametrize(
    "name, precision, model_settings",
    [
        *((name, "32-true", []) for name in SHAPES),
        ("gpt2", "bf16-true", []),
        ("llama", "bf16-mixed", ["model.lora.r=4"]),
        ("llama", "32-true", ["model.gradient_checkpointing=true"]),
    ],
)
def test_what_is_kept_of_a_row(name, precision, model_settings):
    """Catches activations that are not those of training, such as dropout's or those of an unfused activation."""
    model = compose_settings(Train, ["model=gpt2-tiny", *model_settings]).model
    tokenizer, added = load_tokenizer(TINY)
    ours = {"lora": model.lora, "gradient_checkpointing": model.gradient_checkpointing}
    network = load_model(TINY, tokenizer, added, config=SHAPES[name], **ours)
    if precision == "bf16-true":
        network = network.to(torch.bfloat16)
    owned = {one.untyped_storage().data_ptr() for one in network.parameters()}

    def kept(tokens):
        found, storages = {}, []
        row = pack([Tree((list(range(5, 5 + tokens)),), ([True] * tokens,))])

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                storages.append(storage)
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False),
        ):
            hidden_states(network, row)
        return sum(found.values())

    expected = kept(400) - (kept(1) if precision == "bf16-mixed" else 0)  # autograd keeps the weights' casts, too
    config, _ = load_config(TINY, len(tokenizer), config=SHAPES[name])
    found = run_memory(config, model, optimizer("adamw"), precision, "lm", 1, 400)
    assert found["activations"] == pytest.approx(expected, rel=0.1)
    assert found["weights"] == pytest.approx(held(network.parameters()), rel=0.01)  # rows of added tokens
