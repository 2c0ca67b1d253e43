"""Scorers: packed rows give what plain Transformers gives on a padded batch of the exported model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from aira.config.schema import Lora
from aira.data.tokenize import encode_scorer
from aira.data.trees import Tree, pack, pad
from aira.models.export import export
from aira.models.forward import neftune, scores
from aira.models.loading import load_model, load_tokenizer
from tests.models.conftest import CAUSAL, ENCODERS, make

TINY = "pkg://aira.models/tiny/causal"
PAIRS = [
    ("What is 2 + 3?", "2 + 3 is 5.", "Find it out yourself, and leave me in peace."),
    ("Quem é você?", "Sou um assistente que responde a perguntas.", "Ninguém."),
    ("Hi", "Hello!", "Hello! How are you today? I hope that you are well, and all of yours too."),
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def talk(prompt, response):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def native(folder):
    """A tokenizer with a template of its own, whose pad token is its end token, as SmolLM2 and many others have it."""
    tokenizer = AutoTokenizer.from_pretrained(load_tokenizer(TINY)[0].name_or_path)
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)


def made(tmp_path, shape, architecture="causal", template="aira", **settings):
    """A scorer with random weights, large enough that a wrong position shows, and its export loaded without Aira."""
    path = "pkg://aira.models/tiny/" + architecture
    if template == "native":
        native(tmp_path / "native")
        path = str(tmp_path / "native")
    elif shape["model_type"] == "roberta":
        load_tokenizer(path, architecture=architecture)[0].save_pretrained(tmp_path / "roberta")
        path = str(tmp_path / "roberta")
    tokenizer, added = load_tokenizer(path, architecture=architecture, head="score", template=template)
    torch.manual_seed(0)
    attention = "sdpa" if architecture == "encoder" else "trees"
    arguments = {
        "architecture": architecture,
        "head": "score",
        "label": "reward",
        "attn_implementation": attention,
        **settings,
    }
    model = load_model(path, tokenizer, added, config=shape, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model, tokenizer


def exported(model, tokenizer, folder):
    export(model, tokenizer, folder, "card")
    loaded, messages = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not messages["missing_keys"] and not messages["unexpected_keys"]
    return loaded.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def by_transformers(model, tokenizer, batch):
    return model(**{name: torch.as_tensor(values) for name, values in batch.items()}).logits[:, 0]


def ours(model, tokenizer, conversations, padded, max_length=120):
    encoded = [encode_scorer(tokenizer, talks, max_length, padded) for talks in conversations]
    trees = [Tree(one["branches"], one["scored"]) for one in encoded]
    separator = tokenizer.sep_token_id if "token_type_ids" in tokenizer.model_input_names else None
    with torch.no_grad():
        return scores(model, pad(trees, tokenizer.pad_token_id, separator) if padded else pack(trees))


@pytest.mark.parametrize("template", ["aira", "native"])
@pytest.mark.parametrize("name", CAUSAL)
def test_pairs_on_packed_trees(tmp_path, name, template):
    """Catches a score read beside the end token, a pad token that is the end token, and a head that is not exported."""
    model, tokenizer = made(tmp_path, CAUSAL[name], template=template)
    found = ours(model, tokenizer, [[talk(p, good), talk(p, bad)] for p, good, bad in PAIRS], padded=False)
    plain, plain_tokenizer = exported(model, tokenizer, tmp_path / "export")
    talks = [talk(p, response) for p, *responses in PAIRS for response in responses]
    batch = plain_tokenizer.apply_chat_template(talks, padding=True, return_dict=True, return_tensors="pt")
    expected = by_transformers(plain, plain_tokenizer, batch)
    assert expected.std() > 0.05 and (batch["attention_mask"] == 0).any()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("template", ["aira", "native"])
@pytest.mark.parametrize("name", CAUSAL)
def test_texts_on_packed_trees(tmp_path, name, template):
    """Catches lone texts without the end token, or with a token in front that training does not see; also when cut."""
    model, tokenizer = made(tmp_path, CAUSAL[name], template=template)
    texts = [response for _, *responses in PAIRS for response in responses]
    conversations = [[[{"role": "assistant", "content": text}]] for text in texts]
    plain, plain_tokenizer = exported(model, tokenizer, tmp_path / "export")
    for length in (120, 8):
        batch = plain_tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        last = [ids[mask.bool()][-1] for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
        assert set(map(int, last)) == {plain_tokenizer.eos_token_id}
        found = ours(model, tokenizer, conversations, padded=False, max_length=length)
        expected = by_transformers(plain, plain_tokenizer, batch)
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(tmp_path, name):
    """Catches segments, special tokens or pooling that differ from the architecture's own."""
    shape = {**ENCODERS[name], "num_attention_heads": 4, "pad_token_id": 0, "max_position_embeddings": 130}
    model, tokenizer = made(tmp_path, shape, architecture="encoder")
    plain, plain_tokenizer = exported(model, tokenizer, tmp_path / "export")
    prompts = [p for p, *_ in PAIRS for _ in range(2)]
    responses = [response for _, *pair in PAIRS for response in pair]
    for length in (120, 10):
        batch = plain_tokenizer(
            prompts, responses, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        pairs = [[talk(p, good), talk(p, bad)] for p, good, bad in PAIRS]
        found = ours(model, tokenizer, pairs, padded=True, max_length=length)
        assert tokenizer.backend_tokenizer.truncation is None, "a cut of one text must not reach what is exported"
        expected = by_transformers(plain, plain_tokenizer, batch)
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_lora(tmp_path):
    """Catches a score head that stays frozen under adapters, or is lost when they are merged."""
    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
    model, tokenizer = made(tmp_path, CAUSAL["llama"], lora=lora)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("score" in name for name in trained) and any("lora_" in name for name in trained)
    assert not any("layernorm" in name for name in trained)
    found = ours(model, tokenizer, [[talk(p, good), talk(p, bad)] for p, good, bad in PAIRS], padded=False)
    plain, plain_tokenizer = exported(model, tokenizer, tmp_path / "export")
    talks = [talk(p, response) for p, *responses in PAIRS for response in responses]
    batch = plain_tokenizer.apply_chat_template(talks, padding=True, return_dict=True, return_tensors="pt")
    torch.testing.assert_close(found, by_transformers(plain, plain_tokenizer, batch), atol=1e-5, rtol=1e-5)


def test_what_a_score_means_is_in_the_export(tmp_path):
    """Catches an export that does not say what a high score means."""
    model, tokenizer = made(tmp_path, CAUSAL["gpt2"], **{"label": "harmless"})
    export(model, tokenizer, tmp_path / "export", "card")
    config = AutoConfig.from_pretrained(tmp_path / "export")
    assert config.id2label == {0: "harmless"} and config.num_labels == 1


def test_a_cut_spares_the_end_token(tmp_path):
    """Catches a long response that is scored without its end token, where scores of training and use would differ."""
    tokenizer, _ = load_tokenizer(TINY, head="score")
    whole = encode_scorer(tokenizer, [talk(*PAIRS[2][::2])], 120, padded=False)
    cut = encode_scorer(tokenizer, [talk(*PAIRS[2][::2])], 12, padded=False)
    assert cut["branches"][0] == [*whole["branches"][0][:11], tokenizer.eos_token_id]
    assert cut["cut"] and not whole["cut"]


def test_noise_on_embeddings():
    """Catches noise of the row's length in place of the example's, and noise where none is asked for."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    torch.manual_seed(0)
    model = make(CAUSAL["llama"], AutoModelForCausalLM, "sdpa")
    embeddings = model.get_input_embeddings()
    row = pack([Tree([list(range(3, 3 + n))], [[True] * n]) for n in (6, 24)])
    clean, noisy = embeddings(row.input_ids), []
    with neftune(model, row, 5.0):
        for _ in range(400):
            noisy.append(embeddings(row.input_ids) - clean)
    width = clean.shape[-1]
    for part, length in ((slice(0, 6), 6), (slice(6, 30), 24)):
        noise = torch.cat(noisy)[:, part]
        bound = 5.0 / (length * width) ** 0.5
        assert 0.99 * bound < noise.abs().max() <= bound * (1 + 1e-4)
        assert noise.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    with neftune(model, row, 0.0):
        torch.testing.assert_close(embeddings(row.input_ids), clean, atol=0, rtol=0)
    torch.testing.assert_close(embeddings(row.input_ids), clean, atol=0, rtol=0)  # and no hook is left

    alone = pack([Tree([list(range(3, 20))], [[True] * 17])])
    torch.manual_seed(1)
    with neftune(model, alone, 5.0):
        ours = embeddings(alone.input_ids)
    embeddings.neftune_noise_alpha = 5.0
    embeddings.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, embeddings.train()(alone.input_ids), atol=1e-6, rtol=0)
