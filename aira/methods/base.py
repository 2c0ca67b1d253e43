"""The base of all methods: the step over rows, the optimizer and its schedule, metrics that are sums.

A method defines the loss of a row (`row_loss`), the unit by which losses are averaged (`unit`), and, if its loss
depends on the whole batch, the statistics of a row (`row_statistics`). Everything else is here: gradients are those of
the whole batch, whatever the number of rows and ranks.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from aira.config.schema import Optimizer, Schedule
from aira.data.batches import Batch
from aira.data.trees import Row
from aira.errors import AiraError
from aira.methods.optimizers import learning_rates, make_optimizer
from aira.models.sharding import shard, with_weights, without_weights

T = TypeVar("T")
Sums = dict[str, Tensor]
"""Scalars by name, summed over a row's tokens or examples."""
Totals = dict[str, float]
"""The same over all rows and ranks of a batch."""

STEP_LEFT_OUT = (
    "The weights are those before this step; checkpoints/last.ckpt is whole. A smaller optimizer.lr, more "
    "schedule.warmup or trainer.precision=32-true may help."
)


class Method(pl.LightningModule):
    """The base of all methods.

    Args:
        model: the backbone with its head.
        optimizer: the settings in conf/train.yaml.
        schedule: the settings in conf/train.yaml.
        seed: of the dropout, combined with step and rank, so that a step has the same dropout whenever it is run.
        tokenizer: of the model, for methods that need it.
    """

    unit: str
    """What losses are averaged over: the batch's scored `tokens`, its `examples`, or a sum of `row_statistics`."""
    row_statistics: Callable[[Row], Sums] | None = None
    """Sums of a row, without gradient, for a loss that depends on the whole batch: they are added to its totals.

    It is called for every row before the first loss. It may run the model, in which case dropout is the same as in
    `row_loss`, or only read the row. All rows return the same names. With None, the default, there is no additional
    forward pass.
    """
    step_seconds: float
    """Seconds of the last step and the wait for its data, without the validation, samples or checkpoints before it."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        seed: int = 0,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.optimizer_settings, self.schedule, self.seed, self.tokenizer = optimizer, schedule, seed, tokenizer
        self._unsharded: list[
            nn.Module
        ] = []  # the model without weights; in a list, so that it is not registered as a submodule

    def row_loss(self, row: Row, totals: Totals) -> tuple[Tensor, Sums]:
        """The loss of a row.

        Args:
            totals: of the whole batch: its `examples`, its scored `tokens`, and the sums of `row_statistics`.

        Returns:
            The loss, summed (not averaged) over the row's tokens or examples, and further sums to report.
        """
        raise NotImplementedError

    def forward(self, compute: Callable[..., T], *arguments: Any) -> T:
        """Call a function that runs the model, with the hooks that gather sharded weights."""
        return compute(*arguments)

    def metrics(self, sums: Totals, count: float) -> dict[str, float]:
        """The metrics to report, from sums.

        Args:
            sums: the sums that `row_loss` returned, `loss` included, added up over rows and ranks.
            count: the batch's total of `unit`.
        """
        return {name: value / count for name, value in sums.items()}

    def training_step(self, batch: Batch, _: int) -> None:
        """One optimizer step: forward and backward row by row, then clip and step."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        totals = self._totals(batch)
        self._seed_dropout(batch)
        count = totals[self.unit]
        scale = self.trainer.world_size / count  # DDP averages gradients over ranks
        sums: Sums = {}
        with self.casts():
            for i, row in enumerate(batch.rows):
                with contextlib.nullcontext() if i == len(batch.rows) - 1 else self._no_sync():
                    loss, more = self(self.row_loss, row, totals)
                    self.manual_backward(loss * scale * (i < batch.real_rows))
                _add(sums, {"loss": loss.detach(), **more}, i < batch.real_rows)
        reduced = self._reduce(sums)
        if not math.isfinite(reduced["loss"]):
            raise AiraError(
                f"The loss is {reduced['loss']} at step {batch.number} (rows {batch.indices} of the training data). "
                f"{STEP_LEFT_OUT}"
            )
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.log("train/lr", scheduler.get_last_lr()[0])  # type: ignore[union-attr]
        scheduler.step()  # type: ignore[union-attr]
        metrics = {f"train/{name}": value for name, value in self.metrics(reduced, count).items()}
        self.log("train/loss", metrics.pop("train/loss"), prog_bar=True)
        self.log_dict(metrics)
        self.step_seconds = time.perf_counter() - self._since

    def _start_clock(self, *_: Any, **__: Any) -> None:
        """Start the clock of the next step; Lightning calls this after the callbacks, which are not timed."""
        self._since = time.perf_counter()

    on_train_start = on_train_batch_end = on_validation_end = _start_clock

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Have Lightning validate after the last step, so that the weights that are exported are validated."""
        if self.trainer.global_step + 1 >= self.trainer.max_steps:
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, which are unscaled at this point.

        Raises:
            AiraError: a gradient is not finite; with 16-mixed the loss scaler skips such a step.
        """
        limit = self.optimizer_settings.max_grad_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.trainer.precision != "16-mixed" and not norm.isfinite():
            raise AiraError(
                f"The gradient's norm is {norm.item()} at step {self.trainer.global_step}, with a finite loss. "
                f"{STEP_LEFT_OUT}"
            )
        self.log("train/grad_norm", norm)

    def before_export(self, model: nn.Module) -> None:
        """Add to the configuration of the model that will be exported what its users need."""

    def configure_model(self) -> None:
        """With a strategy that has a device mesh, shard the weights over all processes of all nodes."""
        if self.device_mesh is not None and not self._unsharded:
            self._unsharded.append(without_weights(self.model))
            shard(self, self.model, self.shards, self.trainer.precision)

    @functools.cached_property
    def shards(self) -> DeviceMesh:
        """A one-dimensional mesh of all processes; Lightning's has a mesh for each node."""
        return init_device_mesh(self.trainer.strategy.root_device.type, (self.trainer.world_size,))

    def whole_model(self, state: dict[str, Tensor] | None = None) -> nn.Module:
        """The model with whole weights, for generation and export.

        With sharded weights, every rank has to call this, and only rank 0 gets a usable model, on the CPU.

        Args:
            state: weights of a checkpoint, to use in place of the current ones.
        """
        if not self._unsharded:
            if state is not None:
                self.load_state_dict(state)
            return self.model
        gathered = self.trainer.strategy.lightning_module_state_dict() if state is None else state
        if self.global_rank != 0:
            return self.model
        weights = {name: value for name, value in gathered.items() if name.startswith("model.")}
        self.load_state_dict({name: gathered[name] for name in gathered.keys() - weights.keys()}, strict=False)
        return with_weights(self._unsharded[0], {n.removeprefix("model."): value for n, value in weights.items()})

    def casts(self) -> contextlib.AbstractContextManager[Any]:
        """With autocast in one CPU process, cache the cast weights for all rows of a step (Lightning caches none).

        With several processes, the gradients of cached casts would arrive only after all rows: too late for FSDP2,
        which reduces after each layer, and for DDP to overlap communication. On a GPU the thread of the backward pass
        does not see the cache.
        """
        device, strategy = self.trainer.strategy.root_device.type, self.trainer.strategy
        if device != "cpu" or not isinstance(strategy, SingleDeviceStrategy) or not torch.is_autocast_enabled(device):
            return contextlib.nullcontext()
        return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=True)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums."""
        self.validation_sums: dict[int, tuple[Totals, float]] = {}

    def validation_step(self, batch: Batch, _: int, dataloader_idx: int = 0) -> None:
        """Add up the sums of one batch of a source; averages are over the whole validation set."""
        totals = self._totals(batch)
        sums: Sums = {}
        with self.casts():
            for i, row in enumerate(batch.rows):
                loss, more = self(self.row_loss, row, totals)
                _add(sums, {"loss": loss, **more}, i < batch.real_rows)
        before, count = self.validation_sums.get(dataloader_idx, ({}, 0.0))
        added = {name: before.get(name, 0.0) + value for name, value in self._reduce(sums).items()}
        self.validation_sums[dataloader_idx] = before | added, count + totals[self.unit]

    def validation_metrics(self) -> dict[str, float]:
        """Metrics of the whole validation set, and the loss of each of several sources, the same on every rank."""
        whole: Totals = {}
        for sums, _ in self.validation_sums.values():
            whole |= {name: whole.get(name, 0.0) + value for name, value in sums.items()}
        metrics = self.metrics(whole, sum(count for _, count in self.validation_sums.values()))
        if len(self.validation_sums) > 1:
            names = self.trainer.datamodule.source_names  # type: ignore[attr-defined]
            for i, (sums, count) in self.validation_sums.items():
                metrics[f"{names[i]}/loss"] = sums["loss"] / count
        return metrics

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self.log_dict({f"val/{name}": value for name, value in self.validation_metrics().items()}, prog_bar=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and the schedule over the steps of the run."""
        settings = self.optimizer_settings
        optimizer = make_optimizer(self, settings, fused=self.trainer.precision != "16-mixed")
        rates = learning_rates(self.schedule, settings.lr, self.trainer.max_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _totals(self, batch: Batch) -> Totals:
        """Totals of the whole batch before its first loss; one transfer over ranks for all statistics."""
        totals: Totals = {"examples": batch.examples, "tokens": batch.tokens}
        if self.row_statistics is None:
            return totals
        self._seed_dropout(batch)
        sums: Sums = {}
        with torch.no_grad(), self.casts():
            for i, row in enumerate(batch.rows):
                _add(sums, self(self.row_statistics, row), i < batch.real_rows)
        return totals | self._reduce(sums)

    def _seed_dropout(self, batch: Batch) -> None:
        torch.manual_seed(hash((self.seed, batch.number, self.global_rank)) % 2**63)

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if hasattr(wrapped, "no_sync") else contextlib.nullcontext()  # type: ignore[operator, union-attr]

    def _reduce(self, sums: Sums) -> Totals:
        """Add up over ranks, with one transfer for all sums."""
        values = torch.stack([value.detach().double() for value in sums.values()])
        values = self.trainer.strategy.reduce(values, reduce_op="sum")
        return dict(zip(sums, values.tolist(), strict=True))


def _add(sums: Sums, more: Sums, counts: bool) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value * counts
