"""Frozen weights in 4 bits under LoRA, by bitsandbytes (QLoRA, Dettmers et al., 2023)."""

from typing import Any

import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class Linear4Bit(Linear4bit):  # type: ignore[misc]
    """A linear layer whose weight is NF4, in blocks of 64 with 8-bit scales.

    bitsandbytes' layer computes otherwise where it does not train (on a CPU), and cannot read its own state.
    """

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        weight = layer.weight.detach()
        self.transposed = isinstance(layer, Conv1D)
        if self.transposed:
            weight = weight.T.contiguous()
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta", quant_type="nf4")
        self.weight = Params4bit(weight, quant_type="nf4", module=self).to(weight.device)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """A product with the dequantized weight, which is not kept for the backward pass."""
        found: Tensor = matmul_4bit(x, self.weight, quant_state=self.weight.quant_state, bias=self.bias)
        return found

    def plain(self) -> nn.Module:
        """The layer of the kind that this one was made of, with the weight that it computes with."""
        state = self.weight.quant_state
        weight = dequantize_4bit(self.weight.data, state).to(state.dtype)
        outputs, inputs = weight.shape
        layer: Any = (
            Conv1D(outputs, inputs) if self.transposed else nn.Linear(inputs, outputs, bias=self.bias is not None)
        )
        layer.weight = nn.Parameter(weight.T.contiguous() if self.transposed else weight)
        layer.bias = self.bias
        return layer  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, meta: Any, *more: Any) -> None:
        start = f"{prefix}weight."
        statistics = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(start)}
        super()._load_from_state_dict(state, prefix, meta, *more)
        device = self.weight.device
        read = QuantState.from_dict({name.removeprefix("weight."): one for name, one in statistics.items()}, device)
        self.weight.quant_state = self.quant_state = read


def quantize(model: PreTrainedModel) -> None:
    """Make the linear layers of the backbone 4-bit ones, in place; embeddings, norms and heads stay as they are."""
    _replace(model.base_model, (nn.Linear, Conv1D), Linear4Bit)
    model.is_loaded_in_4bit = True  # PEFT asks for it


def dequantize(model: PreTrainedModel) -> None:
    """Undo `quantize`, with the weights that the 4-bit layers compute with."""
    _replace(model.base_model, (Linear4Bit,), Linear4Bit.plain)
    model.is_loaded_in_4bit = False


def _replace(root: nn.Module, kinds: tuple[type[nn.Module], ...], made: Any) -> None:
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kinds):
                with torch.no_grad():
                    setattr(parent, name, made(child))
