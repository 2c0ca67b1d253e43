"""Direct preference optimization, and its relatives: pairs of responses, without a reward model."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aira.data.trees import Row
from aira.methods.base import Method, Sums
from aira.methods.losses import branch_sums, log_probs
from aira.methods.preference import LOSSES, REFERENCE_FREE, Settings, Side
from aira.methods.reference import load_reference, reference_log_probs
from aira.models.backbone import hidden_states, unwrap


class DPO(Method):
    """A loss on the log-probs of chosen and rejected responses; those of the reference are computed once.

    Args:
        model, optimizer, schedule, seed: as for `Method`.
        tokenizer: of the model; a reference from elsewhere must share its vocabulary.
        loss: a name in `aira.methods.preference.LOSSES`.
        beta: how far the policy is kept from the reference; see the loss.
        label_smoothing: the fraction of pairs taken to be labelled the wrong way round.
        gamma: SimPO's target margin.
        sft_weight: the weight of the chosen response's negative log-likelihood a token, as in iterative RPO (Pang et
            al., 2024, eq. 1; averaged within each response).
        reference: path of the reference model; None for the model as training starts from it.
        cache_dir: where the reference's log-probs are kept.
    """

    unit: Literal["tokens", "examples"] = "examples"

    def __init__(
        self,
        model: nn.Module,
        optimizer: dict[str, Any],
        schedule: dict[str, Any],
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
        super().__init__(model, optimizer, schedule, seed)
        self.loss, self.settings = loss, Settings(beta, label_smoothing, gamma)
        self.sft_weight, self.cache_dir = sft_weight, cache_dir
        self.other = load_reference(reference, tokenizer, model) if reference and loss not in REFERENCE_FREE else None

    def setup(self, stage: str) -> None:
        """Compute the reference's log-probs, or read them from the cache; checkpoints are restored after this."""
        if self.loss in REFERENCE_FREE:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(self.cache_dir).expanduser() / "reference"
        parts = [("training", data.train), ("validation", data.validation)]
        for name, split in parts[: 2 if self.trainer.limit_val_batches else 1]:
            split.reference = reference_log_probs(self.other or self.model, data, split, self.trainer, folder, name)
        self.other = None

    def row_loss(self, row: Row) -> tuple[Tensor, Sums]:
        """The losses of the row's pairs, summed; rewards and log-probs by the names of TRL."""
        hidden = hidden_states(self.model, row)
        values = log_probs(hidden[row.source], row.target, unwrap(self.model).get_output_embeddings())
        summed = branch_sums(values, row.branch, len(row.end))
        lengths = branch_sums(torch.ones_like(values), row.branch, len(row.end))
        reference = torch.zeros_like(summed) if row.reference is None else row.reference
        chosen, rejected = (Side(*(part[side::2] for part in (summed, lengths, reference))) for side in (0, 1))
        losses = LOSSES[self.loss](chosen, rejected, self.settings)
        if self.sft_weight:
            losses = losses - self.sft_weight * chosen.mean
        with torch.no_grad():
            free = self.loss in REFERENCE_FREE
            won, lost = (self.settings.beta * (side.mean if free else side.ratio) for side in (chosen, rejected))
            sums = {
                "rewards/chosen": won.sum(),
                "rewards/rejected": lost.sum(),
                "rewards/margins": (won - lost).sum(),
                "rewards/accuracies": (won > lost).float().sum(),
                "logps/chosen": chosen.log_probs.sum(),
                "logps/rejected": rejected.log_probs.sum(),
            }
        return losses.sum(), sums
