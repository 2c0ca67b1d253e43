"""The pipeline: what it plans, and that a stop loses nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from aira.commands.pipeline import build_stages
from aira.config.compose import compose_config, compose_settings
from aira.config.record import to_dict
from aira.config.schema import Pipeline
from aira.errors import AiraError
from aira.files import override
from tests.end_to_end.command import ENVIRONMENT, ROOT


def planned(tmp_path, *overrides, shared=()):
    values = compose_settings(Pipeline, [f"output={tmp_path}/p", *overrides])
    return {stage.name: stage for stage in build_stages(values, shared)}


@pytest.mark.parametrize("pipeline, language", [("sample", "en"), ("aira-2-124m", "pt")])
def test_every_pipeline_composes(tmp_path, pipeline, language):
    """Catches an override that a stage's command does not have; a skipped stage leaves the others their defaults."""
    chain = planned(tmp_path, f"pipeline={pipeline}", f"language={language}")
    given = f"{tmp_path}/p"
    data = to_dict(compose_config("train", chain["dpo"].overrides))["data"]
    assert (data["path"], data["split"]) == (f"{given}/rejection_sampling/pairs", "train")
    assert f"model.path={given}/sft" in chain["dpo"].overrides
    chain = planned(tmp_path, f"pipeline={pipeline}", f"language={language}", "skip=[rejection_sampling,toxicity]")
    own = to_dict(compose_config("train", ["method=dpo", f"data={data['name']}", f"language={language}"]))["data"]
    data = to_dict(compose_config("train", chain["dpo"].overrides))["data"]
    assert (data["path"], data["split"]) == (own["path"], own["split"])
    evaluated = [text for stage in chain.values() for text in stage.overrides if text.startswith("models=")]
    assert evaluated and not any("toxicity" in text for text in evaluated)


@pytest.mark.parametrize("name", ["a b,it's", "x=y{sft}", "[y]$z", "ünï#h", "a(b)${oc.env:HOME}", "\\"])
def test_any_name_of_the_folder(tmp_path, name):
    """Catches a folder that Hydra's grammar takes apart once it stands in the overrides of a stage."""
    values = compose_settings(Pipeline, [override("output", tmp_path / name)])
    chain = {stage.name: stage for stage in build_stages(values)}
    dpo = to_dict(compose_config("train", chain["dpo"].overrides))
    assert dpo["data"]["path"] == f"{tmp_path}/{name}/rejection_sampling/pairs"
    assert dpo["model"]["path"] == f"{tmp_path}/{name}/sft"
    models = next(stage for stage in chain.values() if stage.command == "evaluate")
    assert to_dict(compose_config("evaluate", models.overrides))["models"][:2] == [
        f"{tmp_path}/{name}/sft",
        f"{tmp_path}/{name}/dpo",
    ]
    assert to_dict(compose_config("report", chain["report"].overrides))["runs"] == f"{tmp_path}/{name}"


def test_what_is_run_again(tmp_path):
    """Catches a result that is taken for that of other inputs."""
    before, after = (
        planned(tmp_path),
        planned(tmp_path, "pipeline.stages.reward.overrides=['model=opt-tiny','method=reward']"),
    )
    changed = {name for name in before if before[name].key != after[name].key}
    assert changed == {"reward", "rejection_sampling", "dpo", "evaluation", "report"}


def test_braces_of_the_user(tmp_path):
    """Catches an override that is taken for a template, and a report on what was moved aside."""
    columns = "data.columns={prompt: question, completion: answer}"
    assert columns in planned(tmp_path, shared=[columns])["sft"].overrides


@pytest.mark.parametrize(
    "overrides, shared, message",
    [
        (["skip=[dpoo]"], [], "Did you mean 'dpo'?"),
        (["pipeline=smple"], [], "Did you mean 'sample'?"),
        ([], ["trainer.max_stps=1"], "Did you mean 'trainer.max_steps'?"),
        (["pipeline.stages.sft.command=trian"], [], "there is no command trian"),
    ],
)
def test_errors(tmp_path, overrides, shared, message):
    """All stages are checked before the first is run."""
    with pytest.raises(AiraError, match=message.replace("?", r"\?")):
        planned(tmp_path, *overrides, shared=shared)


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path):
    """The whole chain, killed in its third stage: what was done is not done again, and the report has all of it."""
    small = ["trainer.max_steps=20", "data.max_examples=64", "trainer.enable_progress_bar=false"]
    command = [sys.executable, "-m", "aira.commands.pipeline", "output=p", "--", *small]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    folder, limit = tmp_path / "p", time.time() + 600
    while not (folder / "toxicity/checkpoints").exists():
        assert first.poll() is None and time.time() < limit
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = {name: (folder / f"{name}.json").stat().st_mtime for name in ("sft", "reward")}
    assert not (folder / "toxicity.json").exists()

    def again():
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)

    second = again()
    assert second.returncode == 0, second.stdout + second.stderr
    assert done == {name: (folder / f"{name}.json").stat().st_mtime for name in done}
    assert not (folder / ".old").exists()
    page, table = (folder / "report/report.html").read_text(), (folder / "evaluation/table.md").read_text()
    assert all(name in page and name in table for name in ("sft", "dpo", "reward", "toxicity"))
    pairs = json.loads((folder / "dpo/stage.json").read_text())["overrides"]
    assert f"data.path={folder}/rejection_sampling/pairs" in pairs
    third = again()
    assert third.returncode == 0 and "==" not in third.stdout and "0 of 7 stages are left" in third.stdout
