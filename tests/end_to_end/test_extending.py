"""The new method of docs/extending.md, as it stands there."""

import os
import re

import pytest
from safetensors.torch import load_file

from tests.end_to_end.command import ROOT, SMALL, finish, run_folder, start


def write_files(text, folder):
    """The documented files of conf/."""
    for name, content in re.findall(r"```yaml\n# (conf/\S+)\n(.*?)```", text, re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


@pytest.mark.slow
def test_a_new_method(tmp_path):
    """Catches a documented path that does not work, or takes more than 60 lines."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 60 and "aira train method=unlikelihood method.beta=0.5" in text
    (tmp_path / "unlikelihood.py").write_text(code, encoding="utf-8")
    write_files(text, tmp_path)
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    arguments = [*SMALL, "method=unlikelihood", "method.beta=0.5", "callbacks=early", "trainer.log_every_n_steps=1"]
    short = ["trainer.max_steps=6", "optimizer.lr=1e-3", "data.max_examples=8"]
    printed = finish(start(*arguments, *short, cwd=tmp_path, environment=path))
    assert "Done in" in printed and load_file(run_folder(tmp_path) / "export" / "model.safetensors")
    log = (run_folder(tmp_path) / "logs/version_0/metrics.csv").read_text().splitlines()
    column = log[0].split(",").index("train/loss")
    losses = [float(line.split(",")[column]) for line in log[1:] if line.split(",")[column]]
    assert len(losses) == 6 and losses[-1] < losses[0]
