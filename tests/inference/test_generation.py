"""Answers: the same alone and in a batch, up to any end token of the checkpoint, and greedy whatever it came with."""

import json
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from aira.files import locate
from aira.inference.generation import answer, prompt_ids
from aira.models.export import export
from aira.models.loading import end_tokens, load_config, load_model, load_tokenizer
from tests.models.conftest import CAUSAL, make

TINY = "pkg://aira.models/tiny/causal"
QUESTIONS = ["Hi", "Who are you?", "Who are you, and why do you say so? Tell me more of it.", "Quem é você? " * 4, "Ok"]


def ask(text):
    return [{"role": "user", "content": text}]


def favour(model, *tokens, by=2.5):
    """Make tokens likely, so that answers end, or would end, at many places."""

    def favoured(module, inputs, logits):
        logits[..., list(tokens)] += by * logits.std(-1, keepdim=True)
        return logits

    model.get_output_embeddings().register_forward_hook(favoured)


SETTINGS = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.8},
    "reward": {"repetition_penalty": 0.5},
    "tokens once": {"no_repeat_ngram_size": 1},
    "pairs once": {"no_repeat_ngram_size": 2},
    "long": {"min_length": 20},
    "both": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("pad", ["end", "own"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_answers_are_the_same_alone_and_in_a_batch(name, pad, settings):
    """Catches settings that take padding for what was said, or its length for that of the prompt."""
    tokenizer = load_tokenizer(TINY)[0]
    if pad == "end":
        tokenizer.pad_token = tokenizer.eos_token
    model = make(dict(CAUSAL[name], vocab_size=len(tokenizer)), AutoModelForCausalLM, "sdpa")
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    favour(model, tokenizer.eos_token_id, tokenizer.pad_token_id)
    alone = [answer(model, tokenizer, [ask(question)], 24, **settings)[0] for question in QUESTIONS]
    assert answer(model, tokenizer, [ask(question) for question in QUESTIONS], 24, **settings) == alone
    assert len({text for (text,) in alone}) > 1


def test_a_long_prompt_takes_no_room_from_others():
    """Catches answers that are cut where another prompt of the batch is near the end of the context."""
    tokenizer = load_tokenizer(TINY)[0]
    model = make(dict(CAUSAL["gpt2"], vocab_size=len(tokenizer)), AutoModelForCausalLM, "sdpa")
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)  # it never ends
    long = next(text for text in ("so " * k for k in range(200)) if len(prompt_ids(tokenizer, ask(text))) > 120)
    questions = [ask(text) for text in ("Hi", long, "Who are you?")]
    alone = [answer(model, tokenizer, [question], 20)[0] for question in questions]
    assert answer(model, tokenizer, questions, 20) == alone
    assert len(tokenizer.encode(alone[0][0])) > len(tokenizer.encode(alone[1][0]))


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint with several ends, as Llama 3 and Gemma are: config.json and generation_config.json differ."""

    def write(config_ends, generation, name="llama", rows=0):
        tokenizer = AutoTokenizer.from_pretrained(locate(TINY))
        tokenizer.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": ["<turn>", "<tool>"]})
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.role + ':' + m.content + '<turn>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
        )
        shape = dict(CAUSAL[name], vocab_size=len(tokenizer) + rows, bos_token_id=None, eos_token_id=config_ends)
        model = make(shape, AutoModelForCausalLM, "sdpa")
        model.generation_config = GenerationConfig()
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        file = tmp_path / "model" / "generation_config.json"
        file.write_text(json.dumps(generation)) if generation is not None else file.unlink()
        return str(tmp_path / "model"), tokenizer

    return write


def loaded(path, template):
    tokenizer, added = load_tokenizer(path, template=template)
    return load_model(path, tokenizer, added).eval(), tokenizer, added


@pytest.mark.parametrize("template", ["aira", "native"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_end_of_the_checkpoint_ends_an_answer(checkpoint, tmp_path, name, template):
    """Catches ends that are lost on the way from the checkpoint to answers and to the export, and shown ends."""
    base = AutoTokenizer.from_pretrained(locate(TINY))
    size, ordinary = len(base), base.encode("a")[0]
    path, _ = checkpoint([size, size + 1], {"eos_token_id": [size + 2, ordinary]}, name)
    model, tokenizer, _ = loaded(path, template)
    expected = {tokenizer.eos_token_id, size, size + 1, size + 2, ordinary}
    assert set(model.generation_config.eos_token_id) == expected
    export(model, tokenizer, tmp_path / "export", card="")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert set(plain.generation_config.eos_token_id) == expected
    again, *_ = loaded(str(tmp_path / "export"), template)
    assert set(again.generation_config.eos_token_id) == expected and again.config.eos_token_id == tokenizer.eos_token_id
    for end in expected:
        model, *_ = loaded(path, template)
        favour(model, end, by=1e4)
        assert answer(model, tokenizer, [ask("Hi"), ask("Who are you?")], 8) == [[""], [""]]


@pytest.mark.parametrize("template", ["aira", "native"])
def test_ids_that_do_not_exist_are_no_ends(checkpoint, template):
    """Catches an id beyond the embeddings, or one that becomes a new token, taken for an end of the checkpoint."""
    size = len(AutoTokenizer.from_pretrained(locate(TINY)))
    new = [size + 3, size + 4]  # of the first tokens that the Aira template adds
    path, _ = checkpoint([size + 1, 50256, -1, *new], {"eos_token_id": 10**6}, rows=1)  # size + 3 has a row of its own
    model, tokenizer, added = loaded(path, template)
    assert (template == "native") == (size + 3 not in added)
    ends = [tokenizer.eos_token_id, size + 1, *([size + 3] if template == "native" else [])]
    assert model.generation_config.eos_token_id == ends


def test_one_end_or_none_beside_the_tokenizers(checkpoint):
    """Catches a fresh model with an end of its architecture's, and a checkpoint without generation_config.json."""
    model, tokenizer, _ = loaded(checkpoint(None, None)[0], "native")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    tokenizer, added = load_tokenizer(TINY)
    fresh = load_model(TINY, tokenizer, added, config=CAUSAL["llama"])
    assert fresh.generation_config.eos_token_id == tokenizer.eos_token_id


def test_inherited_sampling_is_left_behind(checkpoint, tmp_path, caplog):
    """Catches answers that are sampled, or suppressed, by what the checkpoint came with, and an export that is."""
    generation = {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "top_k": 3, "repetition_penalty": 9.0}
    path, _ = checkpoint(None, generation | {"max_length": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, tokenizer, _ = loaded(path, "native")
        found = answer(model, tokenizer, [ask("Hi")], 12)
    ids = torch.tensor([prompt_ids(tokenizer, ask("Hi"))])
    length = ids.shape[1]
    for _ in range(12):
        following = model(input_ids=ids).logits[0, -1].argmax()
        if following == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, following[None, None]], dim=1)
    assert found == [[tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()]] and not caplog.records
    export(model, tokenizer, tmp_path / "export", card="")
    written = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert not {"do_sample", "temperature", "top_p", "top_k", "repetition_penalty"} & set(written)


def test_ends_are_known_before_the_model_is_loaded(checkpoint):
    """Catches ends of training that are others than those of the answers."""
    path, tokenizer = checkpoint(None, {"eos_token_id": [5, 7]})
    config, _ = load_config(path, vocab_size=0)
    assert end_tokens(path, tokenizer, [], config) == [tokenizer.eos_token_id, 5, 7]
    assert AutoConfig.from_pretrained(path).eos_token_id is None
