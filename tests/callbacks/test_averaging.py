"""Averaged weights are validated, kept as the best and exported; the run goes on, or resumes, from its own."""

import pytest
import pytorch_lightning as pl
import torch

from aira.callbacks.averaging import Averaging
from aira.callbacks.checkpoint import Checkpoints
from aira.methods.sft import SFT
from aira.models.loading import load_model, load_tokenizer
from aira.parts import RunStart
from tests.methods.fitting import CONSTANT, OPTIMIZER, fit

TINY = "pkg://aira.models/tiny/causal"
SHAPE = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 256}
WEIGHT = "transformer.h.0.mlp.c_fc.weight"


class Watch(pl.Callback):
    """Keeps a weight after each step, and at each validation."""

    def __init__(self):
        self.steps, self.validated = [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.steps.append(module.model.get_parameter(WEIGHT).detach().clone())

    def on_validation_epoch_end(self, trainer, module):
        self.validated.append(module.model.get_parameter(WEIGHT).detach().clone())


def train(folder, *callbacks):
    tokenizer, added = load_tokenizer(TINY)
    torch.manual_seed(0)
    module = SFT(load_model(TINY, tokenizer, added, config=SHAPE), OPTIMIZER, CONSTANT)
    watch = Watch()
    sample = "pkg://aira.data/sample/instruction-en"
    settings = {"steps": 6, "validate": True, "every": 3, "batch_size": 4, "callbacks": [watch, *callbacks]}
    fit(module, tokenizer, sample, folder, "instruction", max_examples=40, **settings)
    return watch, module.model.get_parameter(WEIGHT).detach()


@pytest.mark.parametrize("decay, start", [(None, 0), (None, 0.5), (0.9, 2)])
def test_the_average(tmp_path, decay, start):
    """Catches a step too many or too few, training from averages, and a best or an export without them."""
    plain, last = train(tmp_path)
    checkpoints = Checkpoints(every_n_train_steps=1, monitor="val/loss", mode="min")
    checkpoints.begin(RunStart(tmp_path, {}))
    watch, exported = train(tmp_path, Averaging(decay, start), checkpoints)
    for ours, theirs in zip(watch.steps, plain.steps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)

    def expected(step):
        found = None
        taken = plain.steps[3 if start == 0.5 else start : step]
        for one in taken:
            found = one if found is None else (0.9 * found + 0.1 * one)
        return plain.steps[step - 1] if not taken else torch.stack(taken).mean(0) if decay is None else found

    close = {"atol": 1e-6, "rtol": 1e-5}
    for step, validated in zip((3, 6), watch.validated, strict=True):
        torch.testing.assert_close(validated, expected(step), **close)
    torch.testing.assert_close(exported, expected(6), **close)
    assert (exported - last).abs().max() > 1e-5
    best, kept = (
        torch.load(tmp_path / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"][f"model.{WEIGHT}"]
        for name in ("best", "last")
    )
    torch.testing.assert_close(best, expected(6), **close)
    torch.testing.assert_close(kept, plain.steps[-1], atol=0, rtol=0)
