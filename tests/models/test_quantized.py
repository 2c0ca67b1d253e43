"""Weights in 4 bits: what is computed, kept and exported is that of the weights that bitsandbytes dequantizes."""

import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from torch import nn
from transformers.pytorch_utils import Conv1D

from aira.config.schema import Lora
from aira.models.export import export
from aira.models.loading import load_model, load_tokenizer
from aira.models.weights import weights_hash

CAUSAL, ENCODER = "pkg://aira.models/tiny/causal", "pkg://aira.models/tiny/encoder"
SHAPES = {
    "gpt2": (CAUSAL, {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 256}),
    "llama": (
        CAUSAL,
        {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 160}
        | {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "bert": (
        ENCODER,
        {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128}
        | {"num_attention_heads": 4},
    ),
}
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules="all-linear")


def load(name, lora=LORA, head=None, **settings):
    path, shape = SHAPES[name]
    architecture = "encoder" if name == "bert" else "causal"
    head = head or ("score" if name == "bert" else "lm")
    tokenizer, added = load_tokenizer(path, architecture=architecture, head=head)
    torch.manual_seed(0)
    given = {"architecture": architecture, "head": head, "label": "reward", "config": shape, "lora": lora}
    return load_model(path, tokenizer, added, **given | settings), tokenizer


def rounded(model):
    """The weights of the backbone's linear layers rounded to NF4 by bitsandbytes itself, in blocks along the inputs."""
    for module in model.base_model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            weight = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
            packed, state = quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
            weight = dequantize_4bit(packed, state).to(weight.dtype)
            module.weight.data = (weight.T if isinstance(module, Conv1D) else weight).contiguous()
    return model


def with_adapters(model):
    torch.manual_seed(1)
    for _, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.05)
    return model


def outputs_of(model):
    ids = torch.arange(5, 29).reshape(2, 12)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize(
    "name, head, lora",
    [
        ("gpt2", "lm", LORA),
        ("gpt2", "lm", LORA.model_copy(update={"use_dora": True})),
        ("llama", "lm", LORA),
        ("llama", "score", LORA),
        ("bert", "score", LORA),
    ],
)
def test_it_is_the_model_of_rounded_weights(tmp_path, name, head, lora):
    """Catches another rounding, gradients through other weights than the output, or a merge that rounds."""
    from peft import LoraConfig, get_peft_model

    ours, tokenizer = load(name, lora, head, load_in_4bit=True)
    found = with_adapters(ours).base_model.model
    assert sum(type(one).__name__ == "Linear4Bit" for one in found.modules()) > 7
    settings = ours.peft_config["default"].to_dict() | {"fan_in_fan_out": name == "gpt2"}
    settings = {key: settings[key] for key in ("r", "lora_alpha", "use_dora", "fan_in_fan_out", "task_type",
                                               "target_modules", "trainable_token_indices")}  # fmt: skip
    theirs = with_adapters(get_peft_model(rounded(load(name, None, head)[0]), LoraConfig(**settings)))
    trained = {key: one for key, one in theirs.named_parameters() if one.requires_grad}
    assert trained.keys() == {key for key, one in ours.named_parameters() if one.requires_grad}
    expected, logits = outputs_of(theirs), outputs_of(ours)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    (expected**2).sum().backward()
    (logits**2).sum().backward()
    for key, one in trained.items():
        scale = one.grad.abs().max().clamp(min=1e-6)  # tokens that are not read have none
        torch.testing.assert_close(ours.get_parameter(key).grad / scale, one.grad / scale, atol=1e-5, rtol=0)
    export(ours, tokenizer, tmp_path / "export", "card")
    given = {"architecture": "encoder" if name == "bert" else "causal", "head": head, "label": "reward"}
    again = load_model(str(tmp_path / "export"), tokenizer, [], **given)
    torch.testing.assert_close(outputs_of(again), expected, atol=1e-5, rtol=1e-5)


def test_its_state_is_restored():
    """Catches 4-bit weights that are read with the scales of others, or not at all; and a hash that overlooks them."""
    model, _ = load("llama", load_in_4bit=True)
    with torch.no_grad():
        expected = outputs_of(with_adapters(model))
    path, shape = SHAPES["llama"]
    tokenizer, added = load_tokenizer(path)
    torch.manual_seed(5)
    other = load_model(path, tokenizer, added, config=shape, lora=LORA, load_in_4bit=True)
    assert weights_hash(other) != weights_hash(model)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(other), expected, atol=0, rtol=0)
    assert weights_hash(other) == weights_hash(model)


def test_evaluation_computes_what_training_does():
    """Catches weights that are packed anew, or products in another precision, once the model is not trained."""
    model, _ = load("llama", load_in_4bit=True)
    with_adapters(model)
    training = outputs_of(model).detach()
    with torch.no_grad():
        torch.testing.assert_close(outputs_of(model.eval()), training, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(outputs_of(model.train()).detach(), training, atol=0, rtol=0)
