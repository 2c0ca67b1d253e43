"""Toxicity classification. A score is high where a text is harmless: sigma(score) is the probability of that.

This holds for both objectives, for exported models (`id2label` is {0: "harmless"}) and for all that reads them. In the
data, class 1 is toxic, and metrics of a class are of the toxic one unless their name says otherwise.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_auroc,
    binary_average_precision,
    binary_f1_score,
    binary_precision,
    binary_recall,
)
from transformers import PreTrainedTokenizerBase

from aira.config.schema import Optimizer, Schedule
from aira.data.schemas import HARMLESS, TOXIC
from aira.data.trees import Row
from aira.methods.base import Sums
from aira.methods.preference import bradley_terry
from aira.methods.reward import pair_sums
from aira.methods.scorer import Scorer
from aira.models.forward import unwrap


class Toxicity(Scorer):
    """A classifier of texts.

    Args:
        model, optimizer, schedule, seed, tokenizer: as for `Method`.
        objective: `classification` learns from single texts, `pairwise` from pairs of a harmless and a harmful one (the
            Bradley-Terry loss, as the published ToxiGuardrail).
        class_weights: weight of the harmless and of the toxic texts in the loss of `classification`; `balanced` weighs
            a class by the inverse of its frequency, so that both count alike; None weighs every text alike.
        threshold_by: what the threshold, below which a score means toxic, is chosen for on the validation texts:
            `accuracy`, `balanced_accuracy`, or `f1`.
    """

    threshold: Tensor

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        seed: int = 0,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        objective: str = "classification",
        class_weights: str | list[float] | None = None,
        threshold_by: str = "accuracy",
    ) -> None:
        super().__init__(model, optimizer, schedule, seed, tokenizer=tokenizer)
        self.objective, self.class_weights, self.threshold_by = objective, class_weights, threshold_by
        self.register_buffer("threshold", torch.tensor(0.0))

    def setup(self, stage: str) -> None:
        """Weigh the classes by the training data."""
        weights = self.class_weights
        if weights == "balanced" and self.objective == "classification":
            labels = torch.from_numpy(self.trainer.datamodule.train.labels)  # type: ignore[attr-defined]
            weights = (labels.numel() / (2 * torch.bincount(labels.flatten(), minlength=2))).tolist()
        self.weights = torch.tensor(weights or [1.0, 1.0])

    def loss_of(self, scores: Tensor, row: Row) -> tuple[Tensor, Sums]:
        """Binary cross-entropy, averaged over an example's texts, or the loss of pairs.

        `accuracy_at_0` takes a text to be toxic where its score is below 0; `accuracy` of a validation goes by the
        threshold that was chosen.
        """
        if self.objective == "pairwise":
            return bradley_terry(scores[:, 0] - scores[:, 1]).sum(), _pairs(scores)
        assert row.labels is not None
        labels = row.labels.reshape(scores.shape)
        harmless = (labels == HARMLESS).to(scores.dtype)
        weights = self.weights.to(scores.device)[labels.long()]
        losses = binary_cross_entropy_with_logits(scores, harmless, weights, reduction="none").mean(1)
        right = ((scores.detach() > 0) == (labels == HARMLESS)).float().mean(1)
        return losses.sum(), {"accuracy_at_0": right.sum()}

    def measured(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        """Choose the threshold, and measure the classes with it."""
        labels, scores = labels.flatten(), scores.flatten()
        there = {"toxic" if one == TOXIC else "harmless" for one in labels.tolist()}
        # by texts of one class, any threshold below or above all of them would be the best
        threshold = best_threshold(scores, labels, self.threshold_by) if len(there) == 2 else 0.0
        self.threshold.fill_(threshold)
        figures = class_metrics(scores, labels, threshold)
        why = "no text was taken to be of a class"
        if len(there) == 1:
            why = f"all validation texts are {there.pop()}, so the threshold is 0; more of them may hold both classes"
        self.undefined = {name: why for name in CLASS_METRICS if name not in figures}
        return {"threshold": threshold, **figures}

    def before_export(self, model: nn.Module) -> None:
        """Keep the threshold beside the weights."""
        unwrap(model).config.threshold = self.threshold.item()


def _pairs(scores: Tensor) -> Sums:
    named = pair_sums(scores)
    return {"pair_accuracy": named["accuracy"], "margin": named["margin"]}


def best_threshold(scores: Tensor, labels: Tensor, by: str) -> float:
    """The threshold with the best figure: midway between two neighbouring scores, or beyond all of them.

    Args:
        scores: [N], high where a text is harmless.
        labels: [N] classes.
        by: `accuracy`, `balanced_accuracy` or `f1`.

    Returns:
        A text is taken to be toxic where its score is below this.
    """
    values, order = scores.double().sort()
    toxic = (labels[order] == TOXIC).double()
    nothing = toxic.new_zeros(1)
    hits = torch.cat([nothing, toxic.cumsum(0)])  # toxic texts among the k lowest, for k from 0 to N
    false = torch.cat([nothing, (1 - toxic).cumsum(0)])
    positives, negatives = toxic.sum(), (1 - toxic).sum()
    figures = {
        "accuracy": hits + negatives - false,
        "balanced_accuracy": hits / positives.clamp(min=1) + (negatives - false) / negatives.clamp(min=1),
        "f1": 2 * hits / (hits + false + positives),
    }[by]
    edges = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    possible = torch.cat([nothing == 0, values[1:] > values[:-1], nothing == 0])  # equal scores cannot be told apart
    return edges[torch.where(possible, figures, -1.0).argmax()].item()


CLASS_METRICS = (
    *("accuracy", "balanced_accuracy", "f1", "auroc", "auprc"),
    *(f"{name}/{figure}" for name in ("toxic", "harmless") for figure in ("precision", "recall", "f1")),
)
"""What `class_metrics` gives where all of it is defined."""


def class_metrics(scores: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """Accuracy, F1, areas under curves, and each class's precision, recall and F1, by torchmetrics.

    What is undefined is left out: areas and balanced accuracy where a class has no text, a class's recall and F1 where
    it has none, and its precision where no text is taken to be of it.

    Args:
        scores: [N], high where a text is harmless.
        labels: [N] classes.
        threshold: a text is taken to be toxic where its score is below.
    """
    toxic = (scores < threshold).long()
    metrics = {"accuracy": binary_accuracy(toxic, labels)} if len(labels) else {}
    for name, cls in (("toxic", TOXIC), ("harmless", HARMLESS)):
        predicted, true = (toxic == cls).long(), (labels == cls).long()
        if predicted.any():
            metrics[f"{name}/precision"] = binary_precision(predicted, true)
        if true.any():
            metrics[f"{name}/recall"] = binary_recall(predicted, true)
            metrics[f"{name}/f1"] = binary_f1_score(predicted, true)
    if "toxic/f1" in metrics:
        metrics["f1"] = metrics["toxic/f1"]
    if "toxic/f1" in metrics and "harmless/f1" in metrics:
        metrics["balanced_accuracy"] = (metrics["toxic/recall"] + metrics["harmless/recall"]) / 2
        metrics["auroc"] = binary_auroc(torch.sigmoid(-scores.double()), labels)
        metrics["auprc"] = binary_average_precision(torch.sigmoid(-scores.double()), labels)
    return {name: float(value) for name, value in metrics.items()}
