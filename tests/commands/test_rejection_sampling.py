"""Data from a model's own answers: the best is the best, a stop changes nothing, and DPO reads it."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel

from aira import environment
from aira.chat.load import PURPOSES, load
from aira.commands.rejection_sampling import _prompts, _write_record, main, sampling_record
from aira.config.compose import compose_config, compose_settings
from aira.config.schema import RejectionSampling
from aira.data.sources import read
from aira.errors import AiraError
from tests.end_to_end.command import ENVIRONMENT, ROOT


@pytest.fixture
def asked(exports, tmp_path, monkeypatch):
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


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("split", "test", "has no split 'test'. It has: train. Set split=."),
        ("prompts", "none*.jsonl", "prompts=none*.jsonl: there is no such file or folder by this pattern"),
        ("prompts", "nowhere.jsonl", "prompts=nowhere.jsonl: there is no such file"),
        ("prompts", "/dev/null", "/dev/null is not a regular file"),
        ("prompts", "of/prompts", "prompts=<file or folder> takes a local copy."),
        ("column", "text", "column=text: "),
    ],
)
def test_prompts_that_are_not_there(tmp_path, key, value, said):
    """Catches advice that names a key of another command."""
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Who?"}\n')
    values = compose_settings(RejectionSampling, ["output=out", f"prompts={tmp_path}/asked.jsonl", "column=prompt"])
    with pytest.raises(AiraError) as caught:
        _prompts(values.model_copy(update={"cache_dir": str(tmp_path / "cache"), key: value}))
    assert said in str(caught.value) and "data." not in str(caught.value)


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


def test_what_answers_are_kept_under(asked, exports, tmp_path, monkeypatch):
    """Catches a folder gone on with that holds other answers, or refused although it holds the same."""
    given = asked(tmp_path / "kept", "toxicity_model=last", "guard.reads=exchange")
    values = compose_settings(RejectionSampling, given)
    chat = load(values)
    kept = sampling_record(chat, ["a", "b"], values)

    def refused(asked=("a", "b"), **changed):
        _write_record(tmp_path / "kept", kept)
        try:
            _write_record(tmp_path / "kept", sampling_record(chat, list(asked), values.model_copy(update=changed)))
        except AiraError as error:
            return "holds answers of another sampling" in str(error)
        return False

    def refused_with(part, name, value):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, value)
            return refused()

    assert not refused()
    changes = {"n": 5, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.2, "max_new_tokens": 9}
    changes |= {"prompts_per_part": 3, "seed": 1}
    for key, value in changes.items():
        assert refused(**{key: value}), key
    for key, value in {"threshold": 0.3, "threshold_logit": 5.0, "reads": "answer", "high_score": "toxic"}.items():
        assert refused(guard=values.guard.model_copy(update={key: value})), key
    assert refused(["b", "a"]) and refused(["a"]) and refused(["a", "b "])
    for part in (chat, chat.reward, chat.guard):
        tokenizer = part.tokenizer
        assert refused_with(tokenizer, "chat_template", "{{ 'Be brief.' }}" + str(tokenizer.chat_template))
        assert refused_with(tokenizer, "split_special_tokens", True)
        before = tokenizer.eos_token
        tokenizer.eos_token = tokenizer.pad_token
        assert refused()
        tokenizer.eos_token = before
        assert refused_with(part.model.config, "n_head", 2) and refused_with(part.model.config, "pad_token_id", 1)
        weight = next(part.model.parameters())
        assert refused_with(weight, "data", weight.data + 1)
        assert refused_with(part.model.config, "_attn_implementation", "sdpa")
    assert refused_with(chat.model.generation_config, "eos_token_id", [5, 6])
    assert refused_with(chat.guard.model.config, "threshold", 0.5)
    assert refused_with(chat, "guard", None)
    assert refused_with(PreTrainedModel, "device", property(lambda _: torch.device("cuda:1")))
    for package in ("torch", "transformers", "tokenizers", "jinja2"):
        one = lambda name, p=package: "0" if name == p else version(name)  # noqa: E731
        assert refused_with(environment, "version", one), package
    assert not refused(), "nothing of it stays"

    free = {"output_dir": "o", "cache_dir": "c", "tokens_per_row": 7, "debug": True, "min_margin": 1.0, "device": "cpu"}
    shutil.copytree(exports, tmp_path / "copies/day")
    copies = {key: f"{tmp_path}/copies/day/{name}" for key, name in zip(PURPOSES, ("chat", "reward", "toxicity"))}
    found = {"prompts": "elsewhere", "split": "test", "column": "text", "max_prompts": 2, "output": "there"}
    chat = load(values.model_copy(update={**copies, "tokens_per_row": 7, "device": "cpu"}))
    assert not refused(**free, **copies, **found)


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


@pytest.mark.parametrize(
    "there", ["best/train.parquet", "pairs/x.y", "parts/000000.jsonl", "thesis.tex", "settings.json"]
)
def test_what_is_there_is_not_overwritten(tmp_path, there):
    """Catches data of the user's in a folder that is taken for a new sampling."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("theirs")
    with pytest.raises(AiraError, match=f"holds {there.split('/')[0]}, and no settings.json"):
        _write_record(tmp_path, {"a": 1})
    assert [file.name for file in tmp_path.rglob("*.*")] == [there.split("/")[-1]]


@pytest.mark.slow
def test_torchrun(asked, tmp_path):
    """The real command, in two processes."""
    given = asked(tmp_path / "both")
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29613"]
    done = subprocess.run(
        [sys.executable, *command, "-m", "aira.commands.rejection_sampling", *given],
        cwd=ROOT,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "AIRA_CACHE": os.environ["AIRA_CACHE"]},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [len(table) for table in tables(tmp_path / "both")] == [7, 7]
