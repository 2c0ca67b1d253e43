"""Any architecture: what is tried before its use, and branches that are read by themselves where rows are wrong."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from aira.data.trees import Tree, pack
from aira.models import probe as probing
from aira.models.forward import hidden_states, keys_and_values, scores
from aira.models.head import lm_head, log_probs
from aira.models.probe import TREES, probe, shrunk

PACKED = ("cohere", "gemma3_text", "gpt_oss", "qwen3")
FURTHER = (
    *("falcon", "gemma2", "gpt_neox", "granite", "mistral", "nanochat", "olmo3", "phi3", "qwen2", "smollm3", "bitnet"),
    *("codegen", "cohere2", "ernie4_5", "exaone4", "gemma", "glm4", "gpt_bigcode", "gptj", "helium"),
    *("ministral3", "mixtral", "olmo2", "phi", "qwen3_moe", "stablelm", "starcoder2"),
)
SEPARATE = ("gpt_neo", "lfm2")
FURTHER_SEPARATE = ("falcon_h1", "jamba", "qwen3_next", "qwen3_5_text")
ENCODERS = ("deberta-v2", "distilbert", "modernbert")
FURTHER_ENCODERS = ("albert", "camembert", "electra", "mpnet", "xlm-roberta", "data2vec-text")
LFM2 = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AIRA_CACHE", str(tmp_path))
    return tmp_path


def configuration(name):
    config = AutoConfig.for_model(name, **(LFM2 if name == "lfm2" else {}))
    return config.get_text_config(decoder=True)


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", [*PACKED, *slow(*FURTHER)])
def test_architectures_that_pack(name):
    """Catches windows by the place in the row, a cap, a sink or a scale that is lost, and other gradients."""
    tried = probe(configuration(name), "causal", "lm", "trees")
    assert tried.packs and tried.attention in ("trees", "eager"), tried.why


@pytest.mark.parametrize("name", [*SEPARATE, *slow(*FURTHER_SEPARATE)])
def test_architectures_that_do_not_pack(name):
    """Catches state that leaks from tree to tree, and is used, or a branch by itself that is read wrong."""
    config = configuration(name)
    tried = probe(config, "causal", "lm", "trees")
    assert not tried.packs and tried.why
    model = probing._made(AutoModelForCausalLM, shrunk(config), tried.attention)
    model.packs_trees = False
    row = pack(TREES)
    ours = log_probs(hidden_states(model, row)[row.source], row.target, lm_head(model))
    theirs = probing._all(model)
    assert theirs.std() > 0.2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (
        probing._differ("", probing._gradients(model, ours.sum()), probing._gradients(model, theirs.sum()), 1e-4) == ""
    )
    tree, count = TREES[0], 11
    scored = [[i > count for i in range(len(tokens))] for tokens in tree.branches]
    row = pack([Tree(tree.branches, scored)], cached=count)
    prefix = keys_and_values(model, list(tree.branches[0][:count]))
    ours = log_probs(hidden_states(model, row, prefix)[row.source], row.target, lm_head(model))
    theirs = torch.cat([probing._log_probs(model, tokens)[count:] for tokens in tree.branches])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*ENCODERS, *slow(*FURTHER_ENCODERS)])
def test_encoders(name):
    """Catches padding that is attended to, and an attention implementation that an encoder has not."""
    assert probe(configuration(name), "encoder", "score", "sdpa").packs


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mistral", "qwen3_5_text"])
def test_scorers_of_causal_architectures(name):
    """Catches a score that is read at another place than each branch's last token."""
    config = configuration(name)
    tried = probe(config, "causal", "score", "trees")
    assert tried.packs == (name != "qwen3_5_text")
    model = probing._made(AutoModelForSequenceClassification, shrunk(config), tried.attention)
    model.packs_trees = tried.packs
    torch.testing.assert_close(scores(model, pack(TREES)), probing._scores(model), atol=1e-5, rtol=1e-5)


def test_a_window_is_shorter_than_the_trees():
    """Catches a table that passes since no window was ever reached: without one the numbers are others."""
    small = shrunk(configuration("mistral"))
    assert small.sliding_window == probing.WINDOW < len(TREES[1].branches[0])
    model = probing._made(AutoModelForCausalLM, small, "eager")
    wide = shrunk(configuration("mistral"))
    wide.sliding_window = None
    without = probing._made(AutoModelForCausalLM, wide, "eager", model.state_dict())
    assert (probing._all(model) - probing._all(without)).abs().max() > 0.01


def test_the_answer_is_kept(cache, monkeypatch):
    """Catches an architecture that is tried again at each start, and an answer taken for another configuration."""
    config, calls = configuration("qwen3"), []
    monkeypatch.setattr(probing, "_causal", lambda *given: calls.append(given) or probing.Probe(True, "trees", ""))
    for _ in range(2):
        assert probe(config, "causal", "lm", "trees").packs
    assert len(calls) == 1
    config.rms_norm_eps = 0.5
    probe(config, "causal", "lm", "trees"), probe(config, "causal", "score", "trees")
    assert len(calls) == 3
    (kept, *_) = (cache / "probes").glob("*.json")
    assert json.loads(kept.read_text()) == [True, "trees", "", False]
    kept.write_text("{")
    probe(config, "causal", "lm", "trees"), probe(configuration("qwen3"), "causal", "lm", "trees")
    assert len(calls) >= 3


def test_an_error_is_not_kept(cache, monkeypatch):
    """Catches an architecture that is slow for ever since one trial ended with an error."""
    monkeypatch.setattr(probing, "pack", lambda *_, **__: 1 / 0)
    config = configuration("qwen3")
    config.rms_norm_eps = 0.25
    assert not probe(config, "causal", "lm", "trees").packs and not list(cache.glob("probes/*.json"))
    monkeypatch.undo()
    monkeypatch.setenv("AIRA_CACHE", str(cache))
    assert probe(config, "causal", "lm", "trees").packs


def test_nothing_else_is_disturbed():
    """Catches random numbers of a run that depend on whether its architecture was tried before."""
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    probe(configuration("qwen3"), "causal", "lm", "trees")
    assert torch.equal(torch.random.get_rng_state(), before)
