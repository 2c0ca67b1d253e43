"""Tokens and examples a second, by a clock that stands still unless a part of the run moves it."""

import time

import numpy as np
import pytest
import pytorch_lightning as pl

from aira.callbacks.throughput import Throughput
from aira.data.module import _Steps
from aira.data.plan import Plan
from aira.methods.reward import Reward
from aira.methods.sft import SFT
from tests.methods.fitting import CONSTANT, OPTIMIZER, fit, write
from tests.methods.test_dpo import policy
from tests.methods.test_reward import ROWS, scorer

PROMPT, ANSWER = "How are you?", "Very well, thank you."


class Slow(pl.Callback):
    """Takes 1000 s after each step, and 500 s after each validation."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, *_):
        self.clock.now += 1000

    def on_validation_end(self, *_):
        self.clock.now += 500


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """10 s to read a batch, 1 s for each forward pass in training and 100 s for one in validation."""
    clock = Clock()
    load, loss = _Steps.__getitem__, SFT.row_loss

    def loaded(self, step):
        clock.now += 10
        return load(self, step)

    def run(self, *arguments):
        clock.now += 1 if self.training else 100
        return loss(self, *arguments)

    monkeypatch.setattr(_Steps, "__getitem__", loaded)
    monkeypatch.setattr(SFT, "row_loss", run)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


@pytest.mark.parametrize("order", [1, -1])
def test_the_time_of_steps(tmp_path, clock, order):
    """Catches data that is not waited for, and samples, checkpoints or validations that count as training."""
    model, tokenizer = policy()
    path = write(tmp_path / "rows", [{"prompt": PROMPT, "completion": ANSWER}] * 8)
    found = Throughput()
    module, parts = SFT(model, OPTIMIZER, CONSTANT), [found, Slow(clock)][::order]
    shape = {"steps": 4, "batch_size": 2, "tokens_per_row": 1, "validate": True, "callbacks": parts}
    fit(module, tokenizer, path, tmp_path, "instruction", every=2, **shape)
    each = len(tokenizer.encode(f"<|startofinstruction|>{PROMPT}<|endofinstruction|>{ANSWER}<|endofcompletion|>"))
    # 4 steps, each with 10 s for the batch of two rows and 1 s for each of them; 2 validations of 110 s + 500 s
    assert found.seconds == 4 * (10 + 2) and clock.now == 48 + 4 * 1000 + 2 * (10 + 100 + 500)
    measured = found.averages()
    assert measured["tokens_per_second"] == pytest.approx(8 * each / 48)
    assert measured["examples_per_second"] == pytest.approx(8 / 48)


def test_padding_is_no_token(tmp_path):
    """Catches an encoder's padding, or its padding rows, among the tokens."""
    model, tokenizer = scorer("bert")
    path = write(tmp_path / "rows", ROWS[:4])
    found = Throughput()
    module = Reward(model, OPTIMIZER, CONSTANT)
    settings = {"steps": 2, "batch_size": 2, "callbacks": [found], "padded": True, "head": "score"}
    _, _, data = fit(module, tokenizer, path, tmp_path, "preference", **settings)
    pairs = [(row["prompt"], row[side]) for row in ROWS[:4] for side in ("chosen", "rejected")]
    expected = sum(len(tokenizer(*pair)["input_ids"]) for pair in pairs)
    assert found.tokens == expected < data.train.lengths.sum() and found.examples == 4


def test_tokens_of_all_ranks():
    """Catches a rank that takes its own tokens, padding rows included, for those of each; worked by hand."""
    padded, inputs = np.array([100, 60, 40, 30]), np.array([70, 50, 40, 25])
    settings = {"batch_size": 4, "tokens_per_row": 60, "shuffle": False, "equal_rows": True, "padded": True}
    plans = [Plan(padded, np.zeros(4, int), rank=rank, ranks=3, input_tokens=inputs, **settings) for rank in range(3)]
    (first,), (second,), (third,) = map(list, plans)
    assert [first.real_rows, second.real_rows, third.real_rows] == [1, 1, 2]
    assert len(first.rows) == len(second.rows) == 2
    assert first.input_tokens == second.input_tokens == third.input_tokens == 70 + 50 + 40 + 25
