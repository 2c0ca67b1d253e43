"""Memory of a run, from shapes alone: weights, gradients, optimizer state, and what autograd keeps of a row."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from aira.config.schema import Model, Optimizer
from aira.methods.optimizers import make_optimizer
from aira.models.forward import unwrap
from aira.models.loading import prepare_config
from aira.models.lora import add_lora


def _state_bytes(weight: Tensor, name: str, muon: set[int]) -> int:
    """What an optimizer keeps of a weight, in bytes, beside the number of its steps."""
    count, size = weight.numel(), weight.element_size()
    if name == "adafactor":  # the squares' sums of rows and columns; of a vector, all squares
        return size * (sum(weight.shape[-2:]) if weight.dim() > 1 else count)
    if name == "adamw-8bit" and count >= 4096:  # below, bitsandbytes keeps float32
        return 2 * count + 2 * 4 * -(-count // 256)  # two moments, and a float32 for each 256 numbers of each
    if name == "adamw-8bit":
        return 2 * 4 * count
    return size * count * (1 if id(weight) in muon else 2)


def _bytes_4bit(count: int) -> int:
    """What a layer holds of as many weights in 4 bits: 8-bit scales of blocks of 64, a float32 for 256 scales, tables.

    The tables are the 16 numbers and the 256 scales that there are, and the mean of the scales, in float32.
    """
    return -(-count // 2) + -(-count // 64) + 4 * -(-count // (64 * 256)) + 4 * (16 + 256 + 1)


def weight_memory(
    model: nn.Module, optimizer: Optimizer, *, mixed: bool = False, in_4bit: bool = False
) -> dict[str, int]:
    """Bytes of weights, of their casts under autocast, of gradients and of the optimizer's state.

    Args:
        model: may be without memory, on the meta device or of fake tensors.
        in_4bit: count the frozen linear layers of the backbone, which the model has as others, in 4 bits.
    """
    stepping: Any = make_optimizer(model, optimizer, False) if optimizer.name == "muon" else None
    muon = {id(weight) for group in stepping.parts[0].param_groups for weight in group["params"]} if stepping else set()
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    layers = unwrap(model).base_model.modules() if in_4bit else ()
    linear = [layer.weight for layer in layers if isinstance(layer, (nn.Linear, Conv1D))]
    packed = {id(weight): _bytes_4bit(weight.numel()) for weight in linear if not weight.requires_grad}
    floats = sum(weight.numel() * weight.element_size() for weight in weights if id(weight) not in packed)
    return {
        "weights": floats + sum(packed.values()),
        "casts": floats // 2 if mixed else 0,
        "gradients": sum(weight.numel() * weight.element_size() for weight in trained),
        "state": sum(_state_bytes(weight, optimizer.name, muon) for weight in trained),
    }


def run_memory(
    config: PretrainedConfig, model: Model, optimizer: Optimizer, precision: str, head: str, rows: int, tokens: int
) -> dict[str, int]:
    """Bytes that a run holds of a model and, between the forward and the backward pass, of a row.

    Args:
        config: of the backbone; no weight is read.
        model: settings of conf/model.
        precision: as in conf/trainer, but for `auto`.
        head: `lm` or `score`.
        rows, tokens: of the largest forward pass; a packed row is one row.

    Returns:
        As of `weight_memory`, and `activations`: without the temporaries of a layer and of the head.
    """
    auto: Any = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
    prepare_config(config, model.dropout)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    with torch.device("meta"):
        network = auto.from_config(config, dtype=dtype)
        if model.gradient_checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        if model.lora.r:
            network = add_lora(network, model.lora, [], head).to(dtype)
    backbone = unwrap(network.train()).base_model
    found = weight_memory(network, optimizer, mixed=half is not None, in_4bit=model.load_in_4bit)
    activations = _kept(backbone, rows, tokens, half)
    if half:
        activations -= _kept(backbone, rows, 1, half)  # the casts, which autograd keeps with them
    return found | {"activations": activations}


def _kept(backbone: nn.Module, rows: int, tokens: int, half: torch.dtype | None) -> int:
    """Bytes that autograd keeps of a forward pass, beside the weights.

    Args:
        backbone: on the meta device.
        half: what it computes in, in place of the type of its weights.
    """
    with FakeTensorMode():  # of a CPU, and not meta, for which attention would be another kernel
        tensors = (*backbone.named_parameters(), *backbone.named_buffers())
        state = {
            name: torch.empty(one.shape, dtype=one.dtype, requires_grad=one.requires_grad) for name, one in tensors
        }
        owned = [tensor.untyped_storage() for tensor in state.values()]
        kept = {id(storage): storage for storage in owned}  # all alive, so that no two have one address

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[id(storage)] = storage
            return tensor

        casts = torch.autocast("cpu", half, cache_enabled=False) if half else contextlib.nullcontext()
        with saved_tensors_hooks(keep, lambda tensor: tensor), casts:
            inputs = {"input_ids": torch.zeros(rows, tokens, dtype=torch.long)}
            torch.func.functional_call(backbone, state, kwargs=inputs)
    return sum(storage.nbytes() for storage in kept.values()) - sum(storage.nbytes() for storage in owned)
