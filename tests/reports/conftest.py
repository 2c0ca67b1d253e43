"""Folders like those that runs leave behind, made without training."""

import functools
import json

import numpy as np
import pytest

from aira.config.compose import compose_config
from aira.config.record import to_dict_without_env, write_config


@functools.cache
def composed(*overrides):
    return to_dict_without_env(compose_config("train", list(overrides)))


@pytest.fixture
def make(tmp_path):
    """Make a run's folder: overrides, final loss, and scores as rows of (row, branch, class, score)."""

    def made(name, *overrides, loss=1.0, scores=(), answers=(), trial=None, finished=True):
        folder = tmp_path / "runs" / name
        write_config(folder, composed(*overrides))
        logs = folder / "logs" / "version_0"
        logs.mkdir(parents=True)
        lines = [f"{step},{loss + 1 / (step + 1)},{'' if step % 2 else loss}" for step in range(6)]
        (logs / "metrics.csv").write_text("\n".join(["step,train/loss,val/loss", *lines]) + "\n")
        if finished:
            metrics = {"val/loss": loss, "train/loss": loss / 2, "emissions/energy_kwh": 2e-5, "seconds": 12.5}
            (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "environment.json").write_text(json.dumps({"python": "3", "commit": "abc"}))
        if len(scores):
            np.savetxt(folder / "scores.csv", scores, delimiter=",", header="row,branch,label,score", comments="")
        with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
            for step, question, answer in answers:
                file.write(json.dumps({"step": step, "question": question, "answer": answer}) + "\n")
        if trial is not None:
            (folder / "trial.json").write_text(json.dumps(trial))
        return folder

    return made
