"""Kept answers of an evaluation are those of the model, the tokenizer and the settings that are asked for."""

import copy
import shutil
from importlib.metadata import version

import pytest
import torch
from transformers import PreTrainedModel

from aira import environment
from aira.config.compose import compose_settings
from aira.config.schema import Evaluate
from aira.evaluating import _update_run
from aira.evaluation.measure import store
from aira.evaluation.results import Line, Score, models_by_name
from aira.models.export import export
from aira.models.loading import load_model, load_tokenizer
from tests.inference.test_scorers import BERT, LLAMA


def loaded(architecture, head, shape):
    """A model from fixed random weights, and its tokenizer."""
    path = f"pkg://aira.models/tiny/{architecture}"
    tokenizer, added = load_tokenizer(path, architecture=architecture, head=head)
    attention = {"attn_implementation": "sdpa"} if architecture == "encoder" else {}
    torch.manual_seed(0)
    return load_model(
        path, tokenizer, added, architecture=architecture, head=head, label="harmless", config=shape, **attention
    ), tokenizer


@pytest.mark.parametrize(
    "architecture, head, shape, changed",
    [
        ("causal", "lm", LLAMA, {"rms_norm_eps": 1e-2}),
        ("causal", "score", LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("encoder", "score", BERT, {"layer_norm_eps": 1e-3}),
    ],
)
def test_what_answers_are_kept_under(tmp_path, monkeypatch, architecture, head, shape, changed):
    """Catches answers that are taken for those to other questions, and a key that changes where no answer does."""
    model, tokenizer = loaded(architecture, head, shape)
    given = ["eval.chat_template=false", f"cache_dir={tmp_path}/cache"]

    def key(model=model, tokenizer=tokenizer, suite=(), **others):
        changed = [f"eval.{name}={value}" for name, value in dict(suite).items()]
        changed += [f"{name}={value}" for name, value in others.items()]
        return store(compose_settings(Evaluate, [*given, *changed]), model, tokenizer).name

    def by(**attributes):
        other = copy.deepcopy(tokenizer)
        for name, value in attributes.items():
            setattr(other, name, value)
        return key(tokenizer=other)

    other, wider = copy.deepcopy(model), copy.deepcopy(tokenizer)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    wider.add_tokens(["Brazil"])
    token = tokenizer.convert_ids_to_tokens(7)
    found = {
        "nothing": key(),
        "configuration": key(loaded(architecture, head, {**shape, **changed})[0]),
        "weights": key(other),
        "type": key(copy.deepcopy(model).bfloat16()),
        "precision": key(suite={"precision": "bf16-mixed"}),
        "max_length": key(suite={"max_length": 9}),
        "chat_template": key(suite={"chat_template": "true"}),
        "template": by(chat_template="{{ 'Be brief.' }}{{ messages[0]['content'] }}"),
        "end": by(eos_token=token),
        "beginning": by(bos_token=token),
        "padding": by(pad_token=token),
        "separator": by(sep_token=token),
        "segments": by(model_input_names=["input_ids"]),
        "cut": by(truncation_side="left"),
        "special tokens in a text": by(split_special_tokens=True),
        "vocabulary": key(tokenizer=wider),
    }
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "device", property(lambda _: torch.device("cuda:1")))
        found["device"] = key()
    for package in ("torch", "transformers", "tokenizers", "lm_eval"):
        with monkeypatch.context() as patch:
            patch.setattr(environment, "version", lambda name, p=package: "0" if name == p else version(name))
            found[package] = key()
    assert len(set(found.values())) == len(found), sorted(found.items(), key=lambda one: one[1])

    free = {"cache_dir": f"{tmp_path}/elsewhere", "seed": 1, "device": "cpu", "debug": "true", "country": "BRA"}
    assert (
        key(suite={"tokens_per_row": 7, "limit": 3, "tasks": "[a]", "high_score": "toxic"}, **free) == found["nothing"]
    )
    export(copy.deepcopy(model), tokenizer, tmp_path / "here", "card")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for path in ("here", "there"):
        again, added = load_tokenizer(str(tmp_path / path), architecture=architecture, head=head, template=None)
        how = {"architecture": architecture, "head": head, "attn_implementation": model.config._attn_implementation}
        assert key(load_model(str(tmp_path / path), again, added, label="harmless", **how), again) == found["nothing"]


def test_models_by_a_pattern(tmp_path, monkeypatch):
    """Catches a model whose own name is a pattern, and which brings its neighbours along or gives way to them."""
    monkeypatch.chdir(tmp_path)
    for name in ("run*", "run2", "day[1]/x", "day1/y"):
        (tmp_path / name).mkdir(parents=True)

    def found(*models):
        return list(models_by_name(compose_settings(Evaluate, [f"models={list(models)}"])).values())

    assert found("run*") == ["run*"] and found("./r*n*") == ["run*", "run2"]
    assert found("day[1]/*") == ["day[1]/x"] and found(f"{tmp_path}/day[1]/*") == [f"{tmp_path}/day[1]/x"]
    assert found("day[12]/*") == ["day1/y"]


@pytest.mark.parametrize("content", [None, "x: 1", "method: [1]", "a: [", "language: {code: de}"])
def test_figures_of_a_strangers_run(tmp_path, capsys, content):
    """Catches an evaluation that ends without its tables, since the folder of its model is not Aira's own."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    if content is not None:
        (tmp_path / ".hydra" / "config.yaml").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    line = Line("a", {"task": Score(0.5)}, candidate=True)
    _update_run(str(tmp_path), [line], compose_settings(Evaluate, []), chat=True)
    assert "do not have these figures" in capsys.readouterr().out and sorted(tmp_path.rglob("*")) == before
