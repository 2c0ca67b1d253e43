"""Averages of the weights over the steps of a run: what is validated and exported in place of the last weights."""

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from aira.config.types import steps_of


class Averaging(pl.Callback):
    """Stochastic weight averaging (Izmailov et al., 2018), or an exponential moving average, by PyTorch's functions.

    From a validation's start to the next step the model has the averaged weights, so that best.ckpt has them, too; so
    has the export. Lightning's own callback puts the training weights back too early for that, and the threshold of a
    toxicity model, which is no weight, with them.

    Args:
        decay: of the exponential moving average, per step; None for the mean of all steps.
        start: the first step that counts: a fraction of the run's steps, or from 1 on a number of steps before it.
    """

    def __init__(self, decay: float | None, start: float) -> None:
        average: Any = get_swa_multi_avg_fn if decay is None else partial(get_ema_multi_avg_fn, decay)
        self.update = average()
        self.start = start
        self.count = 0  # steps in the average
        self.averages: list[Tensor] = []
        self.kept: list[Tensor] | None = None  # training weights, while the model has the averaged ones

    @staticmethod
    def _trained(module: pl.LightningModule) -> dict[str, Tensor]:
        return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Go on from the training weights."""
        if self.kept is not None:
            for weight, kept in zip(self._trained(module).values(), self.kept, strict=True):
                weight.copy_(kept)
            self.kept = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Add the weights after a step to the average."""
        if trainer.global_step <= steps_of(self.start, trainer.max_steps):
            return
        weights = list(self._trained(module).values())
        if not self.count:
            self.averages = [weight.detach().clone() for weight in weights]
        else:
            self.averages = [one.to(weight.device) for one, weight in zip(self.averages, weights, strict=True)]
            self.update(self.averages, weights, torch.tensor(self.count))
        self.count += 1

    @torch.no_grad()
    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Give the model the averaged weights."""
        if self.count and self.kept is None:
            weights = self._trained(module).values()
            self.kept = [weight.detach().clone() for weight in weights]
            for weight, average in zip(weights, self.averages, strict=True):
                weight.copy_(average)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the model with the averaged weights, which are exported."""
        self.on_validation_start(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the training weights: a run is resumed from them."""
        if self.kept is not None:
            kept = dict(zip(map(id, self._trained(module).values()), self.kept, strict=True))
            names = module.named_parameters(remove_duplicate=False)  # a tied weight has several
            checkpoint["state_dict"] |= {name: kept[id(weight)] for name, weight in names if id(weight) in kept}

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"count": self.count, "averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.count, self.averages = state_dict["count"], state_dict["averages"]
