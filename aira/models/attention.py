"""Attention over packed rows: each tree by itself, so no mask of the whole row and no work between trees."""

from dataclasses import dataclass, field
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


@dataclass
class Trees:
    """A packed row, as its attention sees it.

    Attributes:
        spans: the row's trees, which cover it without a gap.
        positions: [T] of its tokens.
        cached: keys and values of tokens that stand before every tree, or None.
    """

    spans: list[Span]
    positions: Tensor
    cached: Cached | None = None
    windows: dict[int, list[Tensor | None]] = field(default_factory=dict)  # what `masks` has made

    def masks(self, window: int | None) -> list[Tensor | None]:
        """For each tree who attends to whom, as `Span.mask`, where nobody looks further back than a window.

        Args:
            window: positions, a token's own among them; None for no limit.
        """
        whole = [span.mask for span in self.spans]
        if window is None:
            return whole
        if window not in self.windows:
            before = torch.arange(
                0 if self.cached is None else self.cached[0][0].shape[2], device=self.positions.device
            )
            made: list[Tensor | None] = []
            for mask, span in zip(whole, self.spans, strict=True):
                positions = self.positions[span.start : span.end]
                distance = positions[:, None] - torch.cat([before, positions])[None]
                near = distance < window
                if not bool(near.all()):
                    mask = near & (distance >= 0 if mask is None else mask[0, 0])
                    mask = mask[None, None]
                made.append(mask)
            self.windows[window] = made
        return self.windows[window]


def product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    scaling: float | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention, of which scores may be capped or share their probability with a sink.

    Args:
        query: [batch, heads, T, head size].
        key: [batch, key heads, S, head size]; with fewer key heads, each serves a group of query heads.
        value: like `key`.
        mask: [batch or 1, 1, T, S] bool, True where attended; None: causal.
        softcap: scores s become softcap * tanh(s / softcap), as in Gemma 2 (2024, section 2).
        sinks: [heads] scores that are attended to by all and have no value, as in gpt-oss.

    Returns:
        [batch, heads, T, head size].
    """
    if softcap is None and sinks is None:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril(key.shape[2] - query.shape[2])
    scores = scores.float().masked_fill(~mask, torch.finfo(torch.float32).min)
    if sinks is not None:
        beside = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, beside], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return torch.dropout(weights.to(value.dtype), dropout, train=dropout > 0) @ value


def trees_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    trees: Trees | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of Transformers that runs `product` once a tree.

    Args:
        module: the attention layer.
        query: [1, heads, T, head size].
        key: [1, key heads, T, head size].
        value: like `key`.
        attention_mask: used only where there are no trees, as when generating.
        dropout: probability.
        scaling: factor on the scores; None for 1 / sqrt(head size).
        sliding_window, softcap, s_aux: a layer's window by position; see `Trees.masks` and `product`.
        trees: the row.

    Returns:
        [1, T, heads, head size], and None for the attention weights.
    """
    special: dict[str, Any] = {"softcap": softcap, "sinks": s_aux}
    if trees is None:
        if softcap is None and s_aux is None:
            found: Tensor
            found, _ = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
            return found, None
        made = product(query, key, value, attention_mask, dropout=dropout, scaling=scaling, **special)
        return made.transpose(1, 2).contiguous(), None
    # split, and not slices: the gradient of each slice would be as long as the row
    lengths = [span.end - span.start for span in trees.spans]
    queries, keys, values = (list(torch.split(states, lengths, dim=2)) for states in (query, key, value))
    if trees.cached is not None:
        before = trees.cached[int(module.layer_idx)]  # type: ignore[arg-type]
        keys, values = ([torch.cat([old, new], 2) for new in parts] for old, parts in zip(before, (keys, values)))
    parts = [
        product(q, k, v, mask, dropout=dropout, scaling=scaling, **special)
        for q, k, v, mask in zip(queries, keys, values, trees.masks(sliding_window), strict=True)
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
    for start, end, inner, *_ in trees:
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
