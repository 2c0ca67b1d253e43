"""What `pip install` puts into an environment works by itself, in any folder."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.end_to_end.command import ENVIRONMENT, ROOT, SMALL


@pytest.mark.slow
def test_a_wheel_in_an_empty_folder(tmp_path):
    """Catches a file that is not in the wheel, a command that needs the clone, and processes that do not find it."""
    build = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(installed)
    (empty / "conf" / "model").mkdir(parents=True)
    (empty / "conf" / "model" / "mine.yaml").write_text("defaults: [gpt2-tiny]\nname: mine\n")
    settings = [*SMALL, "trainer.max_steps=2", "callbacks.samples.max_new_tokens=2"]

    def aira(*arguments):
        environment = {**ENVIRONMENT, "PYTHONPATH": os.fspath(installed)}
        command = [sys.executable, "-m", "aira", *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "push" in aira("--help") and aira("--version").strip() in wheel.name
    aira("train", "model=mine", "trainer=ddp-cpu", "hydra.run.dir=run", *settings)
    assert (empty / "run" / "export" / "model.safetensors").exists()
    aira("evaluate", "model.path=run", "eval.limit=2")
    aira("train", "-m", "seed=1,2", "hydra.sweep.dir=sweep", *settings)
    assert len(list(empty.glob("sweep/*/metrics.json"))) == 2
    where = "import aira; print(aira.__file__)"
    environment = {**ENVIRONMENT, "PYTHONPATH": os.fspath(installed)}
    done = subprocess.run([sys.executable, "-c", where], cwd=empty, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(str(installed))
