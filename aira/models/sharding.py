"""Weights that are shared out over processes (PyTorch's FSDP2), and the whole model put together again."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from aira.models.forward import unwrap


def shard(module: nn.Module, model: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Shard weights over the ranks in place: each layer of `model` is a unit, and all else of `module` is one more.

    A unit's weights are gathered where it runs. What is computed in half precision is computed with weights that were
    cast before they were gathered; gradients are reduced in float32 after each backward pass (autocast, which casts
    inside of a unit, would keep those of its cached casts from being reduced in time).

    Args:
        module: what is called: `model`, or what has it inside.
        mesh: of one dimension.
        precision: Lightning's name, `32-true` or `bf16-mixed`.
    """
    half = torch.bfloat16 if precision == "bf16-mixed" else None
    # inputs stay as they are: a row's reference log-probs would lose their last digits
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in max((part for part in model.modules() if isinstance(part, nn.ModuleList)), key=len):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no values."""
    empty = {id(one): nn.Parameter(one.to("meta"), one.requires_grad) for one in model.parameters()}
    return copy.deepcopy(model, dict[int, Any](empty))


def with_weights(empty: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A copy of what `without_weights` gave, with the weights of `state`, which are not copied."""
    model = copy.deepcopy(empty)
    model.load_state_dict(state, assign=True)
    unwrap(model).tie_weights()
    return model
