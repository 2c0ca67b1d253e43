"""Reward modelling: a score that is higher for the response that people prefer."""

import math

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error
from transformers import PreTrainedTokenizerBase

from aira.config.schema import Optimizer, Schedule
from aira.data.trees import Row
from aira.methods.base import Sums
from aira.methods.preference import bradley_terry
from aira.methods.scorer import Scorer


class Reward(Scorer):
    """The Bradley-Terry loss on pairs.

    Args:
        model, optimizer, schedule, seed, tokenizer: as for `Method`.
        label_smoothing: the fraction of pairs assumed to be mislabelled.
        center_rewards_coefficient: weight of the squared sum of a pair's rewards, which centres them on 0 (Eisenstein
            et al., 2023, section 2, by TRL's name; 0.01 is usual).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        seed: int = 0,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        label_smoothing: float = 0.0,
        center_rewards_coefficient: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, schedule, seed, tokenizer=tokenizer)
        self.label_smoothing, self.center = label_smoothing, center_rewards_coefficient

    def loss_of(self, scores: Tensor, row: Row) -> tuple[Tensor, Sums]:
        """-log sigma(chosen - rejected - margin); metrics have TRL's names."""
        assert row.margin is not None
        losses = bradley_terry(scores[:, 0] - scores[:, 1] - row.margin, self.label_smoothing)
        if self.center:
            losses = losses + self.center * scores.sum(1) ** 2
        return losses.sum(), pair_sums(scores)

    def score_metrics(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        """Extremes, and the calibration error of sigma(chosen - rejected) as the probability that chosen wins."""
        return {
            "min_reward": scores.min().item(),
            "max_reward": scores.max().item(),
            "calibration_error": pair_calibration_error(scores),
        }


def pair_sums(scores: Tensor) -> Sums:
    """Sums of the metrics of pairs.

    Args:
        scores: [P, 2], of the better and of the worse.
    """
    better, worse = scores.detach().unbind(1)
    return {
        "accuracy": (better > worse).float().sum(),
        "margin": (better - worse).sum(),
        "mean_reward": (better + worse).sum() / 2,
        "chosen_reward": better.sum(),
        "rejected_reward": worse.sum(),
    }


def pair_calibration_error(scores: Tensor) -> float:
    """Expected calibration error (Guo et al., 2017), 10 bins: confidence in the likelier response against accuracy.

    Args:
        scores: [P, 2], of the better and of the worse.

    Returns:
        The error; NaN without pairs.
    """
    if not len(scores):
        return math.nan
    difference = scores[:, 0] - scores[:, 1]
    return binary_calibration_error(torch.sigmoid(difference.abs()), (difference > 0).long(), n_bins=10).item()
