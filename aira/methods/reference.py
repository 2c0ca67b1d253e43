"""Log-probs by a reference model: computed once, kept on disk, read by every run that needs the same."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from aira.data.module import DataModule, Split
from aira.data.trees import Row
from aira.errors import AiraError
from aira.methods.base import weights_cast_once
from aira.methods.losses import branch_sums, log_probs
from aira.models.backbone import content, hidden_states, load_model, load_tokenizer, unwrap
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


def reference_log_probs(
    model: nn.Module, data: DataModule, split: Split, trainer: pl.Trainer, folder: Path, name: str
) -> np.ndarray:
    """The summed log-prob of every branch of a split.

    The cache is keyed by the content of the model and the data (with template and cut), and by precision. Each process
    computes its share, and the first one writes.

    Args:
        model: with adapters that do nothing yet, or without.
        folder: of the cache.
        name: of the split, for the progress bar.

    Returns:
        [examples, branches] float32.
    """
    key = hashlib.sha256(f"{content(model)} {trainer.precision} {split.encoded._fingerprint}".encode())
    key.update(split.index.tobytes())
    file = folder / f"{key.hexdigest()[:32]}.npy"
    kept = trainer.strategy.broadcast(_read(file) if trainer.is_global_zero else None)
    if kept is not None:
        return kept
    device = trainer.strategy.root_device
    network, training = model.to(device), model.training
    network.eval()
    found: dict[int, list[float]] = {}
    context = trainer.precision_plugin.val_step_context
    with torch.no_grad(), context(), weights_cast_once(device.type):
        for batch in tqdm(
            data.once(split), f"Reference log-probs, {name}", disable=not trainer.is_global_zero, leave=False
        ):
            if batch.own:
                own = batch.rows[: batch.own]
                sums = torch.cat([_summed(network, trainer.strategy.batch_to_device(row)) for row in own])
                found |= zip(batch.indices, sums.reshape(len(batch.indices), -1).tolist(), strict=True)
    network.train(training)
    if trainer.world_size > 1:
        shares: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(shares, found)
        found = {index: values for share in shares for index, values in share.items()}
    result = np.array([found[int(index)] for index in split.index], dtype=np.float32)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.stem}.{os.getpid()}.npy")
        np.save(part, result)
        os.replace(part, file)
    return result


def _read(file: Path) -> np.ndarray | None:
    """A kept array; None where there is none that is whole."""
    try:
        kept: np.ndarray = np.load(file)
        return kept
    except (OSError, ValueError, EOFError):
        return None


def _summed(network: nn.Module, row: Row) -> Tensor:
    """[B] log-probs of a row's branches."""
    values = log_probs(hidden_states(network, row)[row.source], row.target, unwrap(network).get_output_embeddings())
    return branch_sums(values, row.branch, len(row.end))
