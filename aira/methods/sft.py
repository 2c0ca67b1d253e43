"""Supervised fine-tuning: the next-token loss on completions."""

import math

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from aira.config.schema import Optimizer, Schedule
from aira.data.trees import Row
from aira.methods.base import Method, Sums, Totals
from aira.models.forward import hidden_states, neftune, unwrap
from aira.models.head import cross_entropy, lm_head


class SFT(Method):
    """Mean negative log-likelihood of the batch's scored tokens, the causal language modelling loss.

    Which tokens are scored (completions, or the whole text) is decided when the data is tokenized.

    Args:
        model, optimizer, schedule, seed, tokenizer: as for `Method`.
        neftune_alpha: noise on the embeddings, during training only; see `aira.models.forward.neftune`.
    """

    unit = "tokens"

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        seed: int = 0,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        neftune_alpha: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, schedule, seed, tokenizer=tokenizer)
        self.neftune_alpha = neftune_alpha

    def row_loss(self, row: Row, totals: Totals) -> tuple[Tensor, Sums]:
        """The summed negative log-likelihood of the row, in nats."""
        with neftune(self.model, row, self.neftune_alpha if self.training else 0.0):
            hidden = hidden_states(self.model, row)
        loss, _ = cross_entropy(hidden[row.source], row.target, lm_head(unwrap(self.model)))
        return loss, {}

    def metrics(self, sums: Totals, count: float) -> dict[str, float]:
        """The loss and its exponential."""
        loss = sums["loss"] / count
        return {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}
