"""What is written, from training to a push, names no key, no user and no home folder."""

import os
import subprocess
import sys

import pytest

from tests.end_to_end.command import ENVIRONMENT, ROOT, SMALL
from tests.wandb_records import artifacts

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_plantedplantedplantedplantedplanted",
    "AWS_SECRET_ACCESS_KEY": "plantedaws",
    "OPENAI_API_KEY": "sk-planted",
    "USER": "plantedname",
    "LOGNAME": "plantedname",
}


@pytest.mark.slow
def test_secrets(tmp_path):
    """Catches keys in configurations, logs, cards, pages and Weights & Biases, and a lineage with a hole in it."""
    home = tmp_path / "plantedhome"
    work = home / "work"
    work.mkdir(parents=True)
    cache = os.environ.get("AIRA_CACHE", str(tmp_path / "cache"))
    environment = {**ENVIRONMENT, **SECRETS, "HOME": str(home), "AIRA_CACHE": cache, "PYTHONPATH": str(ROOT)}

    def command(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=work, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    given = [*SMALL, "trainer.max_steps=4", "callbacks.samples.every_n_steps=2", "logger=[wandb,tensorboard]"]
    train, runs = str(ROOT / "train.py"), [work / "outputs" / "day" / name for name in ("first", "second")]
    command(train, *given, "hydra.run.dir=outputs/day/first")
    first = f"model.path={runs[0]}/export"
    command(train, *given, "method=dpo", "model=gpt2-tiny", first, "hydra.run.dir=outputs/day/second")
    command(str(ROOT / "evaluate.py"), "models=[outputs/day/*]", "eval.limit=20", "logger=wandb")
    command("-m", "aira.commands.report", f"runs={work}/outputs/day", "wandb=true")
    shown = command("-m", "aira.commands.push", f"run={runs[1]}", "repo=somebody/model")
    assert "Nothing was sent" in shown and "model.safetensors" in shown and "co2_eq_emissions" in shown

    secrets = {text.encode() for text in SECRETS.values()}
    files = [file for file in work.rglob("*") if file.is_file()]
    assert len(files) > 60
    for file in files:
        content = file.read_bytes()
        assert not [text for text in secrets if text in content], file
        # an offline run of Weights & Biases tells its client where the files are that wait for `wandb sync`, and a
        # configuration is kept as it was given: with the path of the model here
        if "wandb" not in file.parts and ".hydra" not in file.parts:
            assert str(home).encode() not in content, file

    page = (work / "outputs/day/report.html").read_text()
    assert "sample_answers_en (20 rows" in page and "sample_answers_en" in (runs[1] / "report.html").read_text()
    first, second = (artifacts(next(one.glob("wandb/off*/run-*.wandb"))) for one in runs)
    evaluated = artifacts(next(work.glob("outputs/*/*-evaluate-sample/wandb/off*/run-*.wandb")))
    (digest,) = [digest for name, (_, used, digest) in first["model"].items() if name == "day-first" and not used]
    assert second["model"]["day-first"][1:] == evaluated["model"]["day-first"][1:] == (True, digest)
    assert not second["model"]["day-second"][1] and evaluated["model"]["day-second"][1]
    assert evaluated["evaluation"]["evaluation-sample"][0] == {"first/results.json", "second/results.json"}
