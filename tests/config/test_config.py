"""From the command line to plain values: what composes, and how a wrong name or value is answered."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from itertools import cycle
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from omegaconf import ListConfig, OmegaConf

import aira.commands.shell
import aira.training
from aira.commands.resume import find_last
from aira.commands.shell import HYDRA_OPTIONS, check
from aira.config.check import declared_type, validate
from aira.config.compose import _defaults_dict, compose_config, compose_settings, typed_settings
from aira.config.conf import CONF, architecture_of, groups, groups_of, ids_of, options
from aira.config.help import describe
from aira.config.overrides import check_key, parse_override
from aira.config.record import flatten, to_dict, to_dict_without_env, write_config
from aira.config.schema import COMMANDS, Evaluate, Train
from aira.config.types import Range, unwrap_type
from aira.config.values import check_run, notices
from aira.errors import AiraError
from aira.models.export import export
from aira.models.loading import load_model, load_tokenizer

ROOT = CONF.parent
YAMLS = sorted(CONF.rglob("*.yaml"))


def values(*overrides):
    return to_dict(compose_config("train", list(overrides)))


def last_of(overrides, named=None):
    """The checkpoint of `ckpt_path=last`."""
    cfg = compose_config("train", overrides)
    return find_last(typed_settings(cfg, Train), to_dict_without_env(cfg), named)


def raw(file):
    return OmegaConf.to_container(OmegaConf.load(file), resolve=False)


def fitting():
    """Every model with a method that trains its architecture, each with all where it is tiny, and one language."""
    languages = cycle(["en", "pt", "pt", "en", "en"])
    for number, model in enumerate(name for name in options("model") if name != "auto"):
        methods = [
            method
            for method in options("method")
            if architecture_of(model) in raw(CONF / "method" / f"{method}.yaml")["architectures"]
        ]
        for method in methods if model.endswith("tiny") else [methods[number % len(methods)]]:
            yield model, method, next(languages)


@pytest.mark.parametrize("model, method, language", list(fitting()))
def test_every_model_composes(model, method, language):
    """Catches a model, method or language file with a missing value or a reference that leads nowhere."""
    found = values(f"model={model}", f"method={method}", f"language={language}")
    assert found["model"]["name"] == model and found["method"]["name"] == method
    assert found["language"]["code"] == language
    assert isinstance(found["model"]["path"], str) and found["optimizer"]["lr"] > 0
    assert all("${" not in str(value) for _, value in flatten(found))


KINDS = {
    "instruction": "method=sft",
    "preference": "method=dpo",
    "labelled": "method=toxicity",
    "harmful": "method=toxicity method.objective=pairwise",
}
SOURCES = [
    (data, kind, language)
    for data in options("data")
    for kind, languages in raw(CONF / "data" / f"{data}.yaml")["sources"].items()
    for language in languages
]


@pytest.mark.parametrize("data, kind, language", SOURCES)
def test_data_of_the_language(data, kind, language):
    """Catches a data file whose languages are swapped, or a split that is not passed on."""
    found = values(f"data={data}", f"language={language}", *KINDS[kind].split())["data"]
    if data == "sample":
        assert found["path"].endswith(f"{kind}-{language}") and found["split"] == "train"
    elif data == "harmless-aira-hh":
        assert found["path"].endswith(".jsonl") and found["split"] == "train"
    elif "aira" in data:
        assert found["split"] == {"en": "english", "pt": "portuguese"}[language]
        if kind == "instruction":
            assert found["path"] == "nicholasKluge/instruct-aira-dataset" + data.removeprefix("aira")
    elif data == "told-br":
        assert "racism" in found["columns"]["label"]


def test_data_without_what_the_method_needs():
    """Catches a kind or a language that a data group does not have, and a message that does not say what it has."""
    with pytest.raises(AiraError, match=r"data=webgpt has no labelled data .* It has: preference \(en\)"):
        values("data=webgpt", "method=toxicity")
    with pytest.raises(AiraError, match=r"data=hh-rlhf has no preference data for language=pt"):
        values("data=hh-rlhf", "method=dpo", "language=pt")


PATHS = [
    ("gpt2-124m", "en", "openai-community/gpt2"),
    ("gpt2-124m", "pt", "pierreguillou/gpt2-small-portuguese"),
    ("gpt2-1b5", "pt", "openai-community/gpt2-xl"),
    ("opt-1b3", "pt", "facebook/opt-1.3b"),
    ("bert-base", "en", "google-bert/bert-base-cased"),
    ("bert-base", "pt", "neuralmind/bert-base-portuguese-cased"),
    ("roberta-base", "en", "FacebookAI/roberta-base"),
    ("tinyllama-1b1", "en", "TinyLlama/TinyLlama-1.1B-intermediate-step-480k-1T"),
    ("gpt2-tiny", "pt", "pkg://aira.models/tiny/causal"),
    ("bert-tiny", "en", "pkg://aira.models/tiny/encoder"),
]


@pytest.mark.parametrize("model, language, path", PATHS)
def test_checkpoint_of_the_language(model, language, path):
    """Catches a language that does not choose its checkpoint; the files alone are read where no method fits."""
    method = next((method for name, method, _ in fitting() if name == model), None)
    if method:
        found = values(f"model={model}", f"method={method}", f"language={language}")["model"]["path"]
    else:
        chosen = [OmegaConf.load(CONF / "model" / name) for name in ("_base.yaml", f"{model}.yaml")]
        cfg = OmegaConf.create({"model": OmegaConf.merge(*chosen), "language": {"code": language}})
        found = cfg.model.path
    assert found == path


@pytest.mark.parametrize(
    "overrides, noticed",
    [
        (["model=opt-1b3", "language=pt"], True),
        (["model=opt-1b3"], False),
        (["model=gpt2-124m", "language=pt"], False),
        (["model=gpt2-tiny", "language=pt"], False),
        (["model=opt-1b3", "language=pt", "model.path=somewhere/else"], False),
    ],
)
def test_notice_of_an_english_checkpoint(overrides, noticed):
    """Catches a Portuguese run that starts from an English checkpoint without a word, or a word too many."""
    said = notices(compose_settings(Train, overrides))
    assert len(said) == noticed
    assert all("facebook/opt-1.3b" in line and "language=pt" in line for line in said)


def test_settings_of_a_model_reach_the_run():
    """Catches defaults of a model that are not taken, and a command line that does not win over them."""
    tiny, published = values("model=gpt2-tiny"), values("model=opt-125m")
    assert tiny["optimizer"]["lr"] == 2e-3 and tiny["trainer"]["max_epochs"] == 25
    assert published["optimizer"]["lr"] == 2e-5 and published["trainer"]["max_epochs"] == 3
    assert tiny["model"]["prompt_bos"] and not published["model"]["prompt_bos"]
    assert values("model=gpt2-tiny", "optimizer.lr=1e-4")["optimizer"]["lr"] == 1e-4


def test_the_group_of_a_path(tmp_path):
    """Catches a run of one model that is read with another's defaults, and another path with those of a tiny model."""
    for i, (name, group) in enumerate((("llama-tiny", "llama-tiny"), ("taken-away", "auto"), (["a"], "auto"))):
        run = tmp_path / str(i)
        (run / "export").mkdir(parents=True)
        write_config(run, {"model": {"name": name}})
        for path in (run, run / "export"):
            assert values(f"model.path='{path}'")["model"]["name"] == group
        assert values("model=opt-tiny", f"model.path='{run}'")["model"]["name"] == "opt-tiny"
    for path in ("someone/model", "./folder", "pkg://package/model.gguf"):
        found = values(f"model.path={path}")
        assert found["model"]["name"] == "auto" and found["optimizer"]["lr"] == 2e-5 and not found["model"]["config"]
    assert values("model.path=pkg://aira.models/tiny/causal")["model"]["name"] == "gpt2-tiny"
    assert values("experiment=aira-opt-1b3", "model.path=someone/model")["model"]["name"] == "opt-1b3"
    with pytest.raises(AiraError, match=r"model\.path has no value"):
        values("model=auto")


WRONG = [
    # groups and options
    ("modle=gpt2-tiny", "Did you mean 'model'?"),
    ("MODEL=gpt2-tiny", "Did you mean 'model'?"),
    ("model=opt-1b4", "there is no such model. Did you mean 'opt-1b3'?"),
    ("model=gpt2-TINY", "Did you mean 'gpt2-tiny'?"),
    ("model=_base", "there is no such model"),
    ("model=null", "name one option. aira train --help model lists them."),
    ("model=[gpt2-tiny,opt-tiny]", "name one option"),
    ("language=de", "Valid: en, pt."),
    ("logger=[csv,wand]", "Did you mean 'wandb'?"),
    ("+method=sft", "as method=sft"),
    ("~logger", "as logger=csv"),
    # keys
    ("method.lss_on=all", "Did you mean 'method.loss_on'?"),
    ("lr=1", "Did you mean 'optimizer.lr'?"),
    ("batch_size=1", "Did you mean 'data.batch_size'?"),
    ("learning_rate=1", "Did you mean 'optimizer.lr'?"),
    ("gradient_accumulation_steps=4", "Did you mean 'data.batch_size'?"),
    ("trainer.accumulate_grad_batches=2", "Did you mean 'data.batch_size'?"),
    ("method.beta=1", "method=sft does not read it. method.beta is for method=dpo."),
    ("label_smoothing=0", "method.label_smoothing is for method=dpo and method=reward."),
    ("model.config.n_layr=2", "Did you mean 'model.config.n_layer'?"),
    ("=4", "there is no key"),
    ("+new.key=1", "adds a key that nothing reads"),
    ("++data.batchsize=1", "Did you mean 'data.batch_size'?"),
    ("+lr=1", "Did you mean 'optimizer.lr'?"),
    ("hydra.run.dri=x", "there is no key"),
    ("+trainer.foo=1", "trainer.val_check_interval. Other arguments of Lightning's Trainer are not taken."),
    (
        "+trainer.max_step=1",
        "nothing reads: there is no key or group 'trainer.max_step'. Did you mean 'trainer.max_steps'?",
    ),
    ("+trainer.gradient_clip_val=1", "Did you mean 'optimizer.max_grad_norm'?"),
    ("+data.foo=1", "Valid: data.batch_size, data.columns, "),
    ("+data.lr=1", "Did you mean 'optimizer.lr'?"),
    ("+optimizer.rho=0.9", "Valid: optimizer.betas, optimizer.eps, optimizer.lr, "),
    ("modle.lora.r=1", "Did you mean 'model.lora.r'?"),
    ("~seed", "cannot be left out. seed=42 is the default."),
    ("~data.batch_size", "cannot be left out"),
    ("~nothing", "there is no key"),
    ("data.path=${nowhere}", "nowhere"),
    # types
    ("data.batch_size=big", "a whole number of at least 1, such as "),
    ("data.batch_size=1.5", "a whole number of at least 1, such as 2."),
    ("data.batch_size=", "a whole number"),
    ("++seed=x", "a whole number of at least 0 and at most 4294967295, such as 42."),
    ("seed=null", "a whole number of at least 0 and at most 4294967295, such as 42."),
    ("model.lora.r=true", "a whole number"),
    ("optimizer.lr=high", "a number of at least 0, such as 0.002."),
    ("debug=maybe", "true or false"),
    ("model.compile=1", "true or false"),
    ("data.path=1", "must be text (a number needs quotes)"),
    ("model.path=null", "must be text"),
    ("optimizer.betas=0.9", "a list of two numbers of at least 0 and below 1, such as [0.9,0.999]"),
    ("model.lora=8", "several keys: model.lora.r, model.lora.alpha"),
    ("data.sources=null", "data.sources"),
    ("data.columns=5", "a mapping to a column or a list of them"),
    ("data.columns={prompt:5}", "a number needs quotes"),
    ("data.columns={prompt:[]}", "a column or a list of them"),
    ("data.columns={prompt:[a,null]}", "a column or a list of them"),
    ("data.columns={prompt:{a:b}}", "a column or a list of them"),
    ("data.columns={prompt:null}", "a column or a list of them"),
    ("trainer.devices=two", "a number from 1 on, or auto"),
    ("trainer.devices=0", "a number from 1 on, or auto"),
    # ranges
    ("data.batch_size=0", "at least 1"),
    ("data.max_examples=0", "at least 1"),
    ("data.max_examples=all", "at least 1"),
    ("data.validation_fraction=1", "between 0 and 1"),
    ("data.num_workers=-1", "at least 0"),
    ("model.dropout=1", "below 1"),
    ("model.dropout=-0.1", "at least 0"),
    ("optimizer.lr=-1", "at least 0"),
    ("trainer.max_epochs=0", "at least 1"),
    ("trainer.log_every_n_steps=0", "at least 1"),
    ("trainer.val_check_interval=0", "a number above 0"),
    ("trainer.val_check_interval=0.0", "a number above 0"),
    ("callbacks.samples.every_n_steps=0", "at least 1"),
    ("seed=-1", "at least 0"),
    # choices
    ("method.loss_on=prompt", "valid are completion, all."),
    ("schedule.name=cosin", "valid are cosine, linear, constant, "),
    ("export=worst", "valid are last, best."),
    ("model.template=chat", "valid are aira, native."),
    ("model.attn_implementation=flash", "valid are trees, sdpa."),
    ("trainer.precision=bf16", "bf16-mixed"),
    ("method=dpo method.loss=sigmod", "valid are sigmoid, sigmoid_norm, hinge"),
    ("method=toxicity method.objective=pairs", "valid are classification, pairwise."),
    ("method=toxicity method.threshold_by=auroc", "valid are accuracy, balanced_accuracy, f1."),
    ("method=dpo method.beta=0", "above 0"),
    ("method=dpo method.label_smoothing=0.5", "below 0.5"),
    ("method=toxicity method.class_weights=even", "must be null, balanced, or [harmless, toxic] above 0"),
    # what does not go together
    ("export=best trainer.limit_val_batches=0", "export=best takes checkpoints/best.ckpt"),
    ("export=best ~callbacks.checkpoint", "it needs callbacks.checkpoint"),
    ("method=dpo method.loss=exo_pair", "needs method.label_smoothing above 0"),
    ("method=dpo method.loss=ipo method.label_smoothing=0.1", "has no label smoothing"),
    ("method=dpo method.loss=orpo method.reference=gpt2", "has no reference"),
    ("method=toxicity method.objective=pairwise method.class_weights=balanced", "method.objective=classification"),
    ("method=dpo model=bert-tiny", "needs a causal model and model=bert-tiny is an encoder"),
    ("method=dpo method.bta=1", "'method.beta'"),
    ("sweep=optuna sweep.trials=0", "at least 1"),
    ("sweep=wandb sweep.search=tpe", "valid are bayes, random, grid."),
    ("sweep=optna", "Did you mean 'optuna'?"),
    ("sweep.trials=3", "there is no key"),
    ("data=hh-rlhf method=toxicity", "data=hh-rlhf has no labelled data for language=en"),
    ("model=bert-tiny method=sft", "These fit: aira-2-124m"),
    ("model.compile=true", "needs model.attn_implementation=sdpa"),
    ("trainer.devices=[0,1]", "a list names GPUs"),
    ("callbacks.emissions.country=Brasil", "three-letter ISO code of a country, such as BRA."),
    ("data=aira-v2 method=dpo", "data=aira-v2 has no preference data for language=en"),
    # the form
    ("seed", "not of the form key=value"),
    ("data.path=[1", "not of the form key=value"),
    ("data.path=/x=y", "needs quotes"),
    ("seed=1,2", "--multirun"),
    ("data.path=~", "\"data.path='~'\""),
    ("data.path=~/a.csv", "\"data.path='~/a.csv'\""),
    ("data.path=it's.jsonl", "'it\\\\'s.jsonl'"),
    ("data.path=😀.jsonl", "\"data.path='😀.jsonl'\""),
    ("data.path=a=b.csv", "\"data.path='a=b.csv'\""),
    ("+model.config.a=b=c", "\"+model.config.a='b=c'\""),
    # what another trainer calls otherwise, and an entry of a mapping
    ("model=gpt2", "Did you mean 'gpt2-124m', 'gpt2-1b5', 'gpt2-355m', 'gpt2-774m' or 'gpt2-tiny'?"),
    ("model=qwen", "Did you mean 'qwen2.5-0.5b', 'qwen2.5-1.5b', 'qwen3-0.6b' or 'qwen3-1.7b'?"),
    ("model=foo", "aira train --help model lists what is valid."),
    ("foo=3", "aira train --help lists what is valid."),
    ("method=orpo", "It is method=dpo method.loss=orpo."),
    ("method=simpo", "It is method=dpo method.loss=simpo."),
    ("trainer=cuda", "It is trainer=gpu."),
    ("logger=[]", "logger=[]: name one option. aira train --help logger lists them. logger=none has none."),
    ("callbacks=[]", "callbacks=[]: name one option."),
    ("data.columns.prompt=question", '"++data.columns={prompt: question}"'),
    ("data.labels.OFF=1", '"++data.labels={OFF: 1}"'),
    ("model.lr.rloo=1", '"++model.lr={rloo: 1}"'),
    ("sweep=optuna sweep.space.optimizer.lr=interval(0,1)", "\"++sweep.space={optimizer.lr: 'interval(0,1)'}\""),
    ("sweep=optuna +sweep.space.data.batch_size='choice(1,2)'", "\"++sweep.space={data.batch_size: 'choice(1,2)'}\""),
    ("model.checkpoints.de=a/b", "added by a plus sign: +model.checkpoints.de=a/b."),
    ("model=gpt2-tiny,opt-tiny", "--multirun"),
]


@pytest.mark.parametrize("line, fragment", WRONG)
def test_wrong_overrides(line, fragment):
    """Catches a wrong name or value that is let through, or whose answer does not say what is right."""
    with pytest.raises(AiraError) as caught:
        values(*line.split(" "))
    message = str(caught.value)
    assert fragment in message
    assert "\n" not in message and "hydra.cc" not in message and len(message) < 500


WITH_DASHES = [
    ("train", "--learning_rate 1e-4", "optimizer.lr=1e-4"),
    ("train", "--learning-rate=1e-4 seed=3", "optimizer.lr=1e-4 seed=3"),
    ("train", "--lr=3e-5", "optimizer.lr=3e-5"),
    ("train", "-lr 3", "optimizer.lr=3"),
    ("train", "--model gpt2", "model.path=gpt2"),
    ("train", "--model gpt2-124m --num_train_epochs 2", "model=gpt2-124m trainer.max_epochs=2"),
    ("train", "--model_name_or_path ./mine", "model.path=./mine"),
    ("train", "--bf16 --gradient_checkpointing", "trainer.precision=bf16-mixed model.gradient_checkpointing=true"),
    ("train", "--per_device_train_batch_size 8 --cpu", "data.batch_size=8 trainer=cpu"),
    ("train", "--beta 0.1 method=dpo", "method.beta=0.1 method=dpo"),
    ("train", "--optimizer.weight_decay 0", "optimizer.weight_decay=0"),
    ("train", "--warmup_ratio 0.1 --debug", "schedule.warmup=0.1 debug=true"),
    ("train", "--dataset 'my rows.jsonl'", "data.path=my rows.jsonl"),
    ("evaluate", "--num_fewshot 5", "eval.num_fewshot is a mapping of names to values, such as"),
    ("evaluate", "--tasks piqa --limit 10", "eval.tasks=[piqa] eval.limit=10"),
    ("chat", "--max_tokens 9 --json", "max_new_tokens=9 --json"),
    ("train", "--resume seed=3", "ckpt_path=last seed=3"),
    ("train", "--resume_from_checkpoint last", "ckpt_path=last"),
    ("train", "--r 8", "model.lora.r=8"),
    ("demo", "--port 8000", "demo.port=8000"),
    ("rejection_sampling", "--num_generations 4 output=a", "n=4 output=a"),
    ("report", "--runs outputs", "runs=outputs"),
    ("push", "--hub_model_id me/mine run=a", "repo=me/mine run=a"),
    ("pipeline", "--language pt -- --trainer gpu", "language=pt -- trainer=gpu"),
]


@pytest.mark.parametrize("name, given, written", WITH_DASHES)
def test_options_of_other_trainers(monkeypatch, capsys, name, given, written):
    """Catches argparse's list of options, and an answer that is not what has to be typed."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *shlex.split(given)])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"aira.commands.{name}").main()
    said = capsys.readouterr().err.strip()
    if "mapping" in written:
        assert f"{written} '++eval.num_fewshot={{name: 5}}'." in said
        return
    command = said.split(": settings are written as key=value: ")[1]
    assert ended.value.code == 2
    texts = [text.replace("='my rows.jsonl'", "=my rows.jsonl") for text in shlex.split(command)]
    assert texts == ["aira", name, *(written.split(" ") if "rows" not in written else [written])]
    overrides = [text for text in shlex.split(command)[2:] if text != "--json"]
    composes = "chat" if name == "demo" else name
    compose_config(composes, overrides[: overrides.index("--")] if "--" in overrides else overrides)


@pytest.mark.parametrize(
    "given, said",
    [
        ("--learning_rat 1", "aira train optimizer.lr=1"),
        ("--max_stepz 1", "Did you mean 'trainer.max_steps'?"),
        ("--trainer tpu", "there is no such trainer"),
        ("--lora 8", "model.lora.r, model.lora.alpha"),
        ("--frobnicate", "there is no such setting. aira train --cfg job lists what is valid."),
        ("--lr", "--lr needs a value: optimizer.lr=<value>."),
        ("--method orpo", "It is method=dpo method.loss=orpo."),
        ("--cfg all-of-it", "invalid choice: 'all-of-it'"),
        ("--package", "expected one argument"),
    ],
)
def test_options_that_nobody_has(monkeypatch, capsys, given, said):
    """Catches an option that is neither known here nor elsewhere, and left without the nearest key."""
    monkeypatch.setattr(sys, "argv", ["train.py", *given.split()])
    with pytest.raises(SystemExit):
        check("train")
    answered = capsys.readouterr().err
    assert said in answered and "usage:" not in answered and answered.strip().count("\n") == 0


def test_the_options_of_hydra_are_known():
    """Catches an option of a new release of Hydra that is answered as one of another trainer."""
    assert set(HYDRA_OPTIONS) == set(get_args_parser()._option_string_actions)


@pytest.mark.parametrize(
    "given", ["--cfg job", "-c job", "--mult seed=1,2 --cfg job", "--multirun --cfg=job", "--info"]
)
def test_options_of_hydra(monkeypatch, capsys, given):
    """Catches an option of Hydra's that is taken for a setting."""
    monkeypatch.setattr(sys, "argv", ["train.py", *given.split()])
    with contextlib.suppress(SystemExit):
        check("train")
    assert "settings are written" not in capsys.readouterr().err


@pytest.mark.parametrize("name", [file.stem for file in CONF.glob("*.yaml")])
def test_a_key_without_a_default(name, monkeypatch, capsys):
    """Catches OmegaConf's message about a key that must be given, and an example that cannot be typed."""
    needed = [key for key, value in flatten(raw(CONF / f"{name}.yaml")) if value == "???"]
    if not needed:
        compose_config(name, [])
        return
    with pytest.raises(AiraError) as caught:
        compose_config(name, [])
    message, _, example = str(caught.value).partition(f" Such as: aira {name} ")
    assert all(f"{key} has no value (" in message for key in needed) and "andatory" not in message
    found = compose_config(name, shlex.split(example))
    assert all(str(found[key]) in example for key in needed)


def test_a_key_that_a_users_file_has_not(tmp_path, monkeypatch):
    """Catches a traceback, or OmegaConf's message, at a file of the user's own that is not whole."""
    write = tmp_path / "conf" / "data" / "mine.yaml"
    write.parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for content, key in (("defaults: [_base]", "data.name"), ("defaults: [_base]\nname: mine", "data.sources")):
        write.write_text(content)
        with pytest.raises(AiraError, match=rf"{key} has no value \(.+\)\."):
            values("data=mine")


NEAREST = {
    "data.batch_size=0": "1",
    "data.batch_size=-4": "1",
    "data.batch_size=1.5": "2",
    "data.batch_size=16.0": "16",
    "data.batch_size='8'": "8",
    "data.max_length=1": "2",
    "data.validation_fraction=1": "0.05",
    "data.num_workers=-1": "0",
    "model.dropout=-0.1": "0",
    "model.lora.r=8.0": "8",
    "seed=4294967296": "4294967295",
    "seed=x": "42",
    "debug=yes": "true",
    "debug=off": "false",
    "debug=1": "true",
    "model.compile='false'": "false",
    "optimizer.lr='1e-4'": "0.0001",
    "optimizer.lr=-1": "0",
    "optimizer.weight_decay=nan": "0.01",
    "optimizer.betas=0.9": "[0.9,0.999]",
    "schedule.name=cosin": "Did you mean 'cosine' or 'cosine_with_min_lr'?",
    "schedule.warmup=1.5": "2",
    "trainer.max_epochs=0": "1",
    "trainer.precision=bf16": "Did you mean 'bf16-mixed' or 'bf16-true'?",
    "trainer.accelerator=cpuu": "Did you mean 'cpu'?",
    "export=lst": "Did you mean 'last'?",
    "data.exclude=a.csv": "[a.csv]",
    "data.path=5": "pkg://aira.data/sample/instruction-en",
}
"""Wrong values with the nearest right ones."""


@pytest.mark.parametrize("line, right", NEAREST.items())
def test_the_nearest_right_value(line, right):
    """Catches an answer that leaves it to the reader to find a value that is taken."""
    said = answer("train", line)
    assert said.endswith(right if "?" in right else f", such as {right}."), said
    key = line.partition("=")[0]
    assert "?" in right or answer("train", f"{key}={right}") is None, "what is offered is taken"


RIGHT = [
    "model.compile=true model.attn_implementation=sdpa",
    "data=aira-v2 method=dpo data.path=somewhere",
    "method=toxicity method.objective=pairwise method.threshold_by=f1",
    "method=toxicity data.labels={0:1,1:0}",
    "method=toxicity method.class_weights=[0.5,3]",
    "optimizer.betas=[0,0.95] schedule.warmup=1 trainer.limit_val_batches=2 trainer.val_check_interval=1.0",
    "schedule.warmup=0.5 trainer.limit_val_batches=0.5 trainer.max_steps=-1 seed=4294967295 seed=3",
    "trainer=gpu trainer.precision=16-mixed trainer.devices=[0,2]",
    "trainer=fsdp trainer.precision=bf16-mixed model.dropout=null",
    "data.max_examples=null model.lora.r=8 model.lora.alpha=1 callbacks.samples.exact_match=0",
    "data.columns={prompt:question,completion:answers.0.text}",
    "data.path='5' trainer.devices=auto trainer.val_check_interval=10 trainer.val_check_interval=0.5",
    "logger=[csv,wandb]",
    "logger=none ~callbacks.emissions",
    "+model.config.n_inner=8 +hydra.job.env_set.A=b hydra.run.dir=here",
    "++seed=3 optimizer.lr=1 model.revision=main data.max_examples=5",
    "model=opt-125m.yaml hydra/launcher=basic",
    "output_dir=${model.name}",
]


@pytest.mark.parametrize("line", RIGHT)
def test_right_overrides(line):
    """Catches a check that refuses what is valid."""
    assert values(*line.split(" "))["seed"] in (3, 42)


REQUIRED = {"push": ["run=a", "repo=b/c"], "report": ["runs=a"], "rejection_sampling": ["output=a"]}
"""What has no default."""


@functools.cache
def composed(config_name, *chosen):
    """The defaults of a command with some options, as they are compared with overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name, [*chosen, *REQUIRED.get(config_name, ())], return_hydra_config=True)


@functools.cache
def defaulted(config_name, *chosen):
    """The same as plain values."""
    return _defaults_dict(composed(config_name, *chosen))


def answer(config_name, text, *chosen):
    """What is said to one override, without composing everything anew for each; None where it is taken."""
    defaults, override = composed(config_name, *chosen), parse_override(text)
    try:
        check_key(override, defaulted(config_name, *chosen), defaults.hydra.runtime.choices, config_name)
        cfg = OmegaConf.masked_copy(defaults, [key for key in defaults if key != "hydra"])
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
        settings = validate(COMMANDS[config_name], to_dict(cfg))
        if isinstance(settings, Train):
            check_run(settings)
    except AiraError as error:
        return str(error)
    return None


def numeric(config_name):
    """The numeric keys of a command and of the options of its groups, each with an option that has it."""
    found = {}
    free = ("language", "data", "experiment")  # they have no keys of their own
    own = [group for group in groups_of(config_name) if group in groups() and group not in free]
    chosen = [[]] + [[f"{group}={option}"] for group in own for option in options(group)]
    if config_name == "train":  # a model with a method that trains its kind
        chosen = [[*one, "method=toxicity"] if one and one[0].startswith("model=") else one for one in chosen]
    for one in chosen:
        for key, value in flatten(OmegaConf.to_container(composed(config_name, *one), resolve=False)):
            if key.startswith("hydra"):
                continue
            value = OmegaConf.select(composed(config_name, *one), key)
            listed = isinstance(value, ListConfig) and value and isinstance(value[0], float)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            annotation, _ = declared_type(COMMANDS[config_name], key.split("."), defaulted(config_name, *one))
            if number or listed or any(isinstance(each, Range) for each in unwrap_type(annotation)[1]):
                found.setdefault(key, one)
    return found


LEAST = {"train": 45, "evaluate": 5, "chat": 13, "rejection_sampling": 12, "pipeline": 5, "push": 0, "report": 0}
"""The files of commands, and the least number of numeric keys in each."""


@pytest.mark.parametrize(
    "odd",
    [("nan", "[some]"), pytest.param(("inf", "-inf", "some", "[nan,nan]", "true"), marks=pytest.mark.slow)],
    ids=["nan", "all"],
)
@pytest.mark.parametrize("config_name", LEAST)
def test_no_number_is_without_bounds(config_name, odd):
    """Catches a key of any command that takes NaN, an infinity, text, a list or a truth value for its number."""
    found = numeric(config_name)
    assert len(found) >= LEAST[config_name], sorted(found)
    said = {
        f"{key}={value}": answer(config_name, f"{key}={value}", *chosen)
        for key, chosen in found.items()
        for value in odd
    }
    assert not [text for text, told in said.items() if not (told and told.startswith(text.split("=")[0]))]


def test_no_number_of_a_file_is_without_bounds():
    """Catches a NaN or an infinity of a recipe, which no default is compared with, or of a mapping or an added key."""
    odd = cycle([math.nan, math.inf, -math.inf])
    for config_name in COMMANDS:
        for (key, chosen), value in zip(numeric(config_name).items(), odd, strict=False):
            cfg = composed(config_name, *chosen)
            cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
            listed = isinstance(OmegaConf.select(cfg, key), ListConfig)
            OmegaConf.update(cfg, key, [value] * 2 if listed else value)
            with pytest.raises(AiraError, match=r"^[\w.]+=\[?-?(nan|inf)"):  # of a key, or of one that refers to it
                validate(COMMANDS[config_name], to_dict(cfg))
    for text in ("model.lora={alpha:nan}", "+model.config.rope_theta=inf", "model.config={n:-inf}"):
        assert re.match(r"model\.(lora\.alpha|config\.\w+)=", answer("train", text))


OUT_OF_RANGE = {
    "train": """
        seed=4294967296 seed=1.5 data.batch_size=-4 data.max_length=0 data.max_length=1 data.tokens_per_row=0
        data.num_proc=0 data.validation_fraction=0 data.validation_fraction=5 data.max_examples=2.5 data.path=''
        data.exclude=[1] data.exclude=[''] data.labels={OFF:2} data.labels={OFF:toxic} data.labels=[0,1] data.revision=1
        optimizer.betas=[2,3] optimizer.betas=[0.9] optimizer.betas=[0.9,1] optimizer.betas=[-0.1,0.9]
        optimizer.betas=[a,b] optimizer.betas=[] optimizer.betas=[0.9,0.99,0.999] optimizer.betas=[0.9,true]
        optimizer.eps=-1e-8 optimizer.weight_decay=-0.1 optimizer.max_grad_norm=-1
        schedule.warmup=-1 schedule.warmup=1.5 schedule.warmup=-0.1 schedule.name=''
        trainer.limit_val_batches=2.5 trainer.limit_val_batches=-1 trainer.limit_val_batches=1.01
        trainer.val_check_interval=1.5 trainer.val_check_interval=-0.5 trainer.max_steps=0 trainer.max_steps=-2
        trainer.max_steps=1.5 trainer.num_nodes=0 trainer.devices=-1 trainer.devices=[] trainer.devices=[0,0]
        trainer.devices=[-1] trainer.devices=[a] trainer.devices=1.5 trainer.devices=true
        model.dropout=1.5 model.lora.r=-1 model.lora.alpha=-1 model.lora.alpha=0 model.lora.dropout=3
        model.lora.dropout=1 model.lora.dropout=-0.1 model.lr.sft=-1 model.epochs.sft=0
        model.config.n_layer=0 model.config.n_embd=-1 +model.config.n_inner=1.5 model.config={n_head:0}
        callbacks.samples.max_new_tokens=0 callbacks.samples.exact_match=-1 callbacks.scores.count=0
        callbacks.checkpoint.every_n_train_steps=0 callbacks.checkpoint.mode=up method.mode=most cache_dir=''
        ckpt_path=3
    """,
    "chat": """
        temperature=-1 temperature=nan top_p=1.5 top_p=-0.1 top_k=-1 top_k=1.5 n=0 n=1.5 max_new_tokens=0 seed=-1
        repetition_penalty=0 repetition_penalty=-1 guard.threshold=0 guard.threshold=1 guard.threshold=1.5
        guard.threshold=-0.5 guard.threshold=high guard.threshold=true guard.threshold_logit=[5] demo.port=65536
        demo.port=-1 demo.port=80.5 demo.max_waiting=0 tokens_per_row=0 chat_model='' device='' prompt=5 input=1
    """,
    "evaluate": """
        seed=-1 seed=4294967296 eval.limit=0 eval.limit=0.5 eval.limit=all eval.max_length=1 eval.tokens_per_row=0
        eval.num_fewshot={arc:-1} eval.num_fewshot={arc:1.5} eval.tasks=[1] models=[nan] model.path='' eval.data_dir=1
    """,
    "rejection_sampling": """
        n=0 temperature=inf min_margin=-1 max_prompts=0 max_prompts=1.5 max_prompts=few prompts_per_part=0
        guard.threshold=2 top_p=2 column='' prompts=''
    """,
    "pipeline": "pipeline.stages.sft.minutes=-1 pipeline.stages.sft.minutes=soon skip=[1]",
    "report": "title=5 project='' output=''",
}


@pytest.mark.parametrize(
    "config_name, text", [(name, text) for name, texts in OUT_OF_RANGE.items() for text in texts.split()]
)
def test_values_out_of_range(config_name, text):
    """Catches a value that no run can use and that is let through, or whose message does not name the key."""
    said = answer(config_name, text)
    assert said and said.startswith(text.split("=")[0].lstrip("+")) and "\n" not in said and len(said) < 300


OF_A_METHOD = """
    dpo:method.beta=0 dpo:method.beta=nan dpo:method.beta=-1 dpo:method.gamma=-1 dpo:method.gamma=inf
    dpo:method.sft_weight=-1 dpo:method.label_smoothing=0.5 dpo:method.label_smoothing=-0.1 dpo:method.reference=1
    reward:method.label_smoothing=0.7 reward:method.center_rewards_coefficient=-1 toxicity:method.class_weights=[1]
    toxicity:method.class_weights=[1,-1] toxicity:method.class_weights=[a,b] toxicity:method.class_weights=[nan,1]
    toxicity:method.class_weights=[0,0]
"""


@pytest.mark.parametrize("text", OF_A_METHOD.split())
def test_values_of_a_method_out_of_range(text):
    """Catches a value that the loss of a method cannot use."""
    method, _, override = text.partition(":")
    assert override.split("=")[0] in (answer("train", override, f"method={method}") or "")


@pytest.mark.parametrize("method", options("method"))
def test_facts_are_not_set(method):
    """Catches a setting that says otherwise than the code, and trains on data that the method does not read."""
    lines = [
        "method.kind=labelled",
        "method.head=score",
        "method.label=toxic",
        "method.architectures=[encoder]",
        "method.name=a",
    ]
    lines += ["model.architecture=encoder", "model.name=a", "callbacks.scores={_target_:a}"]
    lines += ["trainer._target_=os.system", "callbacks.emissions._target_=os.system", "++method.kind=labelled"]
    for line in [*lines, *(["method.kinds.pairwise=labelled"] if method == "toxicity" else [])]:
        assert "cannot be set directly: " in (answer("train", line, f"method={method}") or ""), line


def test_a_float_that_the_strategy_has_not():
    """Catches float16 where it is refused only once the model is there, or quietly becomes another precision."""
    for line in ("trainer=fsdp", "trainer=fsdp trainer.accelerator=cpu", "trainer=cpu", "trainer=ddp-cpu"):
        with pytest.raises(AiraError, match=r"trainer\.precision=16-mixed: .* trainer\.precision=bf16-mixed"):
            values(*line.split(" "), "trainer.precision=16-mixed")


@pytest.mark.parametrize("bf16", [True, False])
def test_a_gpu_without_bf16(monkeypatch, tmp_path, bf16):
    """Catches sharded weights on an old GPU, whose automatic precision they have not, after the data was read."""

    def began(**_):
        raise RuntimeError("the work began")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr("aira.training.load_tokenizer", began)
    error, said = (RuntimeError, "the work began") if bf16 else (AiraError, "auto would be 16-mixed on this GPU")
    with pytest.raises(error, match=said):
        aira.training.train(compose_config("train", ["trainer=fsdp"]), tmp_path)


@pytest.mark.parametrize("which", ["model", "reference"])
def test_a_context_is_told_before_data_is_read(monkeypatch, tmp_path, which):
    """Catches texts that are longer than the model, or the reference, reads, and that is told after long work."""
    tokenizer, added = load_tokenizer("pkg://aira.models/tiny/causal")
    shape = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 64}
    small = load_model("pkg://aira.models/tiny/causal", tokenizer, added, config=shape)
    export(small, tokenizer, tmp_path / "short", "")
    monkeypatch.setattr("aira.training._data", lambda *_: pytest.fail("data was read"))
    key = {"model": "model.path", "reference": "method.reference"}[which]
    cfg = compose_config("train", ["method=dpo", f"{key}={tmp_path}/short", "data.max_length=65"])
    with pytest.raises(AiraError, match=r"data\.max_length=65: the model's context.* is 64 tokens"):
        aira.training.train(cfg, tmp_path / "run")


@pytest.mark.parametrize("space", ["interval(nan,1)", "interval(1,inf)", "interval(2,1)", "tag(log,interval(0,1))"])
def test_a_space_without_bounds(monkeypatch, capsys, space):
    """Catches a search whose trials would all fail, or one that begins with an error of Optuna."""
    monkeypatch.setattr(sys, "argv", ["train.py", "sweep=optuna", f"sweep.space={{optimizer.lr: '{space}'}}"])
    with pytest.raises(SystemExit):
        aira.commands.shell.check("train")
    assert "optimizer.lr" in capsys.readouterr().err


def command(*arguments, cwd, importtime=False, timeout=120):
    """Run train.py as a user does; with `importtime`, standard error lists every imported module."""
    python = [sys.executable, *(["-X", "importtime"] if importtime else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*python, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def imported(stderr):
    return {line.split("|")[-1].strip() for line in stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        (["model=opt-1b4"], "Did you mean 'opt-1b3'?"),
        (["method.lss_on=all"], "Did you mean 'method.loss_on'?"),
        (["seed"], "not of the form key=value"),
        (["ckpt_path=nowhere.ckpt"], "there is no such file"),
        (["data.path=missing.jsonl"], "there is no such file or folder"),
        (["method=toxicity", "data.exclude=[./missing.csv]"], "there is no such file or folder"),
        (["ckpt_path=last"], "has this configuration and a checkpoint"),
        ([f"ckpt_path={ROOT / 'train.py'}"], "it is cut short, or no checkpoint"),
        (["model.path=./missing"], "there is no such file or folder"),
        (["method=dpo", "method.reference=./missing"], "there is no such file or folder"),
        (["data=webgpt", "method=toxicity"], "has no labelled data"),
        (["model=bert-tiny", "method=dpo"], "is an encoder"),
        (["trainer=tpu"], "there is no such trainer"),
        (["sweep=optuna", "sweep.space={optimizer.lrr: 'choice(1)'}"], "Did you mean 'optimizer.lr'?"),
        (["sweep=optuna", "sweep.space={optimizer.lr: 'choice(high)'}"], "optimizer.lr=high: it must be a number"),
        (["sweep=optuna", "sweep.space={optimizer.lr: 3}"], "it must be choice"),
        (["output_dir=/dev/null/runs"], "/dev/null is not a folder that can be written to"),
        (["cache_dir=/dev/null"], "/dev/null is not a folder that can be written to"),
        (["-m", "model=gpt2-tiny,opt-1b4"], "Did you mean 'opt-1b3'?"),
    ],
)
def test_wrong_commands(tmp_path, arguments, fragment):
    """Catches a traceback, a wrong exit status, and a wait for torch before the answer."""
    done = command(*arguments, cwd=tmp_path, importtime=True, timeout=15)
    modules = imported(done.stderr)
    said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("import time:")]
    assert done.returncode == 2
    assert len([line for line in said if line.startswith("Error: ")]) == 1 and fragment in "\n".join(said)
    assert "Traceback" not in done.stderr
    assert "omegaconf" in modules and "torch" not in modules
    assert not any(tmp_path.iterdir())


NAMES = {
    "compare=[nowhere,nowhere]": "nowhere holds no evaluation",
    "compare=[.,.]": ". holds no evaluation",
    "models=[here*/x]": "models=[here*/x]: nothing has such a name",
    "model.path=last": "has an export. Train first",
    "model.path=a eval.data_dir=nowhere": "eval.data_dir=nowhere: there is no such folder",
    "model.path=a eval.published=[Aira-2-1254M]": "Did you mean 'Aira-2-124M'?",
}


@pytest.mark.parametrize("line, said", NAMES.items())
def test_names_of_an_evaluation(tmp_path, monkeypatch, capsys, line, said):
    """Catches a name that nothing has, and that is told after a wait for torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *line.split(" ")])
    with pytest.raises(SystemExit):
        check("evaluate")
    assert said in capsys.readouterr().err


def test_what_checks_names_is_light():
    """Catches a check of names that waits for torch."""
    code = "import sys, aira.commands.shell, aira.evaluation.results; print({'torch', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "chat", "demo", "pipeline", "push", "report", "rejection_sampling"]
)
def test_help_is_light(name):
    """Catches help that waits for torch."""
    code = f"import sys, aira.commands.{name}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    "line, said",
    [
        ("model.path=last", "model.path=last is for evaluate and chat: name the run's folder."),
        ("method=dpo model.path=a method.reference=last", "method.reference=last is for evaluate and chat"),
        ("data.path=rows.jsonl data.split=english", "data.split=english: rows.jsonl is one file"),
        (
            "data.path=rows.jsonl data.columns={prompt:qestion}",
            "rows.jsonl has no column qestion. Did you mean 'question'?",
        ),
        (
            "data.path=rows.csv data.columns={prompt:[question,ansr]}",
            "rows.csv has no column ansr. Did you mean 'answer'?",
        ),
        ("data.path=rows.csv data.columns={prompt:turns.0}", "rows.csv has no column turns.0."),
    ],
)
def test_names_of_a_run(tmp_path, monkeypatch, capsys, line, said):
    """Catches `last` that is asked for on the hub, and a split that a file cannot have."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "a"}\n{"question": "b", "answer": "c"}\n')
    (tmp_path / "rows.csv").write_text("question,answer\na,b\n")
    monkeypatch.setattr(sys, "argv", ["train.py", *line.split(" ")])
    with pytest.raises(SystemExit):
        check("train")
    assert said in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path):
    """Catches debug=true without effect."""
    done = command("model=opt-1b4", "debug=true", cwd=tmp_path)
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_print_the_configuration(tmp_path):
    """Catches `--cfg job` that prints something else, or imports torch to do so."""
    done = command("--cfg", "job", "language=pt", cwd=tmp_path, importtime=True)
    assert done.returncode == 0
    assert OmegaConf.create(done.stdout).language.code == "pt"
    assert "torch" not in imported(done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        *("hydra.job.chdir=true", "hydra.job.chdir=True", "++hydra.job.chdir=true", "hydra.job.chdir=1"),
        *("hydra.job.chdir=yes", "hydra.job.chdir=on", "hydra.job={chdir:true}", "-m hydra.job.chdir=true seed=1,2"),
    ],
)
def test_paths_begin_where_the_command_is_given(monkeypatch, tmp_path, capsys, arguments):
    """Catches a file that is said not to be there since Hydra has gone to another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments.split()])
    with pytest.raises(SystemExit):
        check("train")
    said = capsys.readouterr().err
    assert "chdir" in said and "paths of a configuration are relative to the folder of the command. Leave it" in said


@pytest.mark.parametrize(
    "arguments",
    [
        *("-m seed=1,2", "-m optimizer.lr=interval(0,1)", "-m model=glob(gpt2*)", "--help"),
        "hydra.job.chdir=null hydra.run.dir=chdir",
    ],
)
def test_checks_let_sweeps_and_help_through(monkeypatch, tmp_path, arguments):
    """Catches a check that refuses or fails on what only Hydra's sweepers understand."""
    given = ["train.py", *arguments.split(" ")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(given))
    aira.commands.shell.check("train")
    assert sys.argv[: len(given)] == given and len(sys.argv) == len(given) + ("-m" in given)  # hydra.sweep.dir


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        ("-m seed=1,2 optimizer.lr=1e-4,-1", "optimizer.lr"),
        ("-m ~callbacks.emissions model=gpt2-tiny,bert-tiny method=choice(sft,dpo)", "model=bert-tiny is an encoder"),
        ("-m data.path=.,./missing.jsonl seed=range(1,3)", "./missing.jsonl: there is no such file"),
        ("-m optimizer.lr=interval(0,1) sort(3,-1,key=seed)", "not of the form"),
        ("-m seed=shuffle(1,x)", "seed"),
    ],
)
def test_every_trial_of_a_sweep_is_checked(monkeypatch, capsys, arguments, fragment):
    """Catches a combination of values whose error shows only after the trials before it."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments.split(" ")])
    with pytest.raises(SystemExit):
        aira.commands.shell.check("train")
    assert fragment in capsys.readouterr().err


@pytest.fixture
def runs(tmp_path):
    """Make folders like those of real runs, one second apart."""
    made = []

    def make(*overrides, checkpoint=True):
        run = tmp_path / "outputs" / "2025-01-01" / f"{len(made)}-run"
        write_config(run, to_dict_without_env(compose_config("train", list(overrides))))
        (run / "checkpoints").mkdir()
        file = run / "checkpoints" / "last.ckpt"
        if checkpoint:
            zipfile.ZipFile(file, "w").close()
            os.utime(file, (1000 + len(made), 1000 + len(made)))
        made.append(file)
        return file

    return make


def test_find_last(tmp_path, runs):
    """Catches going on from another configuration's run, or from an older one of its own."""
    where = f"output_dir={tmp_path / 'outputs'}"
    runs("seed=1"), runs("seed=2")
    newest = runs("seed=1", "ckpt_path=earlier.ckpt", "cache_dir=elsewhere", "debug=true")
    other = runs("seed=1", "optimizer.lr=1e-5")
    runs("seed=1", checkpoint=False)
    assert last_of(["seed=1", where]) == newest
    assert last_of(["seed=1", "optimizer.lr=1e-5", where]) == other
    pairs = runs("method=dpo", "cache_dir=elsewhere")
    assert last_of(["method=dpo", where]) == pairs


def test_last_of_a_folder_that_is_named(tmp_path, runs):
    """Catches advice to go on with ckpt_path=last that finds nothing, since the run was given a folder elsewhere."""
    where = f"output_dir={tmp_path / 'elsewhere'}"
    file = runs("seed=1", where)
    assert last_of(["seed=1", where], file.parent.parent) == file
    with pytest.raises(AiraError, match="seed=1 there, 2 here"):
        last_of(["seed=2", where], file.parent.parent)


def test_outputs_that_are_closed(monkeypatch):
    """Catches a traceback, instead of a result, where a command is started with `>&-`, as some daemons do."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    aira.commands.shell._replace_unencodable()
    print("x", file=sys.stderr, flush=True)
    print("x", flush=True)
    assert sys.stdin.read() == ""


LONG = "a" * 300
STRANGE_PLACES = {
    f"hydra.run.dir=outputs/{LONG}": "File name too long",
    f"ckpt_path={LONG}": "File name too long",
    "hydra.run.dir=/proc/x/y": "/proc/x",
    "hydra.run.dir=x/${nothing}": "hydra.run.dir: Interpolation key 'nothing' not found",
    "hydra.run.dir=x/${oc.env:NOTHING_IS_THERE}": "NOTHING_IS_THERE",
    "hydra.run.dir=/dev/null": "is not a folder that can be written to",
}


@pytest.mark.parametrize("override, told", STRANGE_PLACES.items())
def test_strange_places(tmp_path, monkeypatch, capsys, override, told):
    """Catches a traceback for a folder or a file that cannot be, and paths that begin elsewhere than given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", override])
    with pytest.raises(SystemExit) as ended:
        check("train")
    assert ended.value.code == 2 and told in capsys.readouterr().err
    assert not [one for one in tmp_path.rglob("*") if one.is_file()]


def test_processes_of_a_scheduler_need_one_folder(monkeypatch, capsys):
    """Catches processes that torchrun or srun has started and that each write into a folder of their own."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    for rank, processes in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        with monkeypatch.context() as patch:
            patch.setenv(rank, "1")
            patch.setenv(processes, "4")
            with pytest.raises(SystemExit):
                aira.commands.shell.check("train")
            assert "4 processes were started" in capsys.readouterr().err
            patch.setattr("sys.argv", ["train.py", "hydra.run.dir=outputs/x/y"])
            aira.commands.shell.check("train")


FIRST = [{}, {"LOCAL_RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, {"SLURM_PROCID": "0"}]
OTHERS = [
    {"LOCAL_RANK": "1"},
    {"NODE_RANK": "1", "LOCAL_RANK": "0"},
    {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"},
    {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
]
SIZE = 1 << 25


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


def changed(file):
    """Make a file's content a large one with a byte that its check sum does not know."""
    stamp = file.stat().st_mtime
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", bytes(SIZE))
    with file.open("r+b") as stream:
        stream.seek(SIZE // 2)
        stream.write(b"x")
    os.utime(file, (stamp, stamp))


def gone_on(monkeypatch, *arguments, **environment):
    """The checkpoint that a process goes on from (None where it ends), and the bytes that it reads until then."""
    with monkeypatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["train.py", *arguments])
        before = bytes_read()
        try:
            aira.commands.shell.check("train")
        except SystemExit:
            return None, bytes_read() - before
        found = [argument for argument in sys.argv if argument.startswith("ckpt_path=")]
        return found[-1].removeprefix("ckpt_path=").strip("'"), bytes_read() - before


@pytest.mark.parametrize("named", [False, True], ids=["last", "by its path"])
def test_only_the_first_process_reads_a_checkpoint(monkeypatch, tmp_path, runs, capsys, named):
    """Catches a whole checkpoint that each process reads, or that none does, and processes that take different ones."""
    older, last = runs("seed=7"), runs("seed=7")
    changed(last)
    given = ["seed=7", f"output_dir={tmp_path / 'outputs'}", f"hydra.run.dir={last.parent.parent}"]
    given.append(f"ckpt_path={last if named else 'last'}")
    for environment in OTHERS:
        found, read = gone_on(monkeypatch, *given, **environment)
        assert found == str(last) and read < SIZE / 4, environment
    assert capsys.readouterr().err == ""
    for environment in FIRST:
        found, read = gone_on(monkeypatch, *given, **environment)
        alone = not named and "WORLD_SIZE" not in environment  # others would take the newest
        assert found == (str(older) if alone else None) and read >= SIZE, environment
        assert "bytes of it have changed" in capsys.readouterr().err
    for wrong in ("sed=7", "data.path=./nowhere"):
        found, read = gone_on(monkeypatch, *given, wrong)
        assert found is None and read < SIZE / 4, wrong
    (last.parent.parent / "metrics.json").write_text('{"steps": 9, "epochs": 1000000}')
    monkeypatch.setattr("aira.commands.resume.export_problem", lambda folder: None)
    found, read = gone_on(monkeypatch, *given)
    assert found is None and read < SIZE / 4 and "is finished, after 9 steps" in capsys.readouterr().out


@pytest.mark.parametrize("environment", [FIRST[0], OTHERS[0], OTHERS[2]], ids=str)
def test_all_processes_pass_over_a_file_that_is_cut_short(monkeypatch, tmp_path, runs, environment):
    """Catches a file that is cut short and taken by the processes that do not read it, and a choice by chance."""
    last = runs("seed=7")
    previous = last.with_name("previous.ckpt")
    shutil.copy2(last, previous)  # of the same time
    given = ["seed=7", f"output_dir={tmp_path / 'outputs'}", f"hydra.run.dir={last.parent.parent}", "ckpt_path=last"]
    assert gone_on(monkeypatch, *given, **environment)[0] == str(last)
    last.write_bytes(last.read_bytes()[:-1])
    assert gone_on(monkeypatch, *given, **environment)[0] == str(previous)
    changed(previous)
    found, read = gone_on(monkeypatch, *given[:-1], f"ckpt_path={last}", **environment)
    assert found is None and (read >= SIZE) == (environment == {}), "what is offered is read by one process, too"


def test_find_last_finds_none(tmp_path, runs):
    """Catches an error that does not tell which runs could be gone on with."""
    where = f"output_dir={tmp_path / 'outputs'}"
    with pytest.raises(AiraError, match="There is no other run: leave ckpt_path out"):
        last_of([where])
    candidates = [runs("seed=1"), runs("seed=2")]
    with pytest.raises(AiraError) as caught:
        last_of(["seed=3", where])
    assert all(f"ckpt_path={file}" in str(caught.value) for file in candidates)


def test_going_on_uses_the_folder_of_the_run(monkeypatch, tmp_path, runs):
    """Catches a run that is gone on with in a new folder, or that loses a checkpoint with an odd name."""
    last = runs("seed=7")
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=7", "ckpt_path=last", f"output_dir={tmp_path / 'outputs'}"])
    aira.commands.shell.check("train")
    assert sys.argv[-2:] == [f"ckpt_path={last}", f"hydra.run.dir={last.parent.parent}"]
    assert values(sys.argv[-2])["ckpt_path"] == str(last)


@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("suite", options("eval"))
def test_every_suite_composes(suite, language):
    """Catches a suite with a key that the others have not, and a model that cannot be named by its group."""
    values = to_dict(compose_config("evaluate", [f"eval={suite}", f"language={language}", "model=gpt2-124m"]))
    assert values["eval"]["name"] == suite and isinstance(values["eval"]["tasks"], list)
    expected = {"en": "openai-community/gpt2", "pt": "pierreguillou/gpt2-small-portuguese"}[language]
    assert values["model"]["path"] == expected
    assert notices(compose_settings(Evaluate, [f"eval={suite}", f"language={language}", "model=opt-tiny"])) == []


def test_a_group_of_the_other_command_is_refused():
    """Catches Hydra's own message where evaluate.py is given what train.py chooses."""
    with pytest.raises(AiraError, match=r"method=sft: .* has no method to choose. It has: language, model, eval"):
        compose_config("evaluate", ["method=sft"])


UNREAD = {
    "method=dpo model.path=a method.gamma=2": "method.gamma",
    "method=dpo model.path=a method.gamma=2 method.loss=simpo": None,
    "data.labels={a:1}": "data.labels",
    "method=toxicity data.labels={a:1}": None,
    "method=toxicity method.objective=pairwise data.labels={a:1}": "data.labels",
    "data.revision=main": "data.revision",
    "data=aira data.revision=main": None,
    "model.revision=main": "model.revision",
    "model.path=. model.revision=main": "model.revision",
    "model=gpt2-124m model.revision=main": None,
    "model.trust_remote_code=true": "model.trust_remote_code",
    "model.lora.alpha=32": "model.lora.alpha",
    "model.lora.dropout=0.1": "model.lora.dropout",
    "model.lora.target_modules=[a]": "model.lora.target_modules",
    "model.lora.r=8 model.lora.alpha=32": None,
    "model=bert-tiny method=reward model.template=native": "model.template",
    "model=bert-tiny method=reward model.prompt_bos=false": "model.prompt_bos",
    "model.template=native model.prompt_bos=false": "model.prompt_bos",
    "model.prompt_bos=false": None,
    "trainer.max_steps=5 trainer.max_epochs=2": "trainer.max_epochs",
    "trainer.limit_val_batches=0 trainer.val_check_interval=5": "trainer.val_check_interval",
    "trainer.limit_val_batches=0 callbacks.checkpoint.mode=max": "callbacks.checkpoint.mode",
    "callbacks.scores.count=9": "callbacks.scores.count",
    "callbacks.samples.max_new_tokens=9": None,
    "method=reward callbacks.samples.max_new_tokens=9": "callbacks.samples.max_new_tokens",
    "schedule.warmup=500 trainer.max_steps=500": "schedule.warmup",
    "schedule.warmup=600 trainer.max_steps=500": "schedule.warmup",
    "schedule.warmup=499 trainer.max_steps=500": None,
    "schedule.warmup=600": None,
    "optimizer.lr=0": "optimizer.lr",
    "data.path=a data.mix=[{path:b}]": "data.path",
    "data.max_examples=3 data.mix=[{path:b}]": "data.max_examples",
    "data.mix_by=tokens": "data.mix_by",
    "data.mix_by=tokens data.mix=[{path:a},{path:b}]": None,
}
"""Settings that change nothing, each with the key that is told of; None where it does."""


@pytest.mark.parametrize("line, key", UNREAD.items())
def test_a_setting_that_changes_nothing(line, key):
    """Catches a setting without effect and without a word, and a word about one that has an effect."""
    overrides = line.split(" ")
    said = notices(compose_settings(Train, overrides), [text.partition("=")[0] for text in overrides])
    assert [line.split(" ")[0].split("=")[0] for line in said if "starts from" not in line] == [key] * bool(key)


def test_a_misspelt_id():
    """Catches an id that differs by a letter from a known one, and a notice about one that is none."""
    assert {"openai-community/gpt2", "Qwen/Qwen3-0.6B-Base"} <= {*ids_of("model")}
    assert {"nicholasKluge/instruct-aira-dataset-v2", "Anthropic/hh-rlhf"} <= {*ids_of("data")}
    for line, meant in (
        ("model.path=openai-comunity/gpt2", "openai-community/gpt2"),
        ("model.path=Qwen/Qwen3-0.6-Base", "Qwen/Qwen3-0.6B-Base"),
        ("data.path=Antropic/hh-rlhf method=dpo model.path=a", "Anthropic/hh-rlhf"),
        ("model.path=openai-community/gpt2", None),
        ("model.path=Qwen/Qwen3-4B-Base", None),
        ("model.path=google-bert/bert-base-uncased", None),
        ("model.path=me/mine", None),
    ):
        said = [text for text in notices(compose_settings(Train, line.split(" "))) if "asked for on the hub" in text]
        assert [text.endswith(f"Is {meant} meant?") for text in said] == [True] * bool(meant), line


NOT_TOGETHER = [
    ("train", "model.load_in_4bit=true", "it needs adapters to train, such as model.lora.r=16"),
    ("train", "model.load_in_4bit=true model.lora.r=4 trainer=fsdp", "shards no 4-bit weights"),
    ("train", "callbacks=[default,ema,swa]", "choose one"),
    ("train", "callbacks=[default,ema] trainer=fsdp", "need whole weights"),
    ("train", "optimizer.name=muon trainer=fsdp", "only adamw is supported"),
    ("train", "export=best trainer.limit_val_batches=0", "trainer.limit_val_batches above 0"),
    ("evaluate", "model.path=a models=[b]", "models= and model.path= both name what is evaluated"),
    ("evaluate", "model=gpt2-124m models=[b]", "models= and model= both name what is evaluated"),
    ("evaluate", "compare=[a,b] models=[c]", "models= is for a new one"),
    ("evaluate", "compare=[a,b] model.path=c", "model.path= is for a new one"),
    ("evaluate", "compare=[a,b] eval.limit=3", "eval.limit= is for a new one"),
    ("evaluate", "compare=[a,b] eval=aira-en", "eval= is for a new one"),
    ("evaluate", "compare=[a]", "compare=[a]: name two folders"),
    ("evaluate", "eval=aira-en eval.tasks=[]", "eval=aira-en has no task"),
    ("evaluate", "eval.tasks=[piqa] ++eval.num_fewshot={pika:1}", "pika is none of eval.tasks=[piqa]"),
    ("evaluate", "eval.tasks=[piqa] eval.not_averaged=[pika]", "pika is none of eval.tasks=[piqa]"),
    ("evaluate", "eval=aira-en eval.num_fewshot={piqa:1}", "'++eval.num_fewshot={piqa:1}'"),
    ("evaluate", "device=gpu", "device=gpu: it is auto, cpu, or a GPU: cuda, or cuda:1"),
    ("chat", "device=0", "device=0"),
    ("chat", "device=cuda:a", "device=cuda:a: it is auto"),
    ("chat", "n=4 temperature=0", "candidates would all be the same"),
    ("chat", "temperature=1e-9", "scores overflow"),
    ("chat", "guard.threshold=0.3 guard.threshold_logit=5", "one limit in two units"),
    ("chat", "toxicity_model=none guard.threshold=0.3", "guard.threshold is for a toxicity model"),
    ("chat", "toxicity_model=none guard.reads=exchange", "guard.reads is for a toxicity model"),
    ("rejection_sampling", "output=a guard.threshold_logit=1", "guard.threshold_logit is for a toxicity model"),
    ("rejection_sampling", "output=a temperature=0", "candidates would all be the same"),
]


@pytest.mark.parametrize("name, line, said", NOT_TOGETHER)
def test_what_does_not_go_together(name, line, said):
    """Catches one of two settings that is dropped without a word, or told of after a wait for torch."""
    with pytest.raises(AiraError) as caught:
        compose_config(name, line.split(" "))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line, told", [("method=dpo", True), ("method=dpo model.path=here", False), ("method=sft", False)]
)
def test_dpo_from_random_weights_is_told(line, told):
    """Catches DPO of a model that cannot answer yet, without a word."""
    said = notices(compose_settings(Train, line.split(" ")))
    assert any("random weights" in notice for notice in said) == told


# The files in conf/


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: str(file.relative_to(CONF)))
def test_yaml_says_what_it_is(file):
    """Catches a configuration file without a word on what it is for."""
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and len(first) > 8


def test_the_reference_is_of_this_configuration():
    """Catches a key that was added or changed, and not in docs/reference.md: python docs/reference.py writes it."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert written == module.reference()
    assert not [line for line in written.splitlines() if line.endswith("|  |")], "a key without a comment"


FREE = ("config", "checkpoints", "sources", "spaces", "lr", "epochs", "exact_match", "kinds", "num_fewshot")
"""Mappings whose keys are a user's, Transformers', or the names of methods, objectives and tasks."""


def test_every_key_is_read():
    """Catches a key that can be set and changes nothing."""
    files = [file for file in (ROOT / "aira").rglob("*.py") if file.name != "schema.py"]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    unread = []
    for file in YAMLS:
        if file.parent.name == "experiment":  # test_recipes.py: these set keys of the other groups
            continue
        content = raw(file)
        content.pop("defaults", None), content.pop("hydra", None)
        targets = [value for key, value in flatten(content) if key.split(".")[-1] == "_target_"]
        if (file.parent / "_base.yaml").exists():
            others = file.parent.glob("*.yaml") if file.name == "_base.yaml" else [file.parent / "_base.yaml"]
            targets += [v for other in others for k, v in flatten(raw(other)) if k.split(".")[-1] == "_target_"]
        targets += [content["module"]] if content.get("module", "???") != "???" else []
        parameters = set().union(*(target_parameters(target) for target in targets)) if targets else set()
        references = re.findall(r"\$\{([^}]*)", "".join(other.read_text(encoding="utf-8") for other in YAMLS))
        for key, value in flatten(content):
            name = key.split(".")[-1]
            if isinstance(value, dict) or name == "_target_" or set(key.split(".")[:-1]) & set(FREE):
                continue
            quoted = re.search(rf"[\"']{name}[\"']|\.{name}\b", code) or name in parameters
            as_argument = name in data_module_parameters() if file.parent.name == "data" else False
            referred = any(re.search(rf"\b{file.parent.name}\.{name}\b", text) for text in references)
            if not (quoted or as_argument or referred):
                unread.append(f"{file.relative_to(CONF)}: {key}")
    assert not unread


def target_parameters(target):
    module, _, name = target.rpartition(".")
    return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def data_module_parameters():
    return target_parameters("aira.data.module.DataModule")


@pytest.mark.parametrize("group", groups())
def test_help_lists_every_option(group):
    """Catches an option that was added and not told of."""
    told = "".join((CONF / file).read_text(encoding="utf-8") for file in ("train.yaml", "evaluate.yaml"))
    assert group == "callbacks" or all(f" {option}" in told for option in options(group))


@pytest.mark.parametrize("where", ["./conf", "--config-dir", "--config-dir="])
def test_a_group_of_the_users_own(monkeypatch, tmp_path, capsys, where):
    """Catches options of the user's own that are not found, not offered, or hide Aira's without a word."""
    monkeypatch.setenv("AIRA_CONFIG_DIR", "")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ("conf" if where == "./conf" else "mine")
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("defaults: [gpt2-tiny]\nname: mine\ndropout: 0.25\n")
    (folder / "model" / "opt-tiny.yaml").write_text("defaults: [gpt2-tiny]\nname: not-opt\n")
    given = {"./conf": [], "--config-dir": ["--config-dir", "mine"], "--config-dir=": ["--config-dir=mine"]}[where]
    monkeypatch.setattr(sys, "argv", ["train.py", *given, "--cfg", "job", "model=mine"])
    check("train")
    assert sys.argv == ["train.py", "--cfg", "job", "model=mine"]
    told = capsys.readouterr().err
    assert "in place of Aira's own" in told and "opt-tiny.yaml" in told and "mine.yaml" not in told
    assert compose_config("train", ["model=mine"]).model.dropout == 0.25
    assert compose_config("train", ["model=opt-tiny"]).model.name == "not-opt"
    with pytest.raises(AiraError, match="Did you mean 'mine'"):
        compose_config("train", ["model=mien"])
    assert "mine" in options("model") and "gpt2-tiny" in options("model")


def test_a_method_that_is_made_from_another(monkeypatch, tmp_path):
    """Catches a file of the user's own that is not held to the rules of the method whose module it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    for content, error in (
        ("beta: 0", r"method\.beta=0: it must be a number above 0"),
        ("beta: 0.2\nloss: ipo\nlabel_smoothing: 0.1", "has no label smoothing"),
    ):
        (tmp_path / "conf" / "method" / "mine.yaml").write_text(f"defaults: [dpo]\nname: mine\n{content}\n")
        with pytest.raises(AiraError, match=error):
            compose_config("train", ["method=mine"])
    assert "val/loss" in describe("train", "method=mine")


MINE = {
    "an open brace": ("name: mine\nconfig: {n_layer: 2\n", r"mine\.yaml, line \d+, column \d+: "),
    "a tab": ("defaults: [gpt2-tiny]\nconfig:\n\tn_layer: 2\n", r"mine\.yaml, line 3, column 1: "),
    "nothing to begin with": ("name: mine\nconfig: {n_layer: 2}\n", r"its file has no \w+. Begin it with a line"),
    "a misspelt key": ("defaults: [gpt2-tiny]\nname: mine\nconfg: {n_layer: 2}\n", r"its key confg. .*'config'"),
    "a key of another": ("defaults: [gpt2-tiny]\nname: mine\nbatch_size: 2\n", r"nothing reads its key batch_size"),
    "a misspelt base": ("defaults: [_tny]\nname: mine\n", r"mine\.yaml: defaults: there is no model _tny\. .*'_tiny'"),
    "a base that is no list": ("defaults: gpt2-tiny\nname: mine\n", r"mine\.yaml: defaults=gpt2-tiny is no list"),
    "nothing": ("", r"mine\.yaml has no keys\. Begin it"),
    "a comment alone": ("# mine\n", r"mine\.yaml has no keys"),
    "a list": ("- gpt2-tiny\n", r"mine\.yaml has no keys"),
    "a text": ("gpt2-tiny\n", r"mine\.yaml has no keys"),
}


@pytest.mark.parametrize("content, told", MINE.values(), ids=MINE)
def test_a_file_of_the_users_own_with_a_mistake(monkeypatch, tmp_path, content, told):
    """Catches a traceback, and a key that is read by nobody."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(content)
    with pytest.raises(AiraError, match=told):
        compose_config("train", ["model=mine"])


HELP = [
    ("train", "model", "gpt2-124m                GPT-2 small", "model.lora.r=0", "a whole number of at least 0"),
    ("train", "method=dpo", "method.beta=0.1 (of method=dpo)", "a number above 0", "one of sigmoid, sigmoid_norm"),
    ("train", "optimizer", "optimizer.betas=[0.9, 0.999]", "a list of two numbers"),
    ("train", "data.batch_size", "examples of one optimizer step", "a whole number of at least 1"),
    ("train", "logger", "logger.wandb.project=aira", "Weights & Biases"),
    ("evaluate", "eval", "eval.precision=32-true", "one of 32-true, bf16-mixed"),
    ("chat", "guard", "guard.threshold=null", "null, or a number between 0 and 1"),
]


@pytest.mark.parametrize("config_name, name, told", [(one, name, told) for one, name, *told in HELP])
def test_help_on_a_group(config_name, name, told):
    """Catches a group without its options, or a key without what it is and may be."""
    said = describe(config_name, name)
    assert all(part in said for part in told) and "_target_" not in said
    assert "method.head" not in said, "a fact, which nobody sets"


def test_help_on_what_is_not_there():
    """Catches an empty answer to a misspelt name."""
    with pytest.raises(AiraError, match=r"there is no such group or key\. Did you mean 'optimizer'"):
        describe("train", "optimzer")


@pytest.mark.parametrize(
    "arguments",
    [["train", "--help"], ["train", "--help", "callbacks"], ["report", "--help"], ["train", "--cfg", "job"]],
)
def test_help_to_a_reader_of_one_line(arguments):
    """Catches a traceback behind `| head -1`."""
    command = f"{sys.executable} -m aira {' '.join(arguments)} | head -1"
    shown = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in shown.stderr and "Broken pipe" not in shown.stderr and shown.stdout.count("\n") == 1


def test_a_config_dir_that_is_not_there(monkeypatch, capsys):
    """Catches Hydra's traceback."""
    for given in (["--config-dir", "nowhere"], ["--config-dir"], ["--config-dir="]):
        monkeypatch.setattr(sys, "argv", ["train.py", "seed=3", *given])
        with pytest.raises(SystemExit):
            check("train")
        assert "there is no such folder" in capsys.readouterr().err


def test_an_output_that_cannot_show_a_character(monkeypatch):
    """Catches a run that ends where an answer has an accent and the terminal, or a log file, is ASCII."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg", "job"])
    check("train")
    print("Você")
    assert shown.getvalue() == b"Voc?\n"
