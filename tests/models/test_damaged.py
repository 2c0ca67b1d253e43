"""Models of others that are damaged, foreign or incomplete: one message that names the folder, and no traceback."""

import json
import shutil

import pytest

from aira.chat.pipeline import Chat, language_of
from aira.data.texts import BadRow
from aira.data.tokenize import encode
from aira.errors import AiraError
from aira.inference.scorers import ScoringModel
from aira.models.export import export
from aira.models.loading import end_tokens, load_config, load_model, load_tokenizer

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


def tokens(**changed):
    def change(folder):
        config = json.loads((folder / "tokenizer_config.json").read_text()) | changed
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

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


def no_shard(folder):
    """A download that has ended before its last part."""
    index({**PART, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}})(folder)
    (folder / "a.safetensors").write_bytes(b"")
    downloads = folder / ".cache" / "huggingface" / "download"
    downloads.mkdir(parents=True)
    (downloads / "b.safetensors.1f.incomplete").write_bytes(b"")


def only(*names):
    return lambda folder: [file.unlink() for file in folder.iterdir() if file.name not in names]


def a_run(folder):
    """A run that was stopped before its export."""
    gone("*")(folder)
    for name in (".hydra", "checkpoints"):
        (folder / name).mkdir()
    (folder / "checkpoints/last.ckpt").write_bytes(b"")


def a_run_with_an_empty_export(folder):
    a_run(folder)
    (folder / "export").mkdir()


PART = {"metadata": {}, "weight_map": {"transformer.wte.weight": "model-00001-of-00002.safetensors"}}
DAMAGE = {
    "weights that are cut short": (cut("model.safetensors", -100), "damaged, most likely cut short"),
    "weights of three bytes": (cut("model.safetensors", 3), "damaged, most likely cut short"),
    "weights without a byte": (cut("model.safetensors", 0), "damaged, most likely cut short"),
    "weights that are a web page": (content("model.safetensors", "<html>404</html>"), "damaged, most likely cut short"),
    "weights of Git LFS": (content("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "damaged"),
    "no weights": (gone("model.safetensors"), "has no weights as safetensors"),
    "a missing part": (index(PART), "model-00001-of-00002.safetensors"),
    "an empty folder": (only(), "is an empty folder"),
    "a part that a download has not brought": (
        no_shard,
        r"no b\.safetensors. A download has not ended there \(b\.safetensors\.1f\.incomplete\)",
    ),
    "a configuration alone": (only("config.json"), "no weights as safetensors and no tokenizer"),
    "a card alone": (only("README.md"), "no config.json and no weights as safetensors and no tokenizer"),
    "weights alone": (only("model.safetensors"), "no config.json and no tokenizer"),
    "no configuration": (gone("config.json"), "no config.json"),
    "a tokenizer alone": (
        only("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        "there is no model in it yet",
    ),
    "a run without an export": (a_run, r"a run that has no export.*ckpt_path=.*theirs/checkpoints/last\.ckpt"),
    "a run whose export was emptied": (a_run_with_an_empty_export, "export is an empty folder.*ckpt_path="),
    "an index without names": (index({}), "weight_map"),
    "an index that is a list": (index([]), "could not be loaded"),
    **{
        f"quantized by {name}": (settings(quantization_config={"quant_method": name, "bits": 4}), "is quantized")
        for name in ("bitsandbytes", "gptq", "awq", "fp8", "mxfp4", "compressed-tensors", "a new method")
    },
    "quantized by nobody": (settings(quantization_config={"bits": 4}), "is quantized"),
    "quantized in a wrong form": (settings(quantization_config=5), "could not be loaded"),
    "of a class that is a number": (settings(architectures=5), "architectures in its config.json is 5"),
    "of a class that is no list": (settings(architectures="GPT2LMHeadModel"), "and no list of names"),
    "of classes that are numbers": (settings(architectures=[5]), "and no list of names"),
    "without a position": (settings(n_positions=0), "0 positions, and so no context"),
    "positions below 0": (settings(n_positions=-5), "-5 positions, and so no context|could not be loaded"),
    "no token that ends an answer": (tokens(eos_token=None, pad_token=None), "has no end token and none for padding"),
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
    "no tokenizer": (gone("token*"), r"has no tokenizer \(tokenizer.json\)"),
    "a tokenizer that is cut": (cut("tokenizer.json", 500), "could not be loaded"),
    "a tokenizer that is empty": (content("tokenizer.json", "{}"), "could not be loaded"),
    "a tokenizer of another form": (content("tokenizer.json", '{"model": 5}'), "could not be loaded"),
    "tokenizer settings that are a list": (content("tokenizer_config.json", "[]"), "could not be loaded"),
    "tokenizer settings that are cut": (cut("tokenizer_config.json", 10), "could not be loaded"),
    "a template that is no template": (template("{% if %}"), "the chat template refuses the conversation"),
    "a template without end": (
        template("{% for i in range(10**9) %}x{% endfor %}"),
        "the chat template refuses the conversation",
    ),
    "a template that divides by zero": (template("{{ 1/0 }}"), "the chat template refuses the conversation"),
    "a template that reads what is not there": (
        template("{{ messages[0].x.y }}"),
        "the chat template refuses the conversation",
    ),
    "a template that adds words and numbers": (template("{{ 'a' + 1 }}"), "the chat template refuses the conversation"),
    "a template that calls itself": (
        template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        "the chat template refuses the conversation",
    ),
    "a template that writes a book": (template("{{ 'x' * 10**7 }}"), "the chat template makes 10000000 characters"),
    "a template that raises": (
        template("{{ raise_exception('no') }}"),
        "the chat template refuses the conversation: no",
    ),
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


def scorer(folder):
    model = ScoringModel(str(folder))
    return model.score([model.encode([[{"role": "assistant", "content": "Hello"}]])])


def chat(folder):
    return Chat(str(folder), n=1, max_new_tokens=2).reply("Hi")


USED = {
    "a score without a meaning": (scorer, settings(id2label={}), "does not say what its score means"),
    "a score of another output": (scorer, settings(id2label={"1": "reward"}), "does not say what its score means"),
    "a score whose meaning is a number": (scorer, settings(id2label={"0": 5}), "does not say what its score means"),
    "a score whose meanings are a list": (scorer, settings(id2label=["reward"]), "could not be loaded"),
    "a threshold in words": (scorer, settings(threshold="low"), "threshold in its config.json is low"),
    "a threshold that is null": (scorer, settings(threshold=None), "threshold in its config.json is None"),
    "a threshold that is a list": (scorer, settings(threshold=[1]), "threshold in its config.json is"),
    "a threshold beyond all numbers": (scorer, settings(threshold=10**400), "threshold in its config.json is"),
    "a quantized scorer": (scorer, settings(quantization_config={"quant_method": "fp8"}), "is quantized"),
    "a chat by a template that divides by zero": (chat, template("{{ 1/0 }}"), "template refuses the conversation"),
    "a chat by a template that reads nothing": (chat, template("{{ messages[0].x.y }}"), "refuses the conversation"),
    "a chat by a template that writes nothing": (chat, template("{# #}"), "leaves out a user turn"),
    "a chat without an end token": (chat, tokens(eos_token=None, pad_token=None), "has no end token and none for"),
}


@pytest.fixture(scope="module")
def whole_scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    tokenizer, added = load_tokenizer(TINY, head="score")
    export(load_model(TINY, tokenizer, added, head="score", label="reward", config=SHAPE), tokenizer, folder / "e", "")
    return folder / "e"


@pytest.mark.parametrize("use, damage, told", USED.values(), ids=USED)
def test_a_damaged_model_that_is_used(whole, whole_scorer, tmp_path, use, damage, told):
    """Catches a traceback where a scorer or a chat model is asked."""
    folder = shutil.copytree(whole_scorer if use is scorer else whole, tmp_path / "theirs")
    use(folder)
    damage(folder)
    with pytest.raises(AiraError, match=told) as raised:
        use(folder)
    assert "theirs" in str(raised.value)


CARDS = (
    b"---\nlanguage: [\n---\n",
    b"---\nlanguage: \xe9\n---\n",
    b"---\n- a\n---\n",
    b"---\nlanguage: 5\neval_results: 7\n---\n",
)


@pytest.mark.parametrize("card", CARDS)
def test_a_damaged_card(tmp_path, capsys, card):
    """Catches a traceback of a card of others, of which a chat reads the language alone."""
    (tmp_path / "README.md").write_bytes(card)
    assert language_of(str(tmp_path)) is None and "README.md is skipped" in capsys.readouterr().err


def test_a_whole_model(whole, tmp_path):
    """Catches a refusal of what is well."""
    assert load(shutil.copytree(whole, tmp_path / "theirs")).config.n_layer == 1
