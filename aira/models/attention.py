"""Attention over packed rows: each tree by itself, so no mask of the whole row and no work between trees."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bloom.modeling_bloom import BloomModel, build_alibi_tensor

from aira.data.trees import Span

Cached = list[tuple[Tensor, Tensor]]
"""Of each layer: keys and values, [1, key heads, tokens, head size]."""


def trees_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    trees: list[Span] | None = None,
    cached: Cached | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of Transformers that runs `scaled_dot_product_attention` once a tree.

    Args:
        module: the attention layer.
        query: [1, heads, T, head size].
        key: [1, key heads, T, head size]; with fewer key heads, each serves a group of query heads.
        value: like `key`.
        attention_mask: used only where there are no trees, as when generating.
        dropout: probability.
        scaling: factor on the scores; None for 1 / sqrt(head size).
        trees: the row's trees, which cover it without a gap.
        cached: keys and values of tokens that stand before every tree.

    Returns:
        [1, T, heads, head size], and None for the attention weights.
    """
    if trees is None:
        found: Tensor
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found, None
    # split, and not slices: the gradient of each slice would be as long as the row
    lengths = [tree.end - tree.start for tree in trees]
    queries, keys, values = (list(torch.split(states, lengths, dim=2)) for states in (query, key, value))
    if cached is not None:
        before = cached[int(module.layer_idx)]  # type: ignore[arg-type]
        keys, values = ([torch.cat([old, new], 2) for new in parts] for old, parts in zip(before, (keys, values)))
    grouped = key.shape[1] != query.shape[1]
    parts = [
        scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=tree.mask,
            dropout_p=dropout,
            is_causal=tree.mask is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        for q, k, v, tree in zip(queries, keys, values, trees, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register("trees", trees_attention)
AttentionMaskInterface.register("trees", sdpa_mask)


def dense_mask(trees: list[Span], device: torch.device, cached: int = 0) -> Tensor:
    """The mask of a whole packed row for ordinary `sdpa`: [1, 1, T, cached + T] bool, True where attended.

    Args:
        trees: the row's trees.
        cached: number of tokens that stand before every tree.
    """
    length = trees[-1].end
    mask = torch.zeros(1, 1, length, cached + length, dtype=torch.bool, device=device)
    mask[..., :cached] = True
    for start, end, inner in trees:
        whole = torch.ones(end - start, end - start, dtype=torch.bool, device=device).tril()
        mask[:, :, start:end, cached + start : cached + end] = whole if inner is None else inner[..., cached:]
    return mask


def added_mask(mask: Tensor) -> Tensor:
    """A boolean mask as what `eager` attention adds to its scores: 0 where attended, else the lowest float32."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)


def alibi(self: BloomModel, mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """BLOOM's biases, linear in a key's position (Press et al., 2022), for packed rows too.

    BLOOM reads no position ids. A query's scores may be shifted by a constant, so a key's position in its own branch is
    all that counts; in a packed row that is the number of tokens that it attends to, itself left out.

    Args:
        mask: [batch, keys], 1 on real tokens, or from `added_mask`.

    Returns:
        [batch * heads, 1, keys].
    """
    if mask.dim() == 2:
        biases: Tensor = build_alibi_tensor(mask, heads, dtype)
        return biases
    queries, keys = mask.shape[2:]
    positions = torch.cat([torch.arange(keys - queries, device=mask.device), (mask == 0).sum(-1).flatten() - 1])
    slopes: Tensor = build_alibi_tensor(mask.new_ones(1, 2), heads, torch.float32)[:, :, 1:]
    return (slopes * positions).to(dtype)


BloomModel.build_alibi_tensor = alibi  # a method that Transformers calls with the mask as it was given
