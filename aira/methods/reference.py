"""Log-probs by a reference model: computed once, kept on disk, read by every run that needs the same."""

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
    """Load a reference from elsewhere.

    Args:
        path: as model.path.
        tokenizer, model: of the policy; the vocabulary must be the same.

    Raises:
        AiraError: there is no such model, or it has another vocabulary.
    """
    theirs, added = load_tokenizer(path, template="aira" if speaks_aira(tokenizer) else "native")
    if theirs.get_vocab() != tokenizer.get_vocab():
        differing = len(set(theirs.get_vocab().items()) ^ set(tokenizer.get_vocab().items()))
        raise AiraError(
            f"method.reference={path}: its vocabulary is not that of model.path ({differing} tokens differ), so their "
            "log-probs cannot be compared. A reference is mostly the model that the policy was made of."
        )
    return load_model(path, theirs, added, attn_implementation=unwrap(model).config._attn_implementation)


class Reference(nn.Module):
    """A reference of its own, called as a module so that its weights can be sharded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    def forward(self, row: Row) -> Tensor:
        """[B] log-probs of a row's branches."""
        return branch_log_probs(self.model, row)[0]


def reference_key(model: str, precision: str, device: str, sharded: bool, split: Split) -> str:
    """The name of kept log-probs: by the model, how it computes, and the data (with tokenizer, template and cut).

    Args:
        model: its `aira.models.weights.weights_hash`, asked while its weights are whole.
        precision: as Lightning names it.
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
    """The summed log-prob of every branch of a split, from the cache where it was computed before.

    Each process computes its share, and the first one writes.

    Args:
        compute: gives the [B] log-probs of a row on the trainer's device; with sharded weights all ranks call it alike.
        model: the `aira.models.weights.weights_hash` of what computes; the first process's counts.
        sharded: whether its weights are.
        folder: of the cache.
        name: of the split, for the progress bar.

    Returns:
        [examples, branches] float32.
    """
    key = reference_key(model, trainer.precision, trainer.strategy.root_device.type, sharded, split)
    file = folder / f"{key}.npy"
    kept = trainer.strategy.broadcast(_read(file) if trainer.is_global_zero else None)
    if kept is not None:
        return kept
    by_index: dict[int, list[float]] = {}
    for batch in tqdm(
        data.once(split), f"Reference log-probs, {name}", disable=not trainer.is_global_zero, leave=False
    ):
        sums = [compute(trainer.strategy.batch_to_device(row)) for row in batch.rows][: batch.real_rows]
        if sums:
            together = torch.cat(sums).reshape(len(batch.indices), -1)
            by_index |= zip(batch.indices, together.tolist(), strict=True)
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
    """A kept array; None where there is none that is whole, and of numbers."""
    try:
        kept: np.ndarray = np.load(file)
        return kept if np.isfinite(kept).all() else None
    except (OSError, ValueError, EOFError):
        return None
