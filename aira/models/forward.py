"""The forward pass over a row, packed or padded: hidden states, log-probs, scores, keys and values to go on from."""

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from aira.data.trees import Row
from aira.errors import AiraError, reason_of
from aira.models.attention import Cached, Trees, added_mask, dense_mask
from aira.models.head import branch_sums, lm_head, log_probs


def device_of(name: str) -> str:
    """Where a model runs that `device` names.

    Raises:
        AiraError: there is no such device.
    """
    if name == "auto":
        return f"cuda:{os.environ.get('LOCAL_RANK') or 0}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise AiraError(f"device={name}: {reason_of(error)} (device=cpu runs everywhere.)") from error
    return name


def unwrap(model: Any) -> PreTrainedModel:
    """The Transformers model inside a `peft.PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


Prefix = Cached | list[int]
"""Tokens that many trees begin with: keys and values, or where rows are not packed the tokens themselves."""


@torch.no_grad()
def keys_and_values(model: nn.Module, tokens: list[int]) -> Prefix:
    """What the attention layers of a causal model make of tokens that many trees begin with."""
    if not packs(model):
        return tokens
    backbone = unwrap(model).base_model
    cache = DynamicCache()
    backbone(
        input_ids=torch.tensor([tokens], device=backbone.device), use_cache=True, **_cache_argument(backbone, cache)
    )
    return [(layer.keys, layer.values) for layer in cache.layers]


def _cache_argument(backbone: PreTrainedModel, cache: DynamicCache) -> dict[str, DynamicCache]:
    """The cache under the name that this release of Transformers has for it: `past_key_values`, then `cache`."""
    new = "cache" in inspect.signature(backbone.forward).parameters
    return {"cache" if new else "past_key_values": cache}


def packs(model: nn.Module) -> bool:
    """Whether the model reads trees packed into one row; if not, each branch is read in a sequence of its own."""
    return getattr(unwrap(model), "packs_trees", True)


def _separately(backbone: nn.Module, row: Row, before: list[int]) -> Tensor:
    """[T, hidden size] of a packed row's tokens, from a padded sequence for each branch, with its prefix."""
    assert row.spans is not None
    branches = [  # places in the row
        [span.start + place for run in runs for place in range(*run)] for span in row.spans for runs in span.branches
    ]
    device, count = row.input_ids.device, len(before)
    width = count + max(map(len, branches))
    ids = row.input_ids.new_zeros(len(branches), width)
    ids[:, :count] = torch.tensor(before, dtype=torch.long, device=device)
    source = torch.empty(row.input_ids.shape[1], dtype=torch.long)
    for i, places in enumerate(branches):
        ids[i, count : count + len(places)] = row.input_ids[0, places]
        source[places] = i * width + count + torch.arange(len(places))
    lengths = torch.tensor([count + len(places) for places in branches], device=device)
    mask = (torch.arange(width, device=device) < lengths[:, None]).long()
    hidden: Tensor = backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[source.to(device)]


def hidden_states(model: nn.Module, row: Row, cached: Prefix | None = None) -> Tensor:
    """Run the backbone, without its head, over a row.

    Args:
        cached: of the tokens that `aira.data.trees.pack` left out, from `keys_and_values`; not for `sdpa`.

    Returns:
        [R * T, hidden size], in the order that `Row.source` and `Row.end` count in.
    """
    backbone = unwrap(model).base_model
    if row.spans is not None and not packs(model):
        return _separately(backbone, row, [int(token) for token in cached or ()])  # type: ignore[arg-type]
    arguments: dict[str, Any] = {"attention_mask": row.attention_mask}
    if row.spans is not None:
        assert cached is None or not isinstance(cached[0], int)
        arguments = {"position_ids": row.position_ids, "use_cache": False}
        if backbone.config._attn_implementation == "trees":
            # Transformers passes a 4-D mask on untouched: an empty one keeps it from building one for the row
            assert row.position_ids is not None
            trees = Trees(row.spans, row.position_ids[0], cached)
            arguments |= {"trees": trees, "attention_mask": row.input_ids.new_empty((1, 1, 0, 0))}
        elif backbone.config._attn_implementation == "eager":
            before = cached[0][0].shape[2] if cached else 0
            arguments["attention_mask"] = added_mask(dense_mask(row.spans, row.input_ids.device, before))
            if cached:
                arguments |= _cache_argument(backbone, DynamicCache(cached))
        else:
            arguments["attention_mask"] = dense_mask(row.spans, row.input_ids.device)
    elif row.token_type_ids is not None:
        arguments["token_type_ids"] = row.token_type_ids
    hidden: Tensor = backbone(input_ids=row.input_ids, **arguments).last_hidden_state
    return hidden.flatten(0, 1)


@contextlib.contextmanager
def neftune(model: nn.Module, row: Row, alpha: float) -> Iterator[None]:
    """Add noise to a packed row's embeddings while it is read (NEFTune, Jain et al., 2023, algorithm 1).

    The noise is uniform in +-alpha / sqrt(L * d), with the width d of the embeddings. L is the number of tokens of the
    token's own tree: for a prompt and its answer the length of the example, as in the paper. What else is in the row
    changes nothing.

    Args:
        alpha: 5, 10 and 15 in the paper; 0 adds none.
    """
    if not alpha:
        yield
        return
    assert row.spans is not None
    trees = torch.tensor([span.end - span.start for span in row.spans])
    counts = torch.tensor([n if packs(model) else len(span.branches) for n, span in zip(trees.tolist(), row.spans)])
    lengths = trees.repeat_interleave(counts).to(row.input_ids.device)
    lengths = lengths[None, :, None] if packs(model) else lengths[:, None, None]

    def noisy(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        bound = alpha / (lengths * embedded.shape[-1]).sqrt()
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * bound.to(embedded.dtype)

    hook = unwrap(model).get_input_embeddings().register_forward_hook(noisy)
    try:
        yield
    finally:
        hook.remove()


def branch_log_probs(model: nn.Module, row: Row) -> tuple[Tensor, Tensor]:
    """The likelihood of a row's branches, by a language model.

    Returns:
        [B] log-probs in nats, summed over scored tokens, in float32; and [B] the number of these tokens.
    """
    values = log_probs(hidden_states(model, row)[row.source], row.target, lm_head(unwrap(model)))
    summed, lengths = (branch_sums(each, row.branch, len(row.end)) for each in (values, torch.ones_like(values)))
    return summed, lengths


def scores(model: nn.Module, row: Row) -> Tensor:
    """Score every branch of a row: a causal model reads its last token, an encoder pools as its architecture does.

    Returns:
        [B] float32.
    """
    network = unwrap(model)
    if row.spans is not None:
        found: Tensor = network.score(hidden_states(model, row)[row.end])
    else:
        segments = {} if row.token_type_ids is None else {"token_type_ids": row.token_type_ids}
        found = network(input_ids=row.input_ids, attention_mask=row.attention_mask, **segments).logits
    return found[:, 0].float()
