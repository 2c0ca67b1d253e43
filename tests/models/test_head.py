"""The language-model head: log-probs and their losses against plain formulas in float64."""

import pytest
import torch

import aira.models.head
from aira.models.head import cross_entropy, log_probs


@pytest.fixture
def problem(monkeypatch):
    """Hidden states, targets and a head that take several chunks, the last one not full."""
    monkeypatch.setattr(aira.models.head, "CHUNK", 4)
    torch.manual_seed(0)
    return torch.randn(10, 8, requires_grad=True), torch.randint(0, 20, (10,)), torch.nn.Linear(8, 20)


def reference(hidden, targets, head):
    logits = hidden.double() @ head.weight.double().T + head.bias.double()
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def assert_same_gradients(ours, theirs, inputs):
    got = torch.autograd.grad(ours, inputs)
    for mine, expected in zip(got, torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, expected.float(), atol=1e-6, rtol=1e-5)


def test_log_probs(problem):
    """Catches a chunk that is left out or shifted, and a wrong sign or weight in the hand-written gradient."""
    hidden, targets, head = problem
    ours, expected = log_probs(hidden, targets, head), reference(hidden, targets, head)
    torch.testing.assert_close(ours, expected.float(), atol=1e-6, rtol=1e-6)
    weights = torch.linspace(-2, 3, 10)
    assert_same_gradients((ours * weights).sum(), (expected * weights).sum(), [hidden, *head.parameters()])


def test_cross_entropy(problem):
    """Catches a gradient that was taken in the forward pass and not scaled by what comes after it."""
    hidden, targets, head = problem
    loss, values = cross_entropy(hidden, targets, head)
    expected = reference(hidden, targets, head)
    assert loss.item() == pytest.approx(-expected.sum().item(), abs=1e-5)
    assert not values.requires_grad
    assert_same_gradients(loss * 0.3, -expected.sum() * 0.3, [hidden, *head.parameters()])


def test_no_gradient_is_taken_without_need(problem):
    """Catches work and memory spent on gradients during validation."""
    hidden, targets, head = problem
    with torch.no_grad():
        loss, _ = cross_entropy(hidden, targets, head)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(-reference(hidden, targets, head).sum().item(), abs=1e-5)


@pytest.mark.parametrize("function", [log_probs, lambda *a: -cross_entropy(*a)[0]])
def test_bf16_autocast_with_kept_casts(problem, function):
    """Catches a head whose gradient is lost because its cast was cached where no gradient was recorded."""
    hidden, targets, head = problem
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        got = torch.autograd.grad(function(hidden, targets, head).sum(), [hidden, *head.parameters()])
    expected = torch.autograd.grad(reference(hidden, targets, head).sum(), [hidden, *head.parameters()])
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs.float(), atol=0.03, rtol=0.05)


def test_a_frozen_head_passes_gradients_on(problem):
    """Catches LoRA training that gets no gradient through a frozen LM head."""
    hidden, targets, head = problem
    head.requires_grad_(False)
    loss, _ = cross_entropy(hidden, targets, head)
    assert_same_gradients(loss, -reference(hidden, targets, head).sum(), [hidden])


@pytest.mark.parametrize("function", [lambda *a: -log_probs(*a).sum(), lambda *a: cross_entropy(*a)[0]])
def test_float16_keeps_gradients_that_the_loss_scaler_saves(problem, function):
    """Catches a gradient that is taken before the loss is scaled, where float16 has no number as small."""
    hidden, targets, head = problem
    hidden, targets = hidden[:1], targets[:1]
    with torch.no_grad():
        head.bias[targets] += 16.0  # so the other tokens' probabilities are near 1e-7, and float16 ends at 6e-8
    with torch.autocast("cpu", torch.float16):
        (got,) = torch.autograd.grad(function(hidden, targets, head) * 2.0**16, hidden)
    (expected,) = torch.autograd.grad(-reference(hidden, targets, head).sum(), hidden)
    assert (got / 2**16 - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("function", [lambda *a: -log_probs(*a).sum(), lambda *a: cross_entropy(*a)[0]])
def test_gradients_of_a_half_precision_head_are_added_up_in_float32(monkeypatch, function):
    """Catches a sum over chunks that stands still in bfloat16, as of sharded weights, once it is large."""
    monkeypatch.setattr(aira.models.head, "CHUNK", 4)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 20).bfloat16()
    hidden, targets = (
        torch.randn(1, 8).abs().expand(4000, 8).bfloat16().contiguous(),
        torch.zeros(4000, dtype=torch.long),
    )
    got = torch.autograd.grad(function(hidden, targets, head), list(head.parameters()))
    expected = torch.autograd.grad(-reference(hidden, targets, head).sum(), list(head.parameters()))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=0.03, atol=1.0)
