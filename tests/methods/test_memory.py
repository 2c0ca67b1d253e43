"""The estimates of benchmarks/memory.py are what a small model and its optimizer hold after a step."""

import sys

import pytest
import torch

from aira.methods.optimizers import make_optimizer
from tests.conftest import ROOT
from tests.methods.fitting import OPTIMIZER

sys.path.insert(0, str(ROOT / "benchmarks"))

from memory import built, estimate

SHAPE = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 160, "vocab_size": 500}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}


def held(tensors):
    return sum(one.numel() * one.element_size() for one in tensors)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "adamw-8bit", "adafactor", "muon"])
def test_an_estimate_is_what_is_held(name, dtype, lora):
    """Catches a state of another type or size than its library keeps, to the byte but for counts of steps."""
    expected = estimate(built(SHAPE, lora, dtype), name)
    model = built(SHAPE, lora, dtype, "cpu")
    optimizer = make_optimizer(model, OPTIMIZER.model_copy(update={"name": name}), fused=False)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = {id(one): one for kept in optimizer.state.values() for key, one in kept.items()
             if torch.is_tensor(one) and key not in ("step", "qmap1", "qmap2")}  # fmt: skip
    assert expected["weights"] == held(model.parameters())
    assert expected["gradients"] == held(weight.grad for weight in trained)
    assert expected["state"] == held(state.values())
