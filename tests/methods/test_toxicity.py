"""Toxicity classification: the sign convention, the loss, the threshold and the metrics of both classes."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from aira.callbacks.checkpoint import Checkpoints
from aira.errors import AiraError
from aira.methods.toxicity import CLASS_METRICS, Toxicity, best_threshold, class_metrics
from aira.parts import RunStart
from tests.methods.fitting import CONSTANT, OPTIMIZER, fit, write
from tests.methods.test_reward import scorer

TEXTS = [{"text": f"You are {'kind' if i % 3 else 'a fool'}, number {i}.", "label": int(i % 3 == 0)} for i in range(12)]
PAIRS = [{"harmless": f"Thank you, number {i}.", "harmful": f"Go away, you fool {i}."} for i in range(12)]

PARTS = ("precision", "recall", "f1")


def trained(tmp_path, rows, kind, steps=3, **settings):
    model, tokenizer = scorer()
    module = Toxicity(model, OPTIMIZER.model_copy(update={"lr": 3e-3}), CONSTANT, **settings)
    path = write(tmp_path / "rows", rows, validation=rows)
    ours, trainer, data = fit(module, tokenizer, path, tmp_path, kind, head="score", steps=steps, validate=True)
    return module, ours, {name: float(value) for name, value in trainer.callback_metrics.items()}, data


@pytest.mark.parametrize(
    "rows, kind, objective",
    [(TEXTS, "labelled", "classification"), (PAIRS, "labelled", "classification"), (PAIRS, "harmful", "pairwise")],
)
def test_a_high_score_means_harmless(tmp_path, rows, kind, objective):
    """Catches a sign that is turned in one of the objectives or data forms."""
    module, _, found, data = trained(tmp_path, rows, kind, steps=40, objective=objective)
    labels = np.array([data.validation.labels[i] for i in module.indices])
    assert module.scores[labels == 0].mean() > module.scores[labels == 1].mean() + 1
    assert found["val/auroc"] > 0.95 and found["val/accuracy"] > 0.9
    module.before_export(module.model)
    threshold = module.model.config.threshold
    assert threshold == pytest.approx(found["val/threshold"])
    assert np.mean((module.scores < threshold) == (labels == 1)) == pytest.approx(found["val/accuracy"])


@pytest.mark.parametrize("weights", [None, "balanced", [0.5, 3.0]])
def test_the_loss_is_weighted_cross_entropy(tmp_path, weights):
    """Catches weights that go to the wrong class, and a target of the wrong sign."""
    module, _, found, _ = trained(tmp_path, TEXTS, "labelled", class_weights=weights)
    harmless, toxic = {None: (1, 1), "balanced": (12 / 16, 12 / 8)}.get(str(weights) if weights else None, (0.5, 3.0))
    expected = []
    for index, (score,) in zip(module.indices, module.scores):
        probability = 1 / (1 + math.exp(-score))  # that it is harmless
        is_toxic = TEXTS[index]["label"]
        expected.append(-toxic * math.log(1 - probability) if is_toxic else -harmless * math.log(probability))
    assert found["val/loss"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_threshold():
    """Catches one that flags the wrong side, or lies on a score; worked by hand."""
    scores = torch.tensor([-2.0, -1.0, 0.5, 1.0, 2.0, 3.0])
    labels = torch.tensor([1, 1, 0, 1, 0, 0])
    assert best_threshold(scores, labels, "accuracy") == pytest.approx(-0.25)  # 5 of 6, as with 1.5, and lower
    assert best_threshold(scores, labels, "f1") == pytest.approx(1.5)  # 2 * 3 / (2 * 3 + 1)
    assert best_threshold(scores, labels, "balanced_accuracy") == pytest.approx(-0.25)
    assert best_threshold(scores, torch.zeros(6, dtype=torch.long), "accuracy") < -2
    assert best_threshold(scores, torch.ones(6, dtype=torch.long), "accuracy") > 3
    same = torch.tensor([1.0, 1.0, 2.0])
    assert best_threshold(same, torch.tensor([1, 0, 0]), "accuracy") != 1.0


def test_metrics_of_scikit_learn():
    """Catches a positive class that is not the toxic one, or curves of the score's sign."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    scores = generator.normal(size=200) - labels
    found = class_metrics(torch.from_numpy(scores), torch.from_numpy(labels), 0.3)
    flagged = scores < 0.3
    report = sklearn_metrics.classification_report(labels, flagged, output_dict=True)
    expected = {
        "accuracy": report["accuracy"],
        "f1": report["1"]["f1-score"],
        "toxic/precision": report["1"]["precision"],
        "toxic/recall": report["1"]["recall"],
        "harmless/precision": report["0"]["precision"],
        "harmless/recall": report["0"]["recall"],
        "harmless/f1": report["0"]["f1-score"],
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, flagged),
        "auroc": sklearn_metrics.roc_auc_score(labels, -scores),
        "auprc": sklearn_metrics.average_precision_score(labels, -scores),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize(
    "labels, scores, left",  # harmless is 0 and scores above 0
    [
        (
            [0, 0, 0],
            [1, 2, -1],
            {"accuracy", "toxic/precision", "harmless/precision", "harmless/recall", "harmless/f1"},
        ),
        ([0, 0, 0], [1, 2, 3], {"accuracy", "harmless/precision", "harmless/recall", "harmless/f1"}),
        ([1, 1, 1], [1, -2, -1], {"accuracy", "f1", *(f"toxic/{one}" for one in PARTS), "harmless/precision"}),
        ([1, 1, 1], [-1, -2, -1], {"accuracy", "f1", *(f"toxic/{one}" for one in PARTS)}),
        ([1, 0, 1], [1, 2, 3], {*CLASS_METRICS} - {"toxic/precision"}),
        ([1, 0, 1], [-1, -2, -3], {*CLASS_METRICS} - {"harmless/precision"}),
        ([1, 0, 1], [-1, 2, 3], {*CLASS_METRICS}),
        ([1], [-1], {"accuracy", "f1", *(f"toxic/{one}" for one in PARTS)}),
        ([], [], set()),
    ],
)
def test_what_is_undefined_is_left_out(labels, scores, left):
    """Catches an area or an F1 of 0 where it is 0 / 0; what is left is what scikit-learn has, without a warning."""
    labels, scores = torch.tensor(labels, dtype=torch.long), torch.tensor(scores, dtype=torch.float)
    found = class_metrics(scores, labels, 0.0)
    assert set(found) == left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, cls in (("toxic", 1), ("harmless", 0)):
            for part in {f"{name}/{one}" for one in PARTS} & left:
                figure = getattr(sklearn_metrics, f"{part.split('/')[1]}_score")
                expected = figure((labels == cls).numpy(), ((scores < 0).long() == cls).numpy())
                assert found[part] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("rows, said", [(TEXTS[1:3], "all validation texts are harmless"), (TEXTS[:1], "are toxic")])
@pytest.mark.parametrize("monitor", ["val/auroc", "val/balanced_accuracy", "val/loss"])
def test_one_class_to_validate_on(tmp_path, rows, said, monitor, capsys):
    """Catches val/auroc 0 in the logs, and a run that goes by it."""
    model, tokenizer = scorer()
    module = Toxicity(model, OPTIMIZER, CONSTANT)
    path = write(tmp_path / "rows", TEXTS, validation=rows)
    callback = Checkpoints(every_n_train_steps=9, monitor=monitor, mode="min").begin(RunStart(tmp_path, {}))

    def run():
        settings = {"head": "score", "steps": 2, "validate": True, "callbacks": (callback,)}
        return fit(module, tokenizer, path, tmp_path, "labelled", **settings)[1]

    if monitor == "val/loss":
        found = run().callback_metrics
        assert module.threshold.item() == found["val/threshold"] == 0  # not beyond all scores, which flags all, or none
        assert "val/accuracy" in found and "val/auroc" not in found and "val/auprc" not in found
    else:
        with pytest.raises(AiraError, match=f"monitor={monitor} is undefined: .*{said}.*The run is saved"):
            run()
    assert re.search(rf"Undefined, and left out: .*val/auroc.*{said}", capsys.readouterr().out)
    assert (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_validation_score_that_is_no_number(tmp_path, number):
    """Catches figures that are made of NaN."""
    module = trained(tmp_path, TEXTS, "labelled")[0]
    module._collected = [([3, 5], [[1.0], [number]])]
    with pytest.raises(AiraError, match=r"1 of 2 validation rows is no number \(the first is row 6\)"):
        module.validation_metrics()
