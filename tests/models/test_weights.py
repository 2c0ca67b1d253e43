"""Weights are all there, or an error names which are not; adapters of PEFT are merged, and then train."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from aira.config.schema import Lora
from aira.data.trees import Tree, pack
from aira.errors import AiraError
from aira.files import locate
from aira.inference.scorers import ScoringModel
from aira.models.export import export
from aira.models.forward import hidden_states, unwrap
from aira.models.loading import load_config, load_model, load_tokenizer
from tests.models.conftest import CAUSAL, ENCODERS, make

TEXTS = ["Thank you for the lovely evening.", "Shut your mouth, you fool.", "It is 5."]
CLASSES = {
    "lm": AutoModelForCausalLM,
    "score": AutoModelForSequenceClassification,
    "mlm": AutoModelForMaskedLM,
    "pretraining": AutoModelForPreTraining,
}


def saved(folder, name, head, **shape):
    """A model as it lies on the hub."""
    encoder = name in ENCODERS
    tokenizer = AutoTokenizer.from_pretrained(locate(f"pkg://aira.models/tiny/{'encoder' if encoder else 'causal'}"))
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>", "eos_token": "<|end|>"})
    heads = {"num_attention_heads": 4} if encoder else {}
    labels = {"num_labels": 1, "id2label": {0: "reward"}, "label2id": {"reward": 0}} if head == "score" else {}
    shape = {**{**CAUSAL, **ENCODERS}[name], **heads, **labels, **shape, "vocab_size": len(tokenizer)}
    shape["pad_token_id"] = tokenizer.pad_token_id
    make(shape, CLASSES[head], "eager").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def change(folder, edit):
    weights = load_file(f"{folder}/model.safetensors")
    edit(weights)
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})


def rewrite(folder, name, edit):
    file = Path(folder) / name
    file.write_bytes(edit(file.read_bytes()))


def configure(folder, **changes):
    rewrite(folder, "config.json", lambda text: json.dumps(json.loads(text) | changes).encode())


def cut_short(folder):
    rewrite(folder, "model.safetensors", lambda content: content[: len(content) // 2])


def shards(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    Path(folder, "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    sorted(Path(folder).glob("*.safetensors"))[1].unlink()


def more_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|no embedding|>"])
    tokenizer.save_pretrained(folder)


def broken(key, value):
    """A change of the weights: of the tensor that ends in `key`, or None to leave it out."""

    def edit(weights):
        name = next(name for name in weights if name.endswith(key))
        if value is None:
            del weights[name]
        elif isinstance(value, str):
            weights[value] = weights[name].clone()
        else:
            weights[name] = value(weights[name])

    return lambda folder: change(folder, edit)


def with_number(number):
    def edit(tensor):
        tensor.flatten()[3] = number
        return tensor

    return edit


CAUSAL_FAULTS = [
    ("gpt2", "lm", lambda folder: configure(folder, n_layer=1), r"no place for transformer\.h\.1\..* and \d+ more"),
    ("gpt2", "lm", lambda folder: configure(folder, n_layer=3), r"lack transformer\.h\.2\..* and \d+ more"),
    ("llama", "lm", lambda folder: configure(folder, num_hidden_layers=3), r"lack model\.layers\.2\."),
    ("opt", "lm", lambda folder: configure(folder, num_hidden_layers=1), r"no place for model\.decoder\.layers\.1\."),
    ("bloom", "lm", broken("h.1.mlp.dense_4h_to_h.weight", None), r"lack transformer\.h\.1\.mlp\.dense_4h_to_h"),
    ("llama", "lm", broken("norm.weight", None), "lack model"),
    ("gpt2", "lm", broken("h.0.mlp.c_fc.weight", "adapter.weight"), r"no place for adapter\.weight"),
    ("gpt2", "lm", lambda folder: configure(folder, n_inner=128), r"mlp.* is \(\d+.* in the file and \(\d+"),
    ("gpt2", "score", broken("score.weight", None), r"lack score\.weight"),
    ("llama", "score", broken("score.weight", None), r"lack score\.weight"),
    ("bert", "score", broken("classifier.weight", None), r"lack classifier\.weight"),
    ("bert", "score", broken("pooler.dense.bias", None), r"lack bert\.pooler\.dense\.bias"),
    ("roberta", "score", broken("classifier.out_proj.weight", None), r"lack classifier\.out_proj\.weight"),
    ("gpt2", "score", lambda folder: configure(folder, n_layer=1), r"no place for transformer\.h\.1\."),
    ("gpt2", "lm", broken("h.0.ln_1.weight", with_number(float("nan"))), r"NaN or infinity in .*h\.0\.ln_1\.weight"),
    ("opt", "lm", broken("fc1.weight", with_number(float("inf"))), "NaN or infinity in .*fc1"),
    ("bert", "score", broken("classifier.bias", lambda one: one + float("nan")), "NaN or infinity in classifier.bias"),
    ("gpt2", "lm", broken("h.0.mlp.c_fc.weight", lambda one: one.to(torch.int8)), r"h\.0\.mlp\.c_fc\.weight as I8"),
    ("llama", "score", broken("score.weight", lambda one: one.to(torch.int64)), r"score\.weight as I64"),
    ("gpt2", "lm", cut_short, "damaged, most likely cut short"),
    ("gpt2", "lm", shards, r"model-00002-of-000\d\d\.safetensors"),
    ("gpt2", "lm", more_tokens, r"'<\|no embedding\|>' would have random ones"),
]  # fmt: skip


@pytest.mark.parametrize("name, head, fault, message", CAUSAL_FAULTS)
def test_weights_that_are_not_there_are_named(tmp_path, name, head, fault, message):
    """Catches layers, heads and rows that are made at random, and numbers that are none."""
    folder = saved(tmp_path, name, head)
    architecture = "encoder" if name in ENCODERS else "causal"
    settings = {"attn_implementation": "sdpa"} if architecture == "encoder" else {}
    settings |= {"label": "reward"} if head == "score" else {}

    def load():
        tokenizer, added = load_tokenizer(folder, architecture=architecture, head=head, template=None)
        return load_model(folder, tokenizer, added, architecture=architecture, head=head, **settings)

    load()
    fault(folder)
    with pytest.raises(AiraError, match=message):
        load()
    if head == "score":
        with pytest.raises(AiraError, match=message):
            ScoringModel(folder)


@pytest.mark.parametrize("name, head", [("gpt2", "lm"), ("llama", "lm"), ("bert", "mlm"), ("roberta", "mlm")])
def test_a_new_head_is_told(tmp_path, name, head, capsys):
    """Catches a head that is made anew without a word, and one that is refused where it is meant."""
    folder = saved(tmp_path, name, head, tie_word_embeddings=True)
    architecture = "encoder" if name in ENCODERS else "causal"
    tokenizer, added = load_tokenizer(folder, architecture=architecture, head="score")
    load_model(
        folder, tokenizer, added, architecture=architecture, head="score", label="reward", attn_implementation="sdpa"
    )
    assert "a new head is trained (" in capsys.readouterr().out
    with pytest.raises(AiraError, match="is no scorer"):
        ScoringModel(folder)


@pytest.mark.parametrize("old", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"])
def test_masks_of_older_files_are_no_weights(tmp_path, old, capsys):
    """Catches an old file of GPT-2 that is refused for the masks in it."""
    folder = saved(tmp_path, "gpt2", "lm")
    change(folder, lambda weights: weights.update({old: torch.ones(1, 1, 4, 4).bool()}))
    load_model(folder, *load_tokenizer(folder))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("template", [None, "aira"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_head_beside_embeddings_that_are_said_to_be_tied(tmp_path, name, template):
    """Catches a trained head that gives way to the embeddings: when tokens are added, and when it is exported."""
    folder = saved(tmp_path / "model", name, "lm", tie_word_embeddings=True)
    (embeddings,) = (
        key for key in load_file(f"{folder}/model.safetensors") if key.endswith(("wte.weight", "tokens.weight"))
    )
    change(folder, lambda weights: weights.update({"lm_head.weight": torch.randn_like(weights[embeddings])}))
    head = load_file(f"{folder}/model.safetensors")["lm_head.weight"]
    tokenizer, added = load_tokenizer(folder, template=template)
    model = load_model(folder, tokenizer, added)
    assert bool(added) == (template == "aira")
    assert torch.equal(model.get_output_embeddings().weight[: len(head)], head)
    export(model, tokenizer, tmp_path / "export", "card")
    again = load_model(str(tmp_path / "export"), *load_tokenizer(str(tmp_path / "export"), template=None))
    assert torch.equal(again.get_output_embeddings().weight[: len(head)], head)


TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "up_proj"], "opt": ["q_proj", "fc1"], "bert": ["query"]}


def adapter(folder, name, head, **settings):
    """An adapter's folder as PEFT writes it, with weights that are not zero; and the adapted model."""
    base = saved(folder / "base", name, "pretraining" if name in ENCODERS else "lm")
    shape = {"num_labels": 1} if head == "score" else {}
    model = CLASSES[head].from_pretrained(base, **shape)
    task = "SEQ_CLS" if head == "score" else "CAUSAL_LM"
    config = LoraConfig(r=4, target_modules=TARGETS[name], task_type=task, fan_in_fan_out=name == "gpt2", **settings)
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) / 8)
    adapted.save_pretrained(folder / "adapter")
    return str(folder / "adapter"), adapted.eval()


@pytest.mark.parametrize("lora", [None, Lora(r=2, alpha=4, dropout=0.0, target_modules="all-linear")])
@pytest.mark.parametrize("head", ["lm", "score"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_an_adapter_is_merged_and_trains(tmp_path, name, head, lora, capsys):
    """Catches weights that PEFT froze, and a head of a language model's adapter that stops a scorer."""
    folder, adapted = adapter(tmp_path, name, "lm")
    tokenizer, added = load_tokenizer(folder, head=head, template="aira")
    model = load_model(folder, tokenizer, added, head=head, label="reward", lora=lora).eval()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(list(model.parameters())) if lora is None else any("lora_A" in one for one in trained)
    ids = torch.tensor([tokenizer.encode(TEXTS[0], add_special_tokens=False)])
    row = pack([Tree([ids[0].tolist()], [[True] * ids.shape[1]])])
    expected = adapted.get_base_model().base_model(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(hidden_states(model, row), expected, atol=2e-5, rtol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").base_model(input_ids=ids).last_hidden_state[0]
    assert (expected - plain).abs().max() > 0.01
    (hidden_states(model, row) * torch.randn_like(expected)).sum().backward()  # their sum is 0 after a layer norm
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert ("a new head is trained (score.weight)" in capsys.readouterr().out) == (head == "score")
    assert type(unwrap(model)).__name__.endswith("SequenceClassification") == (head == "score")


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_the_head_of_a_scorer_s_adapter_is_read(tmp_path, name, capsys):
    """Catches scores by a random head, and an adapter of a scorer that is taken for a language model."""
    folder, adapted = adapter(tmp_path, name, "score")
    scorer = ScoringModel(folder)
    found = scorer.score([scorer.encode([[{"role": "assistant", "content": text}]]) for text in TEXTS])
    assert "new head" not in capsys.readouterr().out
    for (score,), text in zip(found, TEXTS, strict=True):
        batch = scorer.tokenizer(text, return_tensors="pt")
        assert score == pytest.approx(adapted(**batch).logits[0, 0].item(), abs=1e-4)
    if name != "bert":
        with pytest.raises(AiraError, match="is a scorer, without a language-model head"):
            load_model(folder, *load_tokenizer(folder))


def adapter_change(edit):
    def fault(folder):
        weights = load_file(f"{folder}/adapter_model.safetensors")
        save_file(edit(weights), f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})

    return fault


def adapter_settings(**changes):
    def fault(folder):
        rewrite(folder, "adapter_config.json", lambda text: json.dumps(json.loads(text) | changes).encode())

    return fault


def scaled(by):
    return adapter_change(lambda weights: {name: tensor * by for name, tensor in weights.items()})


FOREIGN = {"base_model.model.foreign.lora_A.weight": torch.ones(2, 2)}
PROMPTS = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": 8}
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
ADAPTER_FAULTS = {
    "no base": (adapter_settings(base_model_name_or_path=None), "does not say which model it adapts"),
    "a base that is gone": (adapter_settings(base_model_name_or_path="/no/base"), r"adapter_config.json.*/no/base"),
    "no weights": (lambda folder: Path(folder, WEIGHTS).unlink(), r"adapter_model.safetensors is missing"),
    "cut short": (lambda folder: rewrite(folder, WEIGHTS, lambda all: all[:-40]), "damaged, most likely cut short"),
    "no JSON": (lambda folder: rewrite(folder, SETTINGS, lambda text: text[:9]), "does not say which model"),
    "foreign keys": (adapter_change(lambda w: w | FOREIGN), r"no place for base_model\.model\.foreign"),
    "missing keys": (adapter_change(lambda w: dict(list(w.items())[1:])), r"its files lack base_model\.model"),
    "another rank": (adapter_settings(r=2), r"in the file and \(2"),
    "other modules": (adapter_settings(target_modules=["nothing_like_it"]), r"could not be loaded: .*nothing_like_it"),
    "numbers that are none": (scaled(float("nan")), "NaN or infinity"),
    "integers": (adapter_change(lambda w: {k: v.to(torch.int32) for k, v in w.items()}), "as I32"),
    "prompts": (adapter_settings(**PROMPTS), "of the kind PROMPT_TUNING, which changes no weight"),
    "prefixes": (
        adapter_settings(**PROMPTS | {"peft_type": "PREFIX_TUNING"}),
        "of the kind PREFIX_TUNING, which changes",
    ),
    "a kind that nobody knows": (adapter_settings(peft_type="FOO"), r"could not be loaded: there is no 'FOO'"),
}


@pytest.mark.parametrize("case", ADAPTER_FAULTS)
def test_an_adapter_that_does_not_fit_is_one_message(tmp_path, case):
    """Catches adapters that are merged in part, and tracebacks."""
    fault, message = ADAPTER_FAULTS[case]
    folder, _ = adapter(tmp_path, "gpt2", "lm")
    load_model(folder, *load_tokenizer(folder))
    fault(folder)
    with pytest.raises(AiraError, match=message):
        load_model(folder, *load_tokenizer(folder))


@pytest.mark.parametrize("name, other", [("llama", "opt"), ("gpt2", "llama")])
def test_an_adapter_of_another_base_is_refused(tmp_path, name, other):
    """Catches an adapter whose names partly fit, and that is merged where they do."""
    folder, _ = adapter(tmp_path, name, "lm")
    adapter_settings(base_model_name_or_path=saved(tmp_path / "other", other, "lm"))(folder)
    with pytest.raises(AiraError, match=r"could not be loaded|lack base_model\.model"):
        load_model(folder, *load_tokenizer(folder))


def test_the_head_of_a_scorer_s_adapter_must_be_there(tmp_path):
    """Catches scores by a head that no file has."""
    folder, _ = adapter(tmp_path, "llama", "score")
    adapter_change(lambda w: {key: value for key, value in w.items() if "score" not in key})(folder)
    with pytest.raises(AiraError, match=r"score\.weight"):
        ScoringModel(folder)


def test_an_adapter_without_its_base(tmp_path):
    """Catches a message that sends the user to copy the adapter's folder, where its base is what is missing."""
    adapter(tmp_path, "gpt2", "lm")
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"base_model_name_or_path": "nobody/nothing"}
    file.write_text(json.dumps(settings))
    with pytest.raises(
        AiraError, match=r"is an adapter, whose base is nobody/nothing\. The model nobody/nothing could not"
    ):
        load_config(str(tmp_path / "adapter"), vocab_size=0)
