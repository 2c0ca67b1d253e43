"""Exports are right where they are taken to: other versions, pipelines, converters; and whole, or not there."""

import ast
import copy
import json
import os
import re
import subprocess
import time
import venv
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from aira.config.compose import compose_config
from aira.config.record import to_dict
from aira.data.tokenize import tokenizer_hash
from aira.files import exports
from aira.models.export import export, model_card
from aira.models.loading import load_model, load_tokenizer
from aira.models.weights import weights_hash
from tests.models.conftest import CAUSAL, ENCODERS

ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1234.0}
SHAPES = CAUSAL | {name: {**shape, "num_attention_heads": 4} for name, shape in ENCODERS.items()}
SHAPES["llama-scaled"] = {**CAUSAL["llama"], "rope_parameters": ROPE}
CONTEXT = {"gpt2": 128, "opt": 128, "opt-350m": 128, "llama": 128, "llama-scaled": 128, "bert": 512, "roberta": 511}
TEXT = "You are a fool, and I said so. Ünïcode  <|endofinstruction|> 123\n"


def made(folder, name, head="lm", label="harmless", **settings):
    architecture = "encoder" if name in ENCODERS else "causal"
    path = f"pkg://aira.models/tiny/{architecture}"
    tokenizer, added = load_tokenizer(path, architecture=architecture, head=head)
    attention = {"attn_implementation": "sdpa"} if architecture == "encoder" else {}
    torch.manual_seed(0)
    given = {"architecture": architecture, "head": head, "label": label, "config": SHAPES[name]}
    model = load_model(path, tokenizer, added, **given, **attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    tokenizer.init_kwargs.pop("model_input_names", None)  # which a tokenizer from a GGUF file has not
    export(copy.deepcopy(model), tokenizer, folder, "card", **settings)  # which sets its answers' length
    return model.eval(), tokenizer


def written(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.mark.parametrize("head", ["lm", "score"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_other_tools_read(tmp_path, name, head):
    """Catches names that only Transformers 5 knows, and a truncation that cuts nothing."""
    if head == "lm" and name in ENCODERS:
        return
    longest = 100 if head == "score" else None
    model, tokenizer = made(tmp_path / "export", name, head, max_length=longest)
    architecture = "encoder" if name in ENCODERS else "causal"
    config, tokens = written(tmp_path / "export", "config.json"), written(tmp_path / "export", "tokenizer_config.json")
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast" and config["torch_dtype"] == "float32"
    assert ("token_type_ids" in tokens["model_input_names"]) == (name in ENCODERS)
    expected = longest or CONTEXT.get(name)
    assert (tokens["model_max_length"] == expected) if expected else tokens["model_max_length"] > 10**9
    assert config.get("n_ctx") == (128 if name == "gpt2" else None)
    if name.startswith("llama"):
        scaled = name == "llama-scaled"
        assert config["rope_theta"] == (1234.0 if scaled else 10000.0)
        assert config["rope_scaling"] == ({"rope_type": "linear", "factor": 2.0} if scaled else None)
        assert AutoConfig.from_pretrained(tmp_path / "export").rope_parameters == config["rope_parameters"]
    again, added = load_tokenizer(str(tmp_path / "export"), architecture=architecture, head=head)
    how = {
        "architecture": architecture,
        "head": head,
        "label": "harmless",
        "attn_implementation": model.config._attn_implementation,
    }
    loaded = load_model(str(tmp_path / "export"), again, added, **how)
    assert weights_hash(loaded) == weights_hash(model), "another key of what was computed with the same model"
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    if longest:
        assert config["id2label"] == {"0": "harmless"}
        cut = AutoTokenizer.from_pretrained(tmp_path / "export")(TEXT * 40, truncation=True)["input_ids"]
        assert len(cut) == longest


def test_a_longer_length_than_the_context(tmp_path):
    """Catches a truncation to more tokens than the model has positions."""
    made(tmp_path / "export", "roberta", "score", max_length=600)
    assert written(tmp_path / "export", "tokenizer_config.json")["model_max_length"] == 511


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "roberta"])
@pytest.mark.parametrize("label", ["harmless", "reward"])
def test_a_pipeline(tmp_path, name, label):
    """Catches a crash on a long text, and a score that is not what the card says."""
    _, tokenizer = made(tmp_path / "export", name, "score", label, max_length=60)
    ask = pipeline("text-classification", str(tmp_path / "export"))
    for text in (TEXT, TEXT * 40):
        (found,) = ask(text, truncation=True)
        with torch.no_grad():
            batch = tokenizer(text, truncation=True, max_length=60, return_tensors="pt")
            score = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")(**batch).logits[0, 0]
        expected = torch.sigmoid(score) if label == "harmless" else score
        assert found["label"] == label and found["score"] == pytest.approx(expected.item(), abs=1e-5)


SECRET = "/srv/people/jane-doe"
LOCAL = {
    "model.path": f"{SECRET}/outputs/day/my-run/export",
    "data.path": f"{SECRET}/projects/rows.jsonl",
    "cache_dir": f"{SECRET}/cache",
    "data.exclude": f"[{SECRET}/a/test.jsonl,people/jane-doe/b/other.jsonl]",
    "output_dir": f"{SECRET}/outputs",
}
METHODS = [
    ("sft", {"model.path": "~/people/jane-doe/my-run/export"}, ["`my-run`"]),
    ("sft", {"model.path": "people/jane-doe/day/my-run"}, ["`my-run`"]),
    ("sft", {"data.path": "people/rows.jsonl"}, ["`rows.jsonl`"]),
    ("sft", {"data.path": "../jane-doe/rows"}, ["`rows`"]),
    ("dpo", {"method.reference": f"{SECRET}/reference"}, ['"reference": "reference"']),
    ("toxicity", {"model.checkpoints.default": f"{SECRET}/base"}, ["`my-run`", "below the sigmoid of `threshold`"]),
    ("reward", {}, ["`my-run`", "its score is the reward"]),
]


@pytest.mark.parametrize("method, changes, there", METHODS)
def test_the_card_names_no_folder(method, changes, there):
    """Catches a published card that says where somebody's files are."""
    given = [f"{key}='{value}'" if "~" in value else f"{key}={value}" for key, value in (LOCAL | changes).items()]
    card = model_card(
        to_dict(compose_config("train", [f"method={method}", *given])), {"val/loss": 1.0}, {"python": "3"}
    )
    assert not [word for word in ("jane", "people", "/srv", "projects", "~") if word in card.replace("~~", "")]
    assert all(words in card for words in there), card


@pytest.mark.parametrize("path", ["gpt2", "nicholasKluge/Aira-2-124M", "pkg://aira.models/tiny/causal"])
def test_the_card_keeps_names(path):
    """Catches a hub id that is cut like a folder."""
    card = model_card(to_dict(compose_config("train", [f"model.path={path}", "data.path=someone/rows"])), {}, {})
    assert f"from `{path}` on `someone/rows`" in card and f'"path": "{path}"' in card
    assert ("base_model:" in card) == (not path.startswith("pkg:")) and "datasets: someone/rows" in card


@pytest.mark.parametrize("said", ['"hi"?', "it's", "a\\b", "GOOD or BAD", "a\nb", '"""', "{x}"])
def test_the_code_of_a_card_runs_as_it_stands(said):
    """Catches a question that ends the text which it stands in, or becomes another one."""
    for method in ("sft", "reward"):
        values = to_dict(compose_config("train", [f"method={method}"]))
        values["language"]["questions"] = [said]
        (code,) = re.findall(r"```python\n(.*?)\n```", model_card(values, {}, {}), re.DOTALL)
        texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert said in texts


def test_names_on_a_card_are_no_markup():
    """Catches a cell that ends in a name, and code that ends in a path."""
    values = to_dict(compose_config("train", []))
    values["model"]["path"], values["data"]["path"] = "a`b", "``c\n# d"
    row = {"task": "t|u", "name": "<b>_x_", "candidate": True, "value": 0.5, "shown": "50|", "percent": True}
    perplexity = {**row, "name": "no percent", "percent": False, "value": 12.5, "metric": "word_perplexity"}
    card = model_card(values, {"val/a|b": 1.0}, {}, [row, {**row, "metric": "f1"}, perplexity])
    assert r"| \<b\>\_x\_ | t\|u |  | 50\| |" in card and r"| t\|u | word_perplexity | 50\| |" in card
    assert r"| val/a\|b | 1 |" in card and "from `` a`b `` on ``` ``c # d ```." in card
    results = ModelCard(card).data.eval_results
    assert {one.dataset_name for one in results} == {"t|u"}
    of_metrics = [(one.metric_type, one.metric_value) for one in results]
    assert of_metrics == [("accuracy", 50.0), ("f1", 50.0), ("word_perplexity", 12.5)], "a metric has its own name"


def test_an_export_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """Catches a mix of two exports, files of the one before, and a half one after a fault or a kill."""
    folder = tmp_path / "outputs" / "day" / "run" / "export"
    model, tokenizer = made(folder, "gpt2")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"of another export")

    def state():
        assert [one.name for one in folder.parent.iterdir()] == ["export"]
        return (folder / "README.md").read_text(), load_file(folder / "model.safetensors")[
            "transformer.ln_f.bias"
        ].sum()

    before = state()
    with torch.no_grad():
        model.transformer.ln_f.bias += 1.0

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    for owner, name in ((model, "save_pretrained"), (tokenizer, "save_pretrained"), (os, "fsync")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space"):
                export(model, tokenizer, folder, "another card")
        assert state() == before
    export(model, tokenizer, folder, "another card")
    assert state() == ("another card", before[1] + 64)
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "model-00002-of-00003"]
)
def test_a_half_export_is_never_the_last(tmp_path, missing, capsys):
    """Catches `last` that takes what a kill, a full disk or a broken copy left."""
    for name in ("whole", "half"):
        folder = tmp_path / "day" / name / "export"
        model, _ = made(folder, "gpt2")
        if missing.startswith("model-"):
            (folder / "model.safetensors").unlink()
            model.save_pretrained(folder, max_shard_size="300KB")
    time.sleep(0.01)
    os.utime(folder / "config.json")
    assert [one.parent.name for one in exports(str(tmp_path))] == ["half", "whole"]
    next(folder.glob(f"{missing}*")).unlink()
    assert [one.parent.name for one in exports(str(tmp_path))] == ["whole"]
    said = capsys.readouterr().err
    assert ("half" in said and missing in said) or missing == "config.json"


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("keep", [0, 7, -9])
def test_a_damaged_export_is_never_the_last(tmp_path, damaged, keep, capsys):
    """Catches `last` that takes an export of which a file was cut short, and every later chat that ends by it."""
    for name in ("whole", "half"):
        made(tmp_path / "day" / name / "export", "gpt2")
    file = tmp_path / "day" / "half" / "export" / damaged
    file.write_bytes(file.read_bytes()[:keep])
    assert [one.parent.name for one in exports(str(tmp_path))] == ["whole"]
    assert f"its {damaged} is damaged" in capsys.readouterr().err


READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
text, folders = json.loads(sys.argv[1])
found = {"version": transformers.__version__}
for folder, head in folders:
    auto = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
    tokenizer, model = AutoTokenizer.from_pretrained(folder), auto.from_pretrained(folder).eval()
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits.flatten()[-5:].tolist()
    found[folder] = [batch["input_ids"][0].tolist(), logits, tokenizer.model_max_length]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_transformers_4(tmp_path):
    """Catches an export that the version before does not load, or reads as another model."""
    venv.create(tmp_path / "venv", with_pip=True, system_site_packages=False)
    python = str(tmp_path / "venv" / "bin" / "python")
    wanted = [f"torch=={torch.__version__.partition('+')[0]}", "transformers==4.57.*"]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True, timeout=1200)
    folders, expected = [], {}
    for name in SHAPES:
        for head in ("score",) if name in ENCODERS else ("lm", "score"):
            folder = str(tmp_path / f"{name}-{head}")
            _, tokenizer = made(Path(folder), name, head, max_length=90)
            folders.append((folder, head))
            auto = AutoModelForCausalLM if head == "lm" else AutoModelForSequenceClassification
            batch = tokenizer(TEXT, return_tensors="pt")
            with torch.no_grad():
                logits = auto.from_pretrained(folder).eval()(**batch).logits.flatten()[-5:].tolist()
            expected[folder] = (batch["input_ids"][0].tolist(), logits)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-c", READ, json.dumps([TEXT, folders])]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith("4.57.")
    for folder, (ids, logits) in expected.items():
        assert found[folder][0] == ids and found[folder][2] == 90
        assert found[folder][1] == pytest.approx(logits, abs=1e-5), folder
