"""Toxicity classification. A high score means harmless: sigma(score) is the probability that a text is harmless.

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
from aira.data.labels import HARMLESS, TOXIC, TOXIC_FROM
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
        class_weights: weights of the harmless and of the toxic texts in the loss of `classification`; `balanced`
            weights a class by the inverse of its frequency, so that both count equally; None weights all texts equally.
        threshold_by: the metric on the validation texts, `accuracy`, `balanced_accuracy` or `f1`, for which the
            threshold is chosen, below which a score means toxic.
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
        """Compute the class weights."""
        weights = self.class_weights
        if weights == "balanced" and self.objective == "classification":
            labels = torch.from_numpy(self.trainer.datamodule.train.labels).flatten()  # type: ignore[attr-defined]
            weights = (labels.numel() / (2 * torch.bincount(classes_of(labels), minlength=2))).tolist()
        self.weights = torch.tensor(weights or [1.0, 1.0])

    def loss_of(self, scores: Tensor, row: Row) -> tuple[Tensor, Sums]:
        """Binary cross-entropy, averaged over an example's texts, or the loss of pairs.

        A label may be a probability, which is the target then; a text's class is the more probable one.

        `accuracy_at_0` classifies a text as toxic if its score is below 0; `accuracy` of a validation uses the chosen
        threshold.
        """
        if self.objective == "pairwise":
            return bradley_terry(scores[:, 0] - scores[:, 1]).sum(), _pair_sums(scores)
        assert row.labels is not None
        labels = row.labels.reshape(scores.shape)
        classes = classes_of(labels)
        weights = self.weights.to(scores.device)[classes]
        losses = binary_cross_entropy_with_logits(scores, 1 - labels.to(scores.dtype), weights, reduction="none")
        losses = losses.mean(1)
        accuracy = ((scores.detach() > 0) == (classes == HARMLESS)).float().mean(1)
        return losses.sum(), {"accuracy_at_0": accuracy.sum()}

    def score_metrics(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        """Choose the threshold, and compute the metrics of the classes with it."""
        labels, scores = classes_of(labels.flatten()), scores.flatten()
        classes = {"toxic" if label == TOXIC else "harmless" for label in labels.tolist()}
        # with texts of one class, any threshold below or above all of them would be the best
        threshold = best_threshold(scores, labels, self.threshold_by) if len(classes) == 2 else 0.0
        self.threshold.fill_(threshold)
        figures = class_metrics(scores, labels, threshold)
        reason = "no text was classified as one of the classes"
        if len(classes) == 1:
            reason = (
                f"all validation texts are {classes.pop()}, so the threshold is 0; more of them may hold both classes"
            )
        self.undefined = {name: reason for name in CLASS_METRICS if name not in figures}
        return {"threshold": threshold, **figures}

    def before_export(self, model: nn.Module) -> None:
        """Add the threshold to the model's configuration."""
        unwrap(model).config.threshold = self.threshold.item()


def classes_of(labels: Tensor) -> Tensor:
    """The more probable class of each label, which may be a probability; see `aira.data.labels.is_toxic`."""
    return (labels >= TOXIC_FROM).long()


def _pair_sums(scores: Tensor) -> Sums:
    sums = pair_sums(scores)
    return {"pair_accuracy": sums["accuracy"], "margin": sums["margin"]}


def best_threshold(scores: Tensor, labels: Tensor, by: str) -> float:
    """The threshold with the best value of a metric: midway between two neighbouring scores, or beyond all of them.

    Args:
        scores: [N], a high score means harmless.
        labels: [N] classes.
        by: the metric, `accuracy`, `balanced_accuracy` or `f1`.

    Returns:
        The threshold, below which a score means toxic.
    """
    values, order = scores.double().sort()
    toxic = (labels[order] == TOXIC).double()
    zero = toxic.new_zeros(1)
    true_positives = torch.cat([zero, toxic.cumsum(0)])  # toxic texts among the k lowest, for k from 0 to N
    false_positives = torch.cat([zero, (1 - toxic).cumsum(0)])
    positives, negatives = toxic.sum(), (1 - toxic).sum()
    true_negatives = negatives - false_positives
    values_of_metric = {
        "accuracy": true_positives + true_negatives,
        "balanced_accuracy": true_positives / positives.clamp(min=1) + true_negatives / negatives.clamp(min=1),
        "f1": 2 * true_positives / (true_positives + false_positives + positives),
    }[by]
    edges = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    possible = torch.cat([zero == 0, values[1:] > values[:-1], zero == 0])  # no threshold separates equal scores
    return edges[torch.where(possible, values_of_metric, -1.0).argmax()].item()


CLASS_METRICS = (
    *("accuracy", "balanced_accuracy", "f1", "auroc", "auprc"),
    *(f"{name}/{figure}" for name in ("toxic", "harmless") for figure in ("precision", "recall", "f1")),
)
"""The metrics of `class_metrics` if all of them are defined."""


def class_metrics(scores: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """Accuracy, F1, areas under curves, and each class's precision, recall and F1, by torchmetrics.

    Undefined metrics are left out: areas and balanced accuracy if a class has no text, a class's recall and F1 if it
    has no text, and its precision if no text is classified as it.

    Args:
        scores: [N], a high score means harmless.
        labels: [N] classes.
        threshold: below it, a score means toxic.
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
