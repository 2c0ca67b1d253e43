"""A callback of the user's own has its say at the end of a run, by its configuration alone."""

import json

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
