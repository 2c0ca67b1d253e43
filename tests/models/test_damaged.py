"""Models of others that are damaged, foreign or incomplete: one message that names the folder, and no traceback."""

import json
import shutil

import pytest

from aira.data.schemas import BadRow
from aira.data.tokenize import encode
from aira.errors import AiraError
from aira.models.backbone import end_tokens, load_config, load_model, load_tokenizer
from aira.models.export import export

TINY = "pkg://aira.models/tiny/causal"
SHAPE = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 64}
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tokenizer, added = load_tokenizer(TINY)
    export(load_model(TINY, tokenizer, added, config=SHAPE), tokenizer, folder / "export", "# card")
    return folder / "export"


def load(folder):
    """What a run reads of a model before it trains, and a row for it."""
    tokenizer, added = load_tokenizer(str(folder), template="native")
    config, _ = load_config(str(folder), vocab_size=len(tokenizer))
    end_tokens(str(folder), tokenizer, added, config)
    model = load_model(str(folder), tokenizer, added)
    encode(tokenizer, [TALK], 60, "completion")
    return model


def settings(**changed):
    def change(folder):
        config = json.loads((folder / "config.json").read_text()) | changed
        (folder / "config.json").write_text(json.dumps(config))

    return change


def content(name, text):
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def gone(*names):
    return lambda folder: [file.unlink() for name in names for file in folder.glob(name)]


def index(found):
    def write(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(found))

    return write


def template(text):
    return content("chat_template.jinja", text)


PART = {"metadata": {}, "weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
DAMAGE = {
    "weights that are cut short": (cut("model.safetensors", -100), "damaged, most likely cut short"),
    "weights of three bytes": (cut("model.safetensors", 3), "damaged, most likely cut short"),
    "weights without a byte": (cut("model.safetensors", 0), "damaged, most likely cut short"),
    "weights that are a web page": (content("model.safetensors", "<html>404</html>"), "damaged, most likely cut short"),
    "weights of Git LFS": (content("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "damaged"),
    "no weights": (gone("model.safetensors"), "has no weights as safetensors"),
    "a missing part": (index(PART), "model-00001-of-00002.safetensors"),
    "an index without names": (index({}), "weight_map"),
    "an index that is a list": (index([]), "could not be loaded"),
    "quantized by bitsandbytes": (
        settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "bitsandbytes",
    ),
    "quantized by GPTQ": (settings(quantization_config={"quant_method": "gptq", "bits": 4}), "could not be loaded"),
    "quantized by AWQ": (settings(quantization_config={"quant_method": "awq", "bits": 4}), "could not be loaded"),
    "quantized in a wrong form": (settings(quantization_config=5), "could not be loaded"),
    "configuration that is cut": (cut("config.json", 30), "config"),
    "configuration that is a list": (content("config.json", "[1]"), "could not be loaded"),
    "configuration that is null": (content("config.json", "null"), "could not be loaded"),
    "configuration in Latin-1": (content("config.json", b'{"a": "\xe9"}'), "could not be loaded"),
    "of an unknown kind": (settings(model_type="foo"), "foo"),
    "of a kind that is a number": (settings(model_type=5), "could not be loaded"),
    "a size in words": (settings(n_embd="many"), "could not be loaded"),
    "a size that is null": (settings(n_embd=None), "could not be loaded"),
    "a size that does not divide": (settings(n_head=3), "could not be loaded|embed_dim"),
    "more layers than there are": (settings(n_layer=3), "missing|h.2|h.1"),
    "fewer layers than there are": (settings(n_layer=0), "unexpected|h.0"),
    "other sizes": (settings(n_embd=16), "are not those that its config.json describes"),
    "end tokens in words": (
        content("generation_config.json", '{"eos_token_id": "x"}'),
        "eos_token_id in its config.json or",
    ),
    "generation settings that are cut": (cut("generation_config.json", 10), "could not be loaded"),
    "no tokenizer": (gone("token*"), "has no tokenizer"),
    "a tokenizer that is cut": (cut("tokenizer.json", 500), "could not be loaded"),
    "a tokenizer that is empty": (content("tokenizer.json", "{}"), "could not be loaded"),
    "a tokenizer of another form": (content("tokenizer.json", '{"model": 5}'), "could not be loaded"),
    "tokenizer settings that are a list": (content("tokenizer_config.json", "[]"), "could not be loaded"),
    "tokenizer settings that are cut": (cut("tokenizer_config.json", 10), "could not be loaded"),
    "a template that is no template": (template("{% if %}"), "the chat template refuses it"),
    "a template without end": (template("{% for i in range(10**9) %}x{% endfor %}"), "the chat template refuses it"),
    "a template that divides by zero": (template("{{ 1/0 }}"), "the chat template refuses it"),
    "a template that reads what is not there": (template("{{ messages[0].x.y }}"), "the chat template refuses it"),
    "a template that adds words and numbers": (template("{{ 'a' + 1 }}"), "the chat template refuses it"),
    "a template that calls itself": (
        template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        "the chat template refuses it",
    ),
    "a template that writes a book": (template("{{ 'x' * 10**7 }}"), "the chat template makes 10000000 characters"),
    "a template that raises": (template("{{ raise_exception('no') }}"), "the chat template refuses it: no"),
    "a template that writes nothing": (template(""), "has no chat template"),
}


@pytest.mark.parametrize("damage, told", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_model(whole, tmp_path, damage, told):
    """Catches a traceback, and a damage that is passed over: it then trains something else."""
    folder = shutil.copytree(whole, tmp_path / "theirs")
    damage(folder)
    with pytest.raises((AiraError, BadRow), match=told) as raised:
        load(folder)
    assert isinstance(raised.value, BadRow) or "theirs" in str(raised.value)


def test_a_whole_model(whole, tmp_path):
    """Catches a refusal of what is well."""
    assert load(shutil.copytree(whole, tmp_path / "theirs")).config.n_layer == 1
