"""Scores by an exported model: those that plain Transformers gives on a padded batch."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from aira.data.texts import BadRow
from aira.errors import AiraError
from aira.inference.scorers import ScoringModel
from aira.models.export import export
from aira.models.loading import load_model, load_tokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ASKED = [("What is 2 + 3?", ["It is 5.", "It is 6, as far as I know.", "Hm."]), ("Who are you?", ["An assistant."])]


def saved(folder, architecture, shape, head="score"):
    path = f"pkg://aira.models/tiny/{architecture}"
    tokenizer, added = load_tokenizer(path, architecture=architecture, head=head)
    torch.manual_seed(0)
    attention = {"attn_implementation": "sdpa"} if architecture == "encoder" else {}
    model = load_model(
        path, tokenizer, added, architecture=architecture, head=head, label="harmless", config=shape, **attention
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.config.threshold = -0.25
    export(model, tokenizer, folder, "card")
    return str(folder)


def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize("tokens_per_row", [8, 1024])
@pytest.mark.parametrize("architecture, shape", [("causal", LLAMA), ("encoder", BERT)])
def test_scores_are_those_of_transformers(tmp_path, architecture, shape, tokens_per_row):
    path = saved(tmp_path, architecture, shape)
    model = ScoringModel(path, tokens_per_row=tokens_per_row)
    assert (model.meaning, model.threshold) == ("harmless", -0.25)
    examples = [[[turn("user", asked), turn("assistant", said)] for said in answers] for asked, answers in ASKED]
    found = model.score([model.encode(one) for one in examples])
    assert [len(one) for one in found] == [3, 1]

    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    talks = [talk for example in examples for talk in example]
    if architecture == "causal":
        batch = tokenizer.apply_chat_template(talks, padding=True, return_dict=True, return_tensors="pt")
    else:
        pairs = zip(*[(asked["content"], said["content"]) for asked, said in talks])
        batch = tokenizer(*map(list, pairs), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = plain.eval()(**batch).logits[:, 0].tolist()
    assert [value for one in found for value in one] == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 4


def test_lone_texts(tmp_path):
    path = saved(tmp_path, "causal", LLAMA)
    model = ScoringModel(path)
    found = model.score([model.encode([[turn("assistant", "Thank you.")]])])
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        expected = plain.eval()(**tokenizer("Thank you.", return_tensors="pt")).logits
    assert found[0] == pytest.approx(expected[0].tolist(), abs=1e-5)


def test_a_prompt_without_room_is_said(tmp_path):
    model = ScoringModel(saved(tmp_path, "causal", LLAMA), max_length=20)
    with pytest.raises(BadRow, match="leaves no room"):
        model.encode([[turn("user", "word " * 50), turn("assistant", "Yes.")]])


def test_a_language_model_is_no_scorer(tmp_path):
    with pytest.raises(AiraError, match="no scorer"):
        ScoringModel(saved(tmp_path, "causal", LLAMA, head="lm"))


@pytest.mark.parametrize("architecture, shape", [("causal", LLAMA), ("encoder", BERT)])
def test_a_head_of_another_purpose_is_made_anew(tmp_path, capsys, architecture, shape):
    """Catches a reward model that begins with the head and the threshold of a toxicity model, without a word."""
    path = saved(tmp_path, architecture, shape)
    tokenizer, added = load_tokenizer(path, architecture=architecture, head="score", template=None)
    how = {"architecture": architecture, "head": "score", "attn_implementation": "sdpa"}
    same, other = (load_model(path, tokenizer, added, label=label, **how) for label in ("harmless", "reward"))
    assert capsys.readouterr().out.count("was trained to score 'harmless', and this model is to score 'reward'") == 1
    assert same.config.threshold == -0.25 and not hasattr(other.config, "threshold")
    equal = {name: torch.equal(value, other.get_parameter(name)) for name, value in same.named_parameters()}
    heads = [name for name in equal if not name.startswith(f"{same.base_model_prefix}.") and name.endswith("weight")]
    assert heads and not any(equal[name] for name in heads), "the head is another"
    assert all(equal[name] for name in equal if name.startswith(f"{same.base_model_prefix}.")), "the backbone is not"
    assert other.config.id2label == {0: "reward"}
