"""Log-probs by a reference model: computed once, cached on disk, and shared by runs."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from aira.data.module import DataModule, Split
from aira.data.trees import Row
from aira.environment import versions
from aira.errors import AiraError
from aira.models.forward import branch_log_probs, unwrap
from aira.models.loading import load_model, load_tokenizer
from aira.models.template import speaks_aira


def load_reference(path: str, tokenizer: Any, model: nn.Module) -> nn.Module:
    """Load a reference model from a path.

    Args:
        path: like model.path.
        tokenizer, model: of the policy, which must have the same vocabulary.

    Raises:
        AiraError: there is no such model, or it has another vocabulary.
    """
    reference_tokenizer, added = load_tokenizer(path, template="aira" if speaks_aira(tokenizer) else "native")
    vocabulary, expected = reference_tokenizer.get_vocab(), tokenizer.get_vocab()
    if vocabulary != expected:
        differing = len(set(vocabulary.items()) ^ set(expected.items()))
        raise AiraError(
            f"method.reference={path}: its vocabulary is not that of model.path ({differing} tokens differ), so their "
            "log-probs cannot be compared. A reference is usually the model that the policy started from."
        )
    policy = unwrap(model)
    attention = policy.config._attn_implementation
    return load_model(path, reference_tokenizer, added, attn_implementation=attention).to(policy.dtype)


class Reference(nn.Module):
    """A reference model that is not the policy, as a module, so that its weights can be sharded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, row: Row) -> Tensor:
        """The [B] log-probs of a row's branches."""
        return branch_log_probs(self.model, row)[0]


def reference_key(model: str, precision: str, device: str, sharded: bool, split: Split) -> str:
    """The cache key of log-probs: a hash of the model, how it computes, and the tokenized data.

    Args:
        model: its `aira.models.weights.weights_hash`, computed before its weights are sharded.
        precision: Lightning's name of it.
        device: its type.
    """
    identity = (
        f"{model} {precision} {device} {sharded} {versions('torch', 'transformers')} {split.encoded._fingerprint}"
    )
    return hashlib.sha256(identity.encode() + split.index.tobytes()).hexdigest()[:32]


def reference_log_probs(
    compute: Callable[[Row], Tensor],
    model: str,
    sharded: bool,
    data: DataModule,
    split: Split,
    trainer: pl.Trainer,
    folder: Path,
    name: str,
) -> np.ndarray:
    """The summed log-prob of every branch of a split, from the cache if it was computed before.

    Each process computes its share, and the first one writes.

    Args:
        compute: returns the [B] log-probs of a row on the trainer's device; with sharded weights, all ranks call it
            equally often.
        model: the `aira.models.weights.weights_hash` of the model, needed in the first process only.
        sharded: whether its weights are sharded.
        folder: of the cache.
        name: of the split, for the progress bar.

    Returns:
        [examples, branches] float32.
    """
    key = reference_key(model, trainer.precision, trainer.strategy.root_device.type, sharded, split)
    file = folder / f"{key}.npy"
    cached = trainer.strategy.broadcast(_read(file) if trainer.is_global_zero else None)
    if cached is not None:
        return cached
    by_index: dict[int, list[float]] = {}
    for batch in tqdm(
        data.once(split), f"Reference log-probs, {name}", disable=not trainer.is_global_zero, leave=False
    ):
        sums = [compute(trainer.strategy.batch_to_device(row)) for row in batch.rows][: batch.real_rows]
        if sums:
            by_example = torch.cat(sums).reshape(len(batch.indices), -1)
            by_index |= zip(batch.indices, by_example.tolist(), strict=True)
    if trainer.world_size > 1:
        shares: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(shares, by_index)
        by_index = {index: values for share in shares for index, values in share.items()}
    result = np.array([by_index[int(index)] for index in split.index], dtype=np.float32)
    wrong = split.index[~np.isfinite(result).all(1)]
    if len(wrong):
        raise AiraError(
            f"The reference gives no number as the log-prob of {len(wrong)} of {len(result)} examples ({name}; the "
            f"first is row {wrong[0] + 1}). Try trainer.precision=32-true, or another reference."
        )
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.stem}.{os.getpid()}.npy")
        np.save(part, result)
        os.replace(part, file)
    return result


def _read(file: Path) -> np.ndarray | None:
    """A cached array; None if there is none, or it is damaged or not finite."""
    try:
        cached: np.ndarray = np.load(file)
        return cached if np.isfinite(cached).all() else None
    except (OSError, ValueError, EOFError):
        return None
