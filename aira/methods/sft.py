"""Supervised fine-tuning: the next-token loss on completions."""

import math

from torch import Tensor

from aira.data.trees import Row
from aira.methods.base import Method, Sums, Totals
from aira.models.forward import hidden_states, unwrap
from aira.models.head import cross_entropy, lm_head


class SFT(Method):
    """Mean negative log-likelihood of the batch's scored tokens, the causal language modelling loss.

    Which tokens are scored (completions, or the whole text) is decided when the data is tokenized.
    """

    unit = "tokens"

    def row_loss(self, row: Row, totals: Totals) -> tuple[Tensor, Sums]:
        """The summed negative log-likelihood of the row, in nats."""
        hidden = hidden_states(self.model, row)
        loss, _ = cross_entropy(hidden[row.source], row.target, lm_head(unwrap(self.model)))
        return loss, {}

    def metrics(self, sums: Totals, count: float) -> dict[str, float]:
        """The loss and its exponential."""
        loss = sums["loss"] / count
        return {"loss": loss, "perplexity": math.exp(min(loss, 50.0))}
