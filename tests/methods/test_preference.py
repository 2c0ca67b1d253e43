"""Losses on pairs against their papers' formulas in float64, numbers worked by hand, and TRL."""

import math
from types import SimpleNamespace

import pytest
import torch

from aira.methods.preference import LOSSES, Settings, Side, bradley_terry

BETA, EPSILON, GAMMA = 0.3, 0.1, 0.7
CHOSEN = Side(torch.tensor([-10.0, -20.0, -3.0]), torch.tensor([4.0, 9.0, 2.0]), torch.tensor([-11.0, -18.0, -3.0]))
REJECTED = Side(torch.tensor([-12.0, -8.0, -3.5]), torch.tensor([5.0, 3.0, 2.0]), torch.tensor([-11.0, -12.0, -3.5]))
W = list(zip(*(part.double().tolist() for part in CHOSEN)))
L = list(zip(*(part.double().tolist() for part in REJECTED)))


def s(x):
    return 1 / (1 + math.exp(-x))


def odds(mean):
    return math.exp(mean) / (1 - math.exp(mean))


def formula(name, w, r):
    """One pair's loss as the paper writes it, from (log pi, |y|, log pi_0) of both responses."""
    rw, rl, mw, ml = w[0] - w[2], r[0] - r[2], w[0] / w[1], r[0] / r[1]
    d, dn = BETA * (rw - rl), BETA * (rw / w[1] - rl / r[1])
    if name == "exo_pair":
        q, p = [s(d), s(-d)], [1 - EPSILON, EPSILON]
        return sum(a * math.log(a / b) for a, b in zip(q, p))
    return {
        "sigmoid": -(1 - EPSILON) * math.log(s(d)) - EPSILON * math.log(s(-d)),
        "sigmoid_norm": -(1 - EPSILON) * math.log(s(dn)) - EPSILON * math.log(s(-dn)),
        "hinge": max(0.0, 1 - d),
        "ipo": (rw / w[1] - rl / r[1] - 1 / (2 * BETA)) ** 2,
        "robust": (-(1 - EPSILON) * math.log(s(d)) + EPSILON * math.log(s(-d))) / (1 - 2 * EPSILON),
        "apo_zero": 1 - s(BETA * rw) + s(BETA * rl),
        "apo_down": s(BETA * rw) + 1 - s(d),
        "simpo": -(1 - EPSILON) * math.log(s(BETA * (mw - ml) - GAMMA))
        - EPSILON * math.log(s(-BETA * (mw - ml) + GAMMA)),
        "orpo": -mw - BETA * math.log(s(math.log(odds(mw) / odds(ml)))),
    }[name]


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    """Catches a sign, a factor, a length or a smoothing that is not the paper's."""
    found = LOSSES[name](CHOSEN, REJECTED, Settings(BETA, EPSILON, GAMMA))
    expected = [formula(name, w, r) for w, r in zip(W, L)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3


def test_worked_by_hand():
    """Catches a mistake that formula and code share: beta 0.5, a ratio of 1 against one of -1, 2 and 4 tokens long."""
    chosen = Side(torch.tensor([-3.0]), torch.tensor([2.0]), torch.tensor([-4.0]))
    rejected = Side(torch.tensor([-5.0]), torch.tensor([4.0]), torch.tensor([-4.0]))
    expected = {
        "sigmoid": 0.3132617,  # -log sigma(0.5 * 2) = log(1 + 1/e)
        "hinge": 0.0,  # 1 - 0.5 * 2
        "ipo": 0.0625,  # (1/2 + 1/4 - 1)^2
        "robust": 0.3132617,
        "apo_zero": 0.7550813,  # 2 (1 - sigma(0.5)) = 2 * 0.3775407
        "apo_down": 0.8914007,  # sigma(0.5) + 1 - sigma(1) = 0.6224593 + 0.2689414
        "simpo": 0.7575991,  # -log sigma(0.5 (-1.5 + 1.25)) = log(1 + e^0.125)
    }
    for name, value in expected.items():
        assert LOSSES[name](chosen, rejected, Settings(0.5)).item() == pytest.approx(value, abs=1e-6)


def test_no_difference_is_ln_2():
    """Catches an offset: a policy that is its reference knows nothing."""
    same = Side(torch.tensor([-7.0]), torch.tensor([3.0]), torch.tensor([-7.0]))
    other = Side(torch.tensor([-9.0]), torch.tensor([5.0]), torch.tensor([-9.0]))
    for name in ("sigmoid", "sigmoid_norm", "robust"):
        assert LOSSES[name](same, other, Settings(0.1)).item() == pytest.approx(math.log(2), abs=1e-7)
    assert bradley_terry(torch.zeros(1), 0.3).item() == pytest.approx(math.log(2), abs=1e-7)


def test_orpo_of_a_response_that_is_certain():
    """Catches a gradient that is no number where a response's probability is rounded to 1."""
    certain = torch.zeros(2, requires_grad=True)
    chosen, rejected = (Side(sums, torch.ones(2), torch.zeros(2)) for sums in (certain, torch.tensor([-1.0, -2.0])))
    LOSSES["orpo"](chosen, rejected, Settings(BETA)).sum().backward()
    assert certain.grad.isfinite().all()


def test_simpo_and_orpo_of_trl():
    """Catches a loss without a reference that differs from TRL's experimental trainers."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    settings = {"beta": BETA, "loss_type": "simpo", "simpo_gamma": GAMMA, "label_smoothing": EPSILON, "alpha": 0.0}
    theirs = SimpleNamespace(**settings, accelerator=SimpleNamespace(device="cpu"))
    expected = CPOTrainer.cpo_loss(theirs, CHOSEN.mean, REJECTED.mean)[0]
    torch.testing.assert_close(LOSSES["simpo"](CHOSEN, REJECTED, Settings(BETA, EPSILON, GAMMA)), expected)
    bonus = ORPOTrainer.odds_ratio_loss(theirs, CHOSEN.mean, REJECTED.mean)[0]
    torch.testing.assert_close(LOSSES["orpo"](CHOSEN, REJECTED, Settings(BETA)), -CHOSEN.mean - bonus)
