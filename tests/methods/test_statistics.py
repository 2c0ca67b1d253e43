"""A loss that needs to know the whole batch: its gradients are those of one batch in one piece, in float64."""

import json

import pytest
import torch

from tests.methods.baseline import ROWS, Baseline, losses, start, train
from tests.methods.fitting import write
from tests.methods.test_combinations import launched


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "rows", ROWS, ROWS)


@pytest.fixture(scope="module")
def expected():
    """The loss, the baseline and the gradients, by Transformers on each text alone."""
    model, tokenizer = start()
    model = model.double()
    model.set_attn_implementation("sdpa")
    sums = {"chosen": [], "rejected": []}
    for row in ROWS:
        prompt = f"<|startofinstruction|>{row['prompt']}<|endofinstruction|>"
        first = len(tokenizer.encode(prompt, add_special_tokens=False))
        for side, found in sums.items():
            text = f"{prompt}{row[side]}<|endofcompletion|>"
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            log_probs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            found.append(log_probs[first - 1 :].sum())
    chosen, rejected = torch.stack(sums["chosen"]), torch.stack(sums["rejected"])
    baseline = (chosen - rejected).detach().mean().clamp(min=0)
    assert baseline > 1
    loss = losses(chosen, rejected, baseline).mean()
    loss.backward()
    return loss.item(), baseline.item(), {name: p.grad.float() for name, p in model.named_parameters()}


def assert_expected(gradients, metrics, expected):
    loss, baseline, theirs = expected
    for split in ("train", "val"):
        assert metrics[f"{split}/loss"] == pytest.approx(loss, abs=1e-6)
        assert metrics[f"{split}/baseline"] == pytest.approx(baseline, rel=1e-5)
    assert gradients.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tokens_per_row", [1, 100, 100_000])
def test_rows_make_no_difference(tmp_path, path, expected, tokens_per_row):
    """Catches a statistic of a row alone, or of a mean of means, and one that gradients flow through."""
    recorder, metrics = train("one", tokens_per_row, tmp_path, path)
    assert_expected(recorder.gradients[0], metrics, expected)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_make_no_difference(tmp_path, path, expected, strategy):
    """Catches a statistic of one rank's rows, or that counts rows which are run for nothing."""
    launched("baseline", strategy, 100, tmp_path, tmp_path / "found.pt")
    metrics = json.loads((tmp_path / "found.json").read_text())
    assert_expected(torch.load(tmp_path / "found.pt"), metrics, expected)


def test_dropout_draws_the_same(tmp_path, path):
    """Catches a statistic of another network than the one that is trained."""
    with_dropout, without = (train("one", 100, tmp_path, path, dropout=rate)[1] for rate in (0.3, 0.0))
    assert with_dropout["train/difference"] == pytest.approx(with_dropout["train/baseline"], rel=1e-6)
    assert with_dropout["train/difference"] != pytest.approx(without["train/difference"], rel=1e-3)


def test_a_batch_is_counted_in_a_statistic(tmp_path, path):
    """Catches a normaliser that can be nothing but the number of examples or tokens."""

    class Doubled(Baseline):
        unit = "twice"

        def row_statistics(self, row):
            statistics = super().row_statistics(row)
            return {**statistics, "twice": 2 * statistics["pairs"]}

    (ours, found), (plain, expected) = (train("one", 100, tmp_path, path, each) for each in (Doubled, Baseline))
    assert found["val/loss"] == pytest.approx(expected["val/loss"] / 2)
    for name, gradient in plain.gradients[0].items():
        torch.testing.assert_close(ours.gradients[0][name], gradient / 2)
