"""Losses on pairs, as pure functions of torch alone.

Notation: y_w is the chosen and y_l the rejected response to x, pi the policy, pi_0 the reference,
r(y) = log pi(y|x) - log pi_0(y|x), summed over the scored tokens of y; |y| is their number.
Every loss is [P] float32, one value per pair.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Side(NamedTuple):
    """The chosen or the rejected responses of P pairs."""

    log_probs: Tensor  # [P] by the policy, summed over tokens
    lengths: Tensor  # [P] scored tokens
    reference: Tensor  # [P] log-probs by the reference; zeros for a loss without a reference

    @property
    def ratio(self) -> Tensor:
        """r(y)."""
        return self.log_probs - self.reference

    @property
    def mean(self) -> Tensor:
        """The log-prob of a response, averaged over its tokens."""
        return self.log_probs / self.lengths


class Settings(NamedTuple):
    """Hyperparameters of the losses."""

    beta: float
    label_smoothing: float = 0.0
    gamma: float = 0.0


Loss = Callable[[Side, Side, Settings], Tensor]


def bradley_terry(difference: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood that the better one wins, with probability sigma(difference) (Bradley and Terry, 1952).

    With label smoothing, a fraction of the pairs is assumed to be mislabelled.

    Args:
        difference: [P] score of the better minus score of the worse.
    """
    return -(1 - label_smoothing) * logsigmoid(difference) - label_smoothing * logsigmoid(-difference)


def sigmoid(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """DPO (Rafailov et al., 2023, eq. 7); with label smoothing, conservative DPO (Mitchell, 2023)."""
    return bradley_terry(settings.beta * (chosen.ratio - rejected.ratio), settings.label_smoothing)


def sigmoid_norm(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """DPO with r(y) / |y| in place of r(y), as Tulu 3 (Lambert et al., 2024, section 5.1)."""
    difference = chosen.ratio / chosen.lengths - rejected.ratio / rejected.lengths
    return bradley_terry(settings.beta * difference, settings.label_smoothing)


def hinge(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """SLiC's hinge on the margin of DPO (Zhao et al., 2023; Liu et al., 2024, RSO, eq. 9)."""
    return torch.relu(1 - settings.beta * (chosen.ratio - rejected.ratio))


def ipo(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """IPO (Azar et al., 2023, eq. 17); beta is its tau, and r is averaged over tokens, as its authors do."""
    difference = chosen.ratio / chosen.lengths - rejected.ratio / rejected.lengths
    return (difference - 1 / (2 * settings.beta)) ** 2


def robust(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """Provably robust DPO (Chowdhury et al., 2024, eq. 10): unbiased where a fraction of the labels is flipped."""
    difference = settings.beta * (chosen.ratio - rejected.ratio)
    epsilon = settings.label_smoothing
    return (-(1 - epsilon) * logsigmoid(difference) + epsilon * logsigmoid(-difference)) / (1 - 2 * epsilon)


def exo_pair(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """EXO on pairs (Ji et al., 2024, eq. 16): the reverse KL divergence from (1 - epsilon, epsilon)."""
    difference = settings.beta * (chosen.ratio - rejected.ratio)
    epsilon = torch.as_tensor(settings.label_smoothing)
    better = torch.sigmoid(difference) * (logsigmoid(difference) - torch.log1p(-epsilon))
    return better + torch.sigmoid(-difference) * (logsigmoid(-difference) - torch.log(epsilon))


def apo_zero(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """APO-zero (D'Oosterlinck et al., 2024, eq. 7): for chosen responses that are better than the model's own."""
    return 1 - torch.sigmoid(settings.beta * chosen.ratio) + torch.sigmoid(settings.beta * rejected.ratio)


def apo_down(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """APO-down (D'Oosterlinck et al., 2024, eq. 8): for chosen responses that are worse than the model's own."""
    difference = settings.beta * (chosen.ratio - rejected.ratio)
    return torch.sigmoid(settings.beta * chosen.ratio) + 1 - torch.sigmoid(difference)


def simpo(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """SimPO (Meng et al., 2024, eq. 6), without a reference; gamma is the target margin of the rewards."""
    return bradley_terry(settings.beta * (chosen.mean - rejected.mean) - settings.gamma, settings.label_smoothing)


def orpo(chosen: Side, rejected: Side, settings: Settings) -> Tensor:
    """ORPO (Hong et al., 2024, eq. 6 and 7), without a reference; beta is its lambda."""
    means = [side.mean.clamp(max=-1e-7) for side in (chosen, rejected)]  # a probability of 1 has no odds
    odds = [mean - torch.log(-torch.expm1(mean)) for mean in means]  # log of p / (1 - p)
    return -chosen.mean - settings.beta * logsigmoid(odds[0] - odds[1])


LOSSES: dict[str, Loss] = {
    function.__name__: function
    for function in (sigmoid, sigmoid_norm, hinge, ipo, robust, exo_pair, apo_zero, apo_down, simpo, orpo)
}
REFERENCE_FREE = ("simpo", "orpo")
