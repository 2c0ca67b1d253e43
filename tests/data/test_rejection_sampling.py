"""Data from a model's own answers: the best is the best, a stop changes nothing, and DPO reads it."""

import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from aira.config import compose_config
from aira.data.rejection_sampling import main
from aira.data.sources import read
from tests.chat.conftest import exports  # noqa: F401
from tests.end_to_end.command import ENVIRONMENT, ROOT


@pytest.fixture
def asked(exports, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "asked.jsonl").write_text(
        "".join(json.dumps({"q": f"What is\u2028{i}?"}) + "\n" for i in [*range(7), 0])
    )

    def command(output, *arguments):
        given = [f"output_dir={exports.parent}", f"prompts={tmp_path}/asked.jsonl", "column=q", f"output={output}"]
        given += ["n=4", "max_new_tokens=8", "prompts_per_part=2", f"cache_dir={tmp_path}/cache", *arguments]
        monkeypatch.setattr(sys, "argv", ["rejection_sampling", *given])
        return given

    return command


def tables(folder):
    return [pq.read_table(folder / name / "train.parquet") for name in ("best", "pairs")]


def test_best_and_worst(asked, tmp_path, monkeypatch):
    """Catches a best that is not, prompts that are asked twice, and another result after a stop or by two processes."""
    asked(tmp_path / "whole")
    main()
    rows = [json.loads(line) for part in sorted((tmp_path / "whole/parts").iterdir()) for line in part.open()]
    best, pairs = (table.to_pylist() for table in tables(tmp_path / "whole"))
    assert len(rows) == 7 and {len(row["candidates"]) for row in rows} == {4}
    for row, chosen in zip(rows, best, strict=True):
        rewards = {one["reward"]: one["text"] for one in row["candidates"] if one["text"]}
        assert (chosen["prompt"], chosen["completion"]) == (row["prompt"], rewards[max(rewards)])
        (pair,) = [pair for pair in pairs if pair["prompt"] == row["prompt"]]
        assert (pair["chosen"], pair["rejected"]) == (rewards[max(rewards)], rewards[min(rewards)])
    provenance = json.loads(tables(tmp_path / "whole")[0].schema.metadata[b"aira"])
    assert provenance["models"]["reward"].endswith("reward/export") and provenance["temperature"] == 1.0

    settings = json.loads((tmp_path / "whole/settings.json").read_text())
    assert len(set(settings["weights"])) == len(settings["weights"]) >= 2
    shutil.copytree(tmp_path / "whole", tmp_path / "others")
    (tmp_path / "others/settings.json").write_text(json.dumps({**settings, "weights": ["of", "others"]}))
    asked(tmp_path / "others")
    with pytest.raises(SystemExit):
        main()

    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for name in ("parts/000001.jsonl", "parts/000003.jsonl", "best/train.parquet"):
        (tmp_path / "stopped" / name).unlink()
    asked(tmp_path / "stopped")
    main()
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        asked(tmp_path / "shared")
        main()
    for name in ("stopped", "shared"):
        assert all(a.equals(b) for a, b in zip(tables(tmp_path / name), tables(tmp_path / "whole")))

    path = str(tmp_path / "whole/pairs")
    assert len(read(path, cache_dir=str(tmp_path / "cache")).split("train")) == len(pairs)
    compose_config("train", ["method=dpo", f"data.path={path}"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["n=5"], "n=4 there, 5 here"),
        (["column=prompt"], "has the columns q"),
        (["reward_model=none"], "answers are chosen by their reward"),
        (["prompts=missing.jsonl"], "there is no such file"),
    ],
)
def test_errors(asked, tmp_path, capsys, arguments, message):
    asked(tmp_path / "whole", "max_prompts=2")
    if "n=5" in arguments:
        main()
    asked(tmp_path / "whole", "max_prompts=2", *arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun(asked, tmp_path):
    """The real command, in two processes."""
    given = asked(tmp_path / "both")
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29613"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "aira.data.rejection_sampling", *given],
        cwd=ROOT,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "AIRA_CACHE": os.environ["AIRA_CACHE"]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [len(table) for table in tables(tmp_path / "both")] == [7, 7]
