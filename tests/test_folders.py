"""A run's folder has one owner, and what it holds is not overwritten without a word."""

import subprocess
import sys

import pytest

import aira.commands.shell
from aira import folders
from aira.config.compose import compose_config
from aira.config.record import to_dict_without_env, write_config
from aira.errors import AiraError
from aira.folders import LOCK, claim, is_first_process

VALUES = to_dict_without_env(compose_config("train", ["seed=1"]))
EVALUATION = to_dict_without_env(compose_config("evaluate", []))
HOLD = "import sys; from aira.files import acquire_lock; from pathlib import Path; p = Path(sys.argv[1]); "
HOLD += "l = acquire_lock(p / '.lock', p); print('held', flush=True); sys.stdin.read()"


@pytest.fixture(autouse=True)
def released():
    yield
    while folders._held:
        folders._held.pop().release()


@pytest.fixture
def made(tmp_path):
    def make(*files, values=VALUES):
        folder = tmp_path / "outputs" / "day" / "run"
        folder.mkdir(parents=True)
        if values:
            write_config(folder, values)
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("theirs")
        return folder

    return make


def test_a_name_that_is_taken_gets_a_suffix(tmp_path):
    """Catches two runs of one second in one folder."""
    wanted = tmp_path / "day" / "12-00-00-run"
    assert [claim(wanted, VALUES, named=False).name for _ in range(3)] == [
        f"{wanted.name}{i}" for i in ("", "-2", "-3")
    ]


def test_two_commands_of_one_second(tmp_path, monkeypatch):
    """Catches a folder that is claimed by another name than the run gets."""
    monkeypatch.chdir(tmp_path)
    found = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["train.py", "seed=3"])
        monkeypatch.setattr(aira.commands.shell, "composed_value", lambda *_: "outputs/day/now")
        aira.commands.shell.check("train")
        found.append(sys.argv[-1])
    assert found == ["hydra.run.dir=outputs/day/now", "hydra.run.dir=outputs/day/now-2"]


@pytest.mark.parametrize(
    "files, there, here, told",
    [
        (["checkpoints/last.ckpt"], VALUES, VALUES, "resume it with ckpt_path="),
        (["checkpoints/best.ckpt"], VALUES, VALUES, "overwrite=true"),
        (["metrics.json"], VALUES, VALUES, "overwrite=true"),
        (["export/config.json"], VALUES, VALUES, "overwrite=true"),
        (["metrics.json"], VALUES, EVALUATION, "overwrite=true"),
        (["metrics.json"], VALUES, VALUES | {"sweep": {"space": {}}}, "overwrite=true"),
        (["table.md"], EVALUATION, EVALUATION, "overwrite=true"),
        (["compare.json"], EVALUATION, VALUES, "overwrite=true"),
        (["logs/version_0/metrics.csv"], VALUES, VALUES | {"seed": 2}, "seed=1 there, 2 here"),
        (["search.json", "study.log"], None, VALUES, "Name a new folder"),
        (["thesis.tex"], None, VALUES, "is no folder of a run"),
        (["thesis.tex"], None, VALUES | {"overwrite": True}, "is no folder of a run"),
        (["metrics.json"], None, VALUES | {"overwrite": True}, "is no folder of a run"),
    ],
)
def test_what_is_there_is_not_overwritten(made, files, there, here, told):
    """Catches a run that takes the folder of another one, of an evaluation, of a search, or of a user's own work."""
    folder = made(*files, values=there)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(AiraError, match=told):
        claim(folder, here, named=True)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "files, there, here, more",
    [
        ([], None, VALUES, {}),
        (["trial.json"], None, VALUES, {}),
        (["stage.json", "logs/version_0/metrics.csv"], None, VALUES, {}),
        (["logs/version_0/metrics.csv"], VALUES, VALUES, {}),  # killed before its first checkpoint
        (["model/rows/task.jsonl"], EVALUATION, EVALUATION, {}),
        (["checkpoints/last.ckpt"], VALUES, VALUES, {"resumed": True}),
        (["checkpoints/last.ckpt"], VALUES, VALUES | {"overwrite": True}, {"resumed": True}),
        (["search.json", "study.log", "000/metrics.json"], None, VALUES | {"sweep": {"space": {}}}, {}),
        (["multirun.yaml", "0-x/metrics.json"], None, VALUES, {"multirun": True}),
    ],
)
def test_what_may_go_on(made, files, there, here, more):
    """Catches a run that is kept out of its own folder, and one that loses what it goes on from."""
    folder = made(*files, values=there)
    assert claim(folder, here, named=True, **more) == folder
    assert all((folder / name).exists() for name in files) and (folder / LOCK).exists()


def test_overwrite_deletes_what_a_run_wrote(made):
    """Catches curves, answers and evaluations of two runs that stand in one."""
    written = [
        "checkpoints/last.ckpt",
        "samples.jsonl",
        "evaluations.jsonl",
        "logs/version_0/metrics.csv",
        "report.html",
    ]
    folder = made(
        *written, "notes.txt", "gpt2/results.json", "gpt2/rows/t.jsonl", "data/rows.jsonl", "mine/results.json"
    )
    (folder / "mine" / "thesis.tex").write_text("theirs")
    claim(folder, VALUES | {"overwrite": True}, named=True)
    left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert left == {"notes.txt", "data/rows.jsonl", "mine/results.json", "mine/thesis.tex", LOCK}


def test_overwrite_deletes_nothing_where_no_run_was(made):
    """Catches a user's own folder `logs` that is deleted, since a run has one of that name."""
    folder = made("logs/theirs.txt", values=None)
    claim(folder, VALUES | {"overwrite": True}, named=True)
    assert (folder / "logs" / "theirs.txt").exists()


@pytest.mark.parametrize("own", [False, True])
def test_a_living_run_has_its_folder_alone(made, own):
    """Catches two processes in one folder, or on one checkpoint; and a lock that outlives a kill."""
    folder = made("checkpoints/last.ckpt") if own else made()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        for values in (VALUES, VALUES | {"overwrite": True}):
            with pytest.raises(AiraError, match="Another process writes into"):
                claim(folder, values, named=True, resumed=own)
        assert (folder / "checkpoints/last.ckpt").exists() is own and (folder / ".hydra/config.yaml").exists()
    finally:
        holder.kill()
        holder.communicate()
    claim(folder, VALUES, named=True, resumed=own)


@pytest.mark.parametrize(
    "environment, owner",
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_one_process_of_a_run_owns_its_folder(monkeypatch, environment, owner):
    """Catches ranks that keep each other out."""
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is owner


@pytest.mark.parametrize("place", ["run", "run/export/deeper"])
def test_a_file_is_no_folder(tmp_path, place):
    """Catches a traceback where a folder cannot be made."""
    (tmp_path / "run").write_text("theirs")
    with pytest.raises(AiraError, match=r"hydra\.run\.dir="):
        claim(tmp_path / place, VALUES, named=True)
