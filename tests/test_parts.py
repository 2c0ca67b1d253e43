"""A callback of the user's own has its say at the end of a run, by its configuration alone."""

import json
from types import SimpleNamespace

import pytest
from torch import nn

from aira.callbacks.monitors import Monitors
from aira.config.compose import build, compose_config
from aira.errors import AiraError
from aira.parts import RunStart, build_parts, check_parts
from aira.training import train
from tests.end_to_end.command import SMALL, run

CODE = """
import pytorch_lightning as pl
from aira.parts import Part

class Counted(pl.Callback, Part):
    def __init__(self, factor):
        self.factor = factor

    def begin(self, run):
        self.folder = run.folder
        return self

    def finish(self, run):
        assert not (run.folder / "export").exists() and run.metrics["steps"] == 2
        return {"counted": self.factor * sum(one.numel() for one in run.model.parameters()), "nothing": float("nan")}

    def on_export(self, run):
        assert (run.folder / "export" / "config.json").exists()
        (self.folder / "counted.txt").write_text(str(run.metrics["counted"]))

    def summary(self):
        return ["Counted it."]
"""


def test_a_part_of_the_users_own(tmp_path):
    """Catches a part that training has to know by name, and a metric of it that is lost or is no number."""
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    part = "defaults: [default]\nmine:\n  _target_: mine.Counted\n  factor: 2\n"
    (tmp_path / "conf" / "callbacks" / "mine.yaml").write_text(part)
    given = ["callbacks=mine", "callbacks.mine.factor=3", "trainer.max_steps=2", "hydra.run.dir=run"]
    printed = run(*SMALL, *given, "callbacks.samples.max_new_tokens=2", cwd=tmp_path)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["counted"] % 3 == 0 and metrics["counted"] > 1e5 and "nothing" not in metrics
    assert (tmp_path / "run" / "counted.txt").read_text() == str(metrics["counted"])
    assert "Counted it." in printed and "nothing is nan" in printed and metrics["perf/tokens_per_second"] > 0


FOREIGN = {
    "a class of another kind": ("callbacks", "collections.Counter", "callbacks.mine: collections.Counter is no "),
    "a layer": ("callbacks", "torch.nn.Identity", "callbacks.mine: torch.nn.Identity is no "),
    "a callback as a logger": ("logger", "pytorch_lightning.callbacks.Timer", "logger.mine: pytorch_lightning"),
    "a logger as a callback": ("callbacks", "pytorch_lightning.loggers.CSVLogger", "callbacks.mine: pytorch_lightning"),
    "no module": ("callbacks", "nowhere.Part", "callbacks.mine: nowhere.Part cannot be imported"),
    "no such class": ("callbacks", "aira.parts.Prat", "callbacks.mine: aira.parts.Prat cannot be imported"),
}


@pytest.mark.parametrize("group, target, said", FOREIGN.values(), ids=FOREIGN)
def test_a_part_of_another_kind(tmp_path, monkeypatch, group, target, said):
    """Catches a traceback of Lightning's after all was loaded, where a part is no callback or logger."""
    with pytest.raises(AiraError) as raised:
        check_parts({"mine": {"_target_": target}}, group)
    assert str(raised.value).startswith(said)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aira.training.load_tokenizer", lambda **_: pytest.fail("the work began"))
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "mine.yaml").write_text(f"mine:\n  _target_: {target}\n")
    with pytest.raises(AiraError) as raised:
        train(compose_config("train", [f"{group}=mine"]), tmp_path / "run")
    assert str(raised.value).startswith(said)


def test_what_a_function_gives_is_held_to_its_kind(tmp_path):
    """Catches a function, or a part's own `begin`, that gives something else than a callback."""
    run = RunStart(tmp_path, {})
    for target in ("tempfile.gettempdir", "aira.tracking.loggers.CSV"):
        with pytest.raises(AiraError, match=rf"callbacks\.mine: {target} gives no Callback of Lightning"):
            build_parts({"mine": {"_target_": target}}, "callbacks", run)
    with pytest.raises(AiraError, match=r"method=mine: tempfile\.gettempdir is no torch.nn.modules.module.Module"):
        build({"_target_": "tempfile.gettempdir"}, "method=mine", (nn.Module,))


def test_a_part_without_a_class(tmp_path, monkeypatch):
    """Catches advice that is of no use, where a callback or logger of the user's own has no `_target_`."""
    monkeypatch.chdir(tmp_path)
    for group in ("callbacks", "logger"):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text("mine:\n  monitor: val/loss\n")
        with pytest.raises(AiraError, match=rf"{group}\.mine has no _target_: the class that it is"):
            compose_config("train", [f"{group}=mine"])


def test_a_metric_that_a_callback_waits_for():
    """Catches a traceback of Lightning's at the first validation, and a metric that is measured and refused."""
    monitors = Monitors({"callbacks.early.monitor": "val/los"})
    trainer = SimpleNamespace(callback_metrics={"val/loss": 1.0, "train/loss": 2.0})
    with pytest.raises(AiraError, match=r"callbacks\.early\.monitor=val/los is not measured\. Did you mean 'val/loss'"):
        monitors.on_validation_end(trainer, None)
    trainer.callback_metrics["val/los"] = 3.0
    monitors.on_validation_end(trainer, None)
