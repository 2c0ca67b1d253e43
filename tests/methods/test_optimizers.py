"""Optimizers step as their libraries do, on the weights that they are for; schedules are Transformers'."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from aira.config.schema import Lora, Schedule
from aira.methods.optimizers import learning_rates, make_optimizer
from aira.methods.sft import SFT
from aira.models.loading import load_model, load_tokenizer
from tests.methods.fitting import CONSTANT, OPTIMIZER, fit

TINY = "pkg://aira.models/tiny/causal"
SHAPE = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 256}
SAMPLE = "pkg://aira.data/sample/instruction-en"


def tiny(**settings):
    tokenizer, added = load_tokenizer(TINY)
    torch.manual_seed(0)
    return load_model(TINY, tokenizer, added, config=SHAPE, **settings), tokenizer


def named(name, **settings):
    return OPTIMIZER.model_copy(update={"name": name, **settings})


def stepped(model, optimizer, steps=3):
    """The weights after steps with the same made-up gradients."""
    torch.manual_seed(1)
    for _ in range(steps):
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_each_weight_steps_as_by_its_library(name):
    """Catches a setting that is not passed on, decay of vectors, and Muon on embeddings."""
    ours, _ = tiny()
    theirs = copy.deepcopy(ours)
    found = stepped(ours, make_optimizer(ours, named(name, weight_decay=0.1, momentum=0.8), fused=False))
    matrices = {key for key, one in theirs.named_parameters() if one.dim() == 2}
    hidden = {key for key in matrices if ".h." in key}
    assert len(hidden) == 8 and len(matrices) == 10  # the head is tied to the embeddings; and there are positions
    groups = {"muon": hidden} if name == "muon" else {}
    groups["decayed"] = matrices - groups.get("muon", set())
    groups["vectors"] = set(dict(theirs.named_parameters())) - matrices
    parts = {group: [one for key, one in theirs.named_parameters() if key in keys] for group, keys in groups.items()}

    class All:
        def __init__(self):
            self.all = []
            for group, weights in parts.items():
                decay = 0.0 if group == "vectors" else 0.1
                if group == "muon":
                    rate = {"lr": 1e-3, "momentum": 0.8, "adjust_lr_fn": "match_rms_adamw"}
                    self.all.append(torch.optim.Muon(weights, weight_decay=decay, **rate))
                elif name == "adafactor":
                    self.all.append(torch.optim.Adafactor(weights, lr=1e-3, weight_decay=decay))
                else:
                    adam = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
                    self.all.append(torch.optim.AdamW(weights, weight_decay=decay, **adam))

        def step(self):
            for one in self.all:
                one.step()

    for key, expected in stepped(theirs, All()).items():
        torch.testing.assert_close(found[key], expected, atol=1e-7, rtol=1e-6)


def test_muon_leaves_heads_and_rows_of_tokens_alone():
    """Catches a score head, or the rows of new tokens beside adapters, that are made orthogonal."""
    tokenizer, added = load_tokenizer("pkg://aira.models/tiny/causal", head="score")
    model = load_model(TINY, tokenizer, added, config=SHAPE, head="score", label="reward")
    muon, _ = make_optimizer(model, named("muon"), fused=False).parts
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert all(".h." in names[id(weight)] for group in muon.param_groups for weight in group["params"])
    model, _ = tiny(lora=Lora(r=2, alpha=4, dropout=0.0, target_modules="all-linear"))
    muon, _ = make_optimizer(model, named("muon"), fused=False).parts
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert all("lora_" in names[id(weight)] for group in muon.param_groups for weight in group["params"])


def test_the_state_of_muon_and_adamw_is_restored():
    """Catches momentum or learning rates that a resumed run does not have."""
    ours, _ = tiny()
    optimizer = make_optimizer(ours, named("muon"), fused=False)
    stepped(ours, optimizer)
    again = copy.deepcopy(ours)
    other = make_optimizer(again, named("muon", lr=1.0), fused=False)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    found, expected = stepped(again, other), stepped(ours, optimizer)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=0, rtol=0)
    for group in other.param_groups:
        group["lr"] = 0.0  # as by a schedule
    before = {key: value.detach().clone() for key, value in found.items()}
    for key, value in stepped(again, other).items():
        torch.testing.assert_close(value, before[key], atol=0, rtol=0)


@pytest.mark.parametrize("name", ["adamw-8bit", "adafactor", "muon"])
def test_training_lowers_the_loss(tmp_path, name):
    """Catches an optimizer that does not work with the schedule, the clipping or the trainer."""
    model, tokenizer = tiny()
    rate = {"lr": 1e-1 if name == "adafactor" else 3e-3}
    module = SFT(model, named(name, **rate), CONSTANT)
    recorder, *_ = fit(module, tokenizer, SAMPLE, tmp_path, "instruction", steps=12, batch_size=8)
    losses = recorder.values("loss")
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5


def schedule(name, warmup=0, **settings):
    return Schedule(**{"name": name, "warmup": warmup, "min_lr": 0.0, "decay": 0.1, "power": 1.0} | settings)


def test_the_formulas_of_the_schedules():
    """Catches a first step without effect, and another value than that of the published formula by a single bit."""
    for warmup, steps in ((0, 10), (4, 10), (0.03, 475), (100, 1000)):
        count = math.ceil(warmup * steps) if warmup < 1 else warmup
        for step in range(steps):
            progress = (step - count) / max(1, steps - count)
            formulas = {
                "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
                "linear": 1 - progress,
                "constant": 1.0,
            }
            for name, value in formulas.items():
                expected = (step + 1) / count if step < count else value
                assert learning_rates(schedule(name, warmup), 2e-5, steps)(step) == expected, (name, step)


@pytest.mark.parametrize(
    "name, theirs, settings, given",
    [
        ("cosine_with_min_lr", "cosine_with_min_lr", {"min_lr": 1e-5}, {"min_lr": 1e-5}),
        ("polynomial", "polynomial", {"min_lr": 1e-5, "power": 2.0}, {"lr_end": 1e-5, "power": 2.0}),
        ("inverse_sqrt", "inverse_sqrt", {}, {}),
        ("wsd", "warmup_stable_decay", {"min_lr": 1e-5, "decay": 0.25}, {"min_lr_ratio": 0.1, "num_decay_steps": 10}),
    ],
)
def test_schedules_of_transformers(name, theirs, settings, given):
    """Catches another end or shape than Transformers' own scheduler has after the warm-up, to 1e-12."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler = get_scheduler(theirs, optimizer, 5, 40, given)
    factor = learning_rates(schedule(name, 5, **settings), 1e-4, 40)
    for step in range(40):
        if step >= 5:
            assert 1e-4 * factor(step) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert [factor(step) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_short_run_with_a_decay():
    """Catches a run of a step or two whose only learning rate is 0."""
    assert learning_rates(schedule("wsd", 0.03), 1e-4, 1)(0) == 1.0
    assert [learning_rates(schedule("wsd"), 1e-4, 2)(step) for step in (0, 1)] == [1.0, 1.0]
