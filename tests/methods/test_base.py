"""A training step: the same result for every row budget, equal to a padded reference, with a schedule as documented."""

import json
import math
from importlib.resources import files

import numpy as np
import pytest
import torch

from aira.errors import AiraError
from aira.methods.dpo import DPO
from aira.methods.reward import Reward
from aira.methods.sft import SFT
from aira.methods.toxicity import Toxicity
from aira.models.loading import load_model, load_tokenizer
from tests.methods import fitting
from tests.methods.fitting import CONSTANT

TINY = "pkg://aira.models/tiny/causal"
SHAPE = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 256}
OPTIMIZER = fitting.OPTIMIZER.model_copy(update={"weight_decay": 0.01})


class Recorder(fitting.Recorder):
    """Keeps the gradients before each step, too."""

    def __init__(self):
        super().__init__()
        self.gradients = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})

    @property
    def losses(self):
        return self.values("loss")


def fit(cache, steps=3, dropout=0.0, **settings):
    """Train the tiny model for a few steps from the same weights."""
    tokenizer, added = load_tokenizer(TINY)
    torch.manual_seed(0)
    model = load_model(TINY, tokenizer, added, config=SHAPE, dropout=dropout)
    path, module = "pkg://aira.data/sample/instruction-en", SFT(model, OPTIMIZER, CONSTANT)
    settings = {"batch_size": 8, "recorder": Recorder(), "shuffled": True, **settings}
    recorder, _, data = fitting.fit(module, tokenizer, path, cache, "instruction", steps=steps, **settings)
    return recorder, module, data


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_the_row_budget_changes_nothing(cache, budget):
    """Catches losses averaged by row (a mean of means) and gradients that are not added up over rows."""
    expected, _, _ = fit(cache, tokens_per_row=300)
    found, _, _ = fit(cache, tokens_per_row=budget)
    np.testing.assert_allclose(found.losses, expected.losses, atol=1e-5)
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_loss_and_gradients_equal_a_padded_reference(cache, loss_on):
    """Catches a wrong scored mask or normaliser: the reference is Transformers' own loss on a padded batch."""
    recorder, _, data = fit(cache, loss_on=loss_on, steps=1)
    tokenizer, added = load_tokenizer(TINY)
    torch.manual_seed(0)
    model = load_model(TINY, tokenizer, added, config=SHAPE, attn_implementation="sdpa")
    order = np.arange(len(data.train))
    np.random.default_rng([0, 0]).shuffle(order)
    texts, prompts = [], []
    for i in order[:8]:
        row = data.train.parts[0].rows[int(data.train.index[i])]
        prompts.append(f"<|startofinstruction|>{row['prompt']}<|endofinstruction|>")
        texts.append(f"{prompts[-1]}{row['completion']}<|endofcompletion|>")
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if loss_on == "completion":
        for i, prompt in enumerate(prompts):
            labels[i, : len(tokenizer.encode(prompt, add_special_tokens=False))] = -100
    loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert recorder.losses[0] == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        clipped = recorder.gradients[0][f"model.{name}"]
        clipped = clipped * min(1.0, 1.0 / _norm(recorder.gradients[0]))
        torch.testing.assert_close(clipped, parameter.grad, atol=1e-5, rtol=1e-4)


def _norm(gradients):
    return math.sqrt(sum(gradient.double().pow(2).sum().item() for gradient in gradients.values()))


def test_a_gradient_that_is_no_number_stops_the_run(cache, monkeypatch):
    """Catches weights that become NaN under a loss that is finite."""

    def flat(self, row, totals):
        loss, sums = whole(self, row, totals)
        first = next(self.model.parameters()).flatten()[0]
        return loss + (first - first).sqrt(), sums

    whole = SFT.row_loss
    monkeypatch.setattr(SFT, "row_loss", flat)
    with pytest.raises(AiraError, match="gradient's norm is nan at step 0, with a finite loss"):
        fit(cache)


def test_dropout_depends_on_the_step_alone(cache):
    """Catches dropout that is off in training, and one that draws from a state which sampling also moves."""
    first, _, _ = fit(cache, dropout=0.3)
    torch.rand(5)
    second, _, _ = fit(cache, dropout=0.3)
    without, _, _ = fit(cache)
    assert first.losses == second.losses
    assert abs(first.losses[0] - without.losses[0]) > 1e-3


def test_bf16(cache):
    """Catches a precision that is not applied, or that breaks the hand-written gradients."""
    full, _, _ = fit(cache)
    half, _, _ = fit(cache, precision="bf16-mixed")
    assert half.losses != full.losses
    np.testing.assert_allclose(half.losses, full.losses, rtol=0.01)


def test_vectors_are_not_decayed(cache):
    """Catches weight decay on biases and norms."""
    _, module, _ = fit(cache, steps=1)
    decayed, plain = module.optimizers().optimizer.param_groups
    assert decayed["weight_decay"] == 0.01 and all(p.dim() > 1 for p in decayed["params"])
    assert plain["weight_decay"] == 0 and all(p.dim() == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(module.parameters()))


@pytest.mark.parametrize(
    "method, kind, settings",
    [
        (SFT, "instruction", {}),
        (DPO, "preference", {}),
        (Reward, "preference", {}),
        (Toxicity, "labelled", {"threshold_by": "balanced_accuracy"}),
        (Toxicity, "harmful", {"objective": "pairwise"}),
    ],
)
def test_a_name_is_one_figure_in_training_and_validation(tmp_path, method, kind, settings):
    """Catches a metric that is not the same figure for the same texts and weights in both."""
    head = "score" if method in (Reward, Toxicity) else "lm"
    tokenizer, added = load_tokenizer(TINY, head=head)
    torch.manual_seed(1)
    model = load_model(TINY, tokenizer, added, config=SHAPE, head=head, label="a label" if head == "score" else None)
    settings |= {"tokenizer": tokenizer, "cache_dir": str(tmp_path)} if method is DPO else {}
    frozen = OPTIMIZER.model_copy(update={"lr": 0.0})
    module = method(model, frozen, CONSTANT, **settings)
    lines = (files("aira.data") / f"sample/{kind}-en/validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:48]]
    path = fitting.write(tmp_path / "rows", rows, rows)
    size = {"steps": 1, "batch_size": len(rows)}
    _, trainer, _ = fitting.fit(module, tokenizer, path, tmp_path, kind, head=head, validate=True, **size)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    both = [name for name in metrics if name.replace("train/", "val/") in metrics and name.startswith("train/")]
    assert "train/loss" in both and (method is SFT or len(both) > 1)
    for name in both:
        assert metrics[name] == pytest.approx(metrics[name.replace("train/", "val/")], rel=1e-4, abs=1e-5), name
