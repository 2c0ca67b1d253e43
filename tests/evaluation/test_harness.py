"""Log-likelihoods on packed trees are those of the harness's own model, request by request."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from aira.evaluation.harness import PackedLM
from aira.models.loading import load_model, load_tokenizer

TINY = "pkg://aira.models/tiny/causal"
SHAPES = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 128},
    "opt": {
        "model_type": "opt",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 128,
    },
    "llama": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    },
    "bloom": {"model_type": "bloom", "n_layer": 2, "hidden_size": 32, "n_head": 4},
}
INSTRUCTION = "Q: What is human life expectancy in the United States?\nA: It is 78 years, as far as anybody knows.\n\n"
QUESTIONS = ["Q: Who was president of the United States in 1955?\nA:", "Q: Which party did he belong to?\nA:"]
CHOICES = [" Yes", " No", " He belonged to the party of the people", " I have no comment.", " He belonged to"]
LONG = "one two three four five six seven eight nine ten " * 12  # more than the context


def requests():
    pairs = [(INSTRUCTION + question, choice) for question in QUESTIONS for choice in CHOICES]
    pairs += [(LONG + question, choice) for question in QUESTIONS for choice in CHOICES]
    pairs += [
        (QUESTIONS[0], CHOICES[0]),
        (QUESTIONS[0], CHOICES[0]),
        ("", " A text of its own."),
        ("Ends in a space ", "x"),
    ]
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def loaded(name):
    tokenizer, added = load_tokenizer(TINY)
    torch.manual_seed(0)
    model = load_model(TINY, tokenizer, added, config=SHAPES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval(), tokenizer


@pytest.mark.parametrize("tokens_per_row", [64, 1024])
@pytest.mark.parametrize("name", SHAPES)
def test_answers_are_those_of_the_harness(name, tokens_per_row):
    model, tokenizer = loaded(name)
    expected = HFLM(model, tokenizer=tokenizer, backend="causal").loglikelihood(requests(), disable_tqdm=True)
    found = PackedLM(model, tokenizer, tokens_per_row).loglikelihood(requests(), disable_tqdm=True)
    assert [answer for answer, _ in found] == pytest.approx([answer for answer, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(answer, 2) for answer, _ in expected}) > 15


def test_greedy_is_told():
    """A continuation that the model would generate is told from one that it would not."""
    model, tokenizer = loaded("llama")
    context = tokenizer(INSTRUCTION, return_tensors="pt", add_special_tokens=False)["input_ids"]
    said = model.generate(context, do_sample=False, max_new_tokens=3, min_new_tokens=3)[0, context.shape[1] :].tolist()
    other = [*said[:2], (said[2] + 1) % len(tokenizer)]
    asked = [(None, context[0].tolist(), said), (None, context[0].tolist(), other)]
    found = PackedLM(model, tokenizer)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_rolling_windows():
    """Perplexity reads a text longer than the context in windows."""
    model, tokenizer = loaded("gpt2")
    asked = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate([LONG, QUESTIONS[0]])]
    expected = HFLM(model, tokenizer=tokenizer, backend="causal").loglikelihood_rolling(asked, disable_tqdm=True)
    found = PackedLM(model, tokenizer).loglikelihood_rolling(asked, disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-7)  # sums near -1671, of which float32 has 1.2e-4 steps


def test_shared_tokens_are_computed_once():
    """Counts the positions that go through the model; the harness computes each request by itself."""
    model, tokenizer = loaded("llama")
    seen = []
    model.base_model.embed_tokens.register_forward_hook(lambda *given: seen.append(given[1][0].numel()))
    asked = [request for request in requests() if request.args[0].startswith(INSTRUCTION)]
    PackedLM(model, tokenizer).loglikelihood(asked, disable_tqdm=True)
    ids = {tuple(tokenizer(context + choice)["input_ids"][:-1]) for context, choice in (one.args for one in asked)}
    prefixes = {sequence[:end] for sequence in ids for end in range(1, len(sequence) + 1)}
    assert len(prefixes) <= sum(seen) <= len(prefixes) + 2 * len(asked)
    assert sum(seen) < 0.4 * sum(map(len, ids))
