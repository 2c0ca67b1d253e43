"""Direct preference optimization and related losses on pairs of responses, without a reward model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from aira.config.schema import Optimizer, Schedule
from aira.data.trees import Row
from aira.methods.base import Method, Sums, Totals
from aira.methods.preference import LOSSES, REFERENCE_FREE, Settings, Side
from aira.methods.reference import Reference, load_reference, reference_log_probs
from aira.models.forward import branch_log_probs
from aira.models.sharding import shard
from aira.models.weights import weights_hash


class DPO(Method):
    """A loss on the log-probs of chosen and rejected responses; the reference's log-probs are computed once.

    Args:
        model, optimizer, schedule, seed: as for `Method`.
        tokenizer: of the model; a reference from another path must have the same vocabulary.
        loss: a name in `aira.methods.preference.LOSSES`.
        beta: strength of the constraint to the reference; see the loss.
        label_smoothing: the fraction of pairs assumed to be mislabelled.
        gamma: SimPO's target margin.
        sft_weight: the weight of the chosen response's negative log-likelihood a token, as in iterative RPO (Pang et
            al., 2024, eq. 1; averaged within each response).
        reference: path of the reference model; None for the model as training starts from it.
        cache_dir: the folder where the reference's log-probs are cached.
    """

    unit = "examples"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        seed: int = 0,
        *,
        tokenizer: Any,
        loss: str = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        gamma: float = 0.5,
        sft_weight: float = 0.0,
        reference: str | None = None,
        cache_dir: str = "~/.cache/aira",
    ) -> None:
        super().__init__(model, optimizer, schedule, seed, tokenizer=tokenizer)
        self.loss, self.settings = loss, Settings(beta, label_smoothing, gamma)
        self.sft_weight, self.cache_dir = sft_weight, cache_dir
        self._reference: list[Reference] = []  # in a list, so that it is not registered as a submodule
        if reference and loss not in REFERENCE_FREE:
            self._reference.append(Reference(load_reference(reference, tokenizer, model)))

    def configure_model(self) -> None:
        """Compute the reference's log-probs, or read them from the cache; checkpoints are restored after this.

        If the policy's weights are sharded, the reference's are, too.
        """
        reference = self._reference.pop() if self._reference else None
        needs_reference = self.loss not in REFERENCE_FREE
        reference_hash = ""
        if needs_reference and self.global_rank == 0:  # before the weights are sharded
            reference_hash = weights_hash((reference or self).model)
        super().configure_model()
        if not needs_reference:
            return
        sharded = self.device_mesh is not None
        if reference and sharded:
            shard(reference, reference.model, self.shards, self.trainer.precision)
        module: nn.Module = (reference or self).to(self.trainer.strategy.root_device)
        training = module.training
        module.eval()

        def compute(row: Row) -> Tensor:
            with torch.no_grad(), self.trainer.precision_plugin.val_step_context(), self.casts():
                log_probs: Tensor = reference(row) if reference else self(self._log_probs, row)
                return log_probs

        data = self.trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(self.cache_dir).expanduser() / "reference"
        splits = [("training", data.train), ("validation", data.validation)]
        for name, split in splits[: 2 if self.trainer.limit_val_batches else 1]:
            split.reference = reference_log_probs(
                compute, reference_hash, sharded, data, split, self.trainer, folder, name
            )
        if isinstance(module, FSDPModule):
            module.reshard()  # the module that ran last stays gathered
        module.train(training)

    def _log_probs(self, row: Row) -> Tensor:
        return branch_log_probs(self.model, row)[0]

    def row_loss(self, row: Row, totals: Totals) -> tuple[Tensor, Sums]:
        """The losses of the row's pairs, summed; rewards and log-probs have TRL's names."""
        summed, lengths = branch_log_probs(self.model, row)
        reference = torch.zeros_like(summed) if row.reference is None else row.reference
        chosen, rejected = (Side(*(part[side::2] for part in (summed, lengths, reference))) for side in (0, 1))
        losses = LOSSES[self.loss](chosen, rejected, self.settings)
        if self.sft_weight:
            losses = losses - self.sft_weight * chosen.mean
        with torch.no_grad():
            free = self.loss in REFERENCE_FREE
            rewards = (self.settings.beta * (side.mean if free else side.ratio) for side in (chosen, rejected))
            chosen_rewards, rejected_rewards = rewards
            sums = {
                "rewards/chosen": chosen_rewards.sum(),
                "rewards/rejected": rejected_rewards.sum(),
                "rewards/margins": (chosen_rewards - rejected_rewards).sum(),
                "rewards/accuracies": (chosen_rewards > rejected_rewards).float().sum(),
                "logps/chosen": chosen.log_probs.sum(),
                "logps/rejected": rejected.log_probs.sum(),
                "rewards/margins_by_beta": (chosen_rewards - rejected_rewards).sum() / self.settings.beta,
            }
            if not free:
                # half the squared log-ratio (k2 of Schulman, 2020), on the data's responses and not on the policy's
                # own: an estimate that holds near the reference
                sums["kl"] = (chosen.ratio**2 + rejected.ratio**2).sum() / 4
        return losses.sum(), sums
