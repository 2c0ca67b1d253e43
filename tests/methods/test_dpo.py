"""DPO step by step against TRL's DPOTrainer, and its reference: computed once, kept, and the right one."""

import copy
import math
import shutil

import numpy as np
import pytest
import torch

from aira import environment
from aira.config.schema import Lora
from aira.data.module import DataModule
from aira.errors import AiraError
from aira.methods.dpo import DPO
from aira.methods.reference import load_reference, reference_key
from aira.models.export import export
from aira.models.forward import unwrap
from aira.models.loading import load_model, load_tokenizer
from aira.models.weights import weights_hash
from tests.methods.fitting import CONSTANT, OPTIMIZER, TRL, Log, fit, write

TINY = "pkg://aira.models/tiny/causal"
SHAPE = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 256}
ROWS = [
    {"prompt": f"What is {i} + 3?", "chosen": f"{i} + 3 is {i + 3}, of course.", "rejected": "No idea. " * (1 + i % 3)}
    for i in range(12)
]
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen")


def policy(path=TINY, **settings):
    """A small model from fixed random weights, and its tokenizer."""
    tokenizer, added = load_tokenizer(path)
    torch.manual_seed(0)
    return load_model(path, tokenizer, added, config=SHAPE, **settings), tokenizer


def dpo(model, tokenizer, cache, **settings):
    return DPO(model, OPTIMIZER, CONSTANT, tokenizer=tokenizer, cache_dir=str(cache), **settings)


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows", ROWS)


def by_trl(model, tokenizer, folder, loss, label_smoothing):
    """What TRL logs at each step of the same training."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def turn(role, text):
        return [{"role": role, "content": text}]

    data = [
        {
            "prompt": turn("user", row["prompt"]),
            "chosen": turn("assistant", row["chosen"]),
            "rejected": turn("assistant", row["rejected"]),
        }
        for row in ROWS
    ]
    config = DPOConfig(output_dir=str(folder), loss_type=[loss], beta=0.5, label_smoothing=label_smoothing, **TRL)
    data = Dataset.from_list(data).to_iterable_dataset()  # of which no trainer changes the order
    start, log = copy.deepcopy(model), Log()
    DPOTrainer(model, start, config, train_dataset=data, processing_class=tokenizer, callbacks=[log]).train()
    return log.steps[:3]


@pytest.mark.parametrize(
    "loss, label_smoothing",
    [
        ("sigmoid", 0.0),
        ("ipo", 0.0),
        ("hinge", 0.0),
        ("robust", 0.2),
        ("exo_pair", 0.1),
        ("apo_zero", 0.0),
        ("apo_down", 0.0),
        ("sigmoid_norm", 0.0),
    ],
)
def test_the_steps_of_trl(tmp_path, rows, loss, label_smoothing):
    """Catches losses, rewards or gradients that part from TRL's within three steps of training."""
    model, tokenizer = policy(attn_implementation="sdpa")
    theirs = by_trl(copy.deepcopy(model), tokenizer, tmp_path / "trl", loss, label_smoothing)
    model.set_attn_implementation("trees")
    module = dpo(model, tokenizer, tmp_path, loss=loss, label_smoothing=label_smoothing, beta=0.5)
    ours, _, _ = fit(module, tokenizer, rows, tmp_path, "preference", loss_on="response")
    assert ours.values("loss") == pytest.approx([step["loss"] for step in theirs], abs=1e-4)
    assert abs(ours.values("loss")[2] - ours.values("loss")[0]) > 1e-3  # there was something to compare
    for name in REWARDS:
        assert ours.values(name) == pytest.approx([step[name] for step in theirs], abs=2e-3), name


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_first_loss_is_ln_2(tmp_path, rows, lora):
    """Catches a reference that is not the starting model, with adapters, without, and from the cache."""
    for _ in range(2):
        model, tokenizer = policy(lora=lora)
        ours, _, _ = fit(dpo(model, tokenizer, tmp_path), tokenizer, rows, tmp_path, "preference", loss_on="response")
        assert ours.values("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
        assert ours.values("rewards/margins")[0] == pytest.approx(0, abs=1e-5)
        assert ours.values("loss")[2] < math.log(2) - 1e-3
    assert len(list((tmp_path / "reference").iterdir())) == 1


def test_the_reference_is_computed_once(tmp_path, rows, monkeypatch):
    """Catches a second pass over the same data by the same model, and a cache that is taken for another one's."""
    passes = []
    once = DPO._log_probs
    monkeypatch.setattr(DPO, "_log_probs", lambda *a: passes.append(1) or once(*a))

    def count(model=None, lora=None, **settings):
        passes.clear()
        fresh, tokenizer = policy(lora=lora)
        fit(dpo(model or fresh, tokenizer, tmp_path), tokenizer, rows, tmp_path, "preference", steps=1, **settings)
        return len(passes)

    assert count(loss_on="response") > 0
    assert count(loss_on="response") == 0
    assert count(loss_on="response", lora=LORA) == 0
    assert count(loss_on="response", max_length=20) > 0
    assert count(loss_on="response", precision="bf16-mixed") > 0
    other = policy()[0]
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    assert count(other, loss_on="response") > 0


def configured(**changed):
    """The policy's weights in a model of another configuration."""
    torch.manual_seed(0)
    tokenizer, added = load_tokenizer(TINY)
    other = load_model(TINY, tokenizer, added, config={**SHAPE, **changed})
    other.load_state_dict(policy()[0].state_dict())
    return other


def test_what_the_reference_is_kept_under(tmp_path, rows, monkeypatch):
    """Catches log-probs that are taken for others', and a key that changes where no log-prob does."""
    model, tokenizer = policy()
    export(policy()[0], tokenizer, tmp_path / "here", "card")
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    def key(
        model=model, precision="32-true", device="cpu", sharded=False, split="train", tokenizer=tokenizer, **settings
    ):
        settings = {"loss_on": "response", "cache_dir": str(tmp_path / "cache"), **settings}
        data = DataModule(tokenizer, kind="preference", path=settings.pop("path", rows), **settings)
        return reference_key(weights_hash(model), precision, device, sharded, getattr(data, split))

    other = policy()[0]
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    brief = load_tokenizer(TINY)[0]
    brief.chat_template = "{{ 'Be brief.' }}" + brief.chat_template
    changes = {
        "nothing": {},
        "weights": {"model": other},
        "heads": {"model": configured(n_head=4)},
        "epsilon": {"model": configured(layer_norm_epsilon=1e-3)},
        "activation": {"model": configured(activation_function="relu")},
        "attention": {"model": policy(attn_implementation="sdpa")[0]},
        "type": {"model": policy()[0].bfloat16()},
        "precision": {"precision": "bf16-mixed"},
        "device": {"device": "cuda"},
        "sharded": {"sharded": True},
        "split": {"split": "validation"},
        "rows": {"path": write(tmp_path / "others", ROWS[::-1])},
        "fewer": {"max_examples": 5},
        "columns": {"columns": {"chosen": "rejected", "rejected": "chosen"}},
        "cut": {"max_length": 20},
        "loss_on": {"loss_on": "all"},
        "template": {"tokenizer": brief},
        "exclude": {"exclude": [write(tmp_path / "excluded", ROWS[:2])]},
    }
    found = {name: key(**change) for name, change in changes.items()}
    with monkeypatch.context() as patch:
        patch.setattr(environment, "version", lambda name: "0")
        found["versions"] = key()
    assert len(set(found.values())) == len(found), found
    for path in ("here", "there"):
        assert key(load_reference(str(tmp_path / path), tokenizer, model)) == found["nothing"], (
            "a reference by its path"
        )
    shutil.copytree(rows, tmp_path / "copy")
    free = {"path": str(tmp_path / "copy"), "cache_dir": str(tmp_path / "elsewhere"), "tokens_per_row": 7}
    assert key(policy(lora=LORA)[0], num_workers=2, num_proc=2, batch_size=3, **free) == found["nothing"]


def test_a_reference_that_gives_no_number(tmp_path, rows, monkeypatch):
    """Catches log-probs that are NaN, which every run of a sweep would then read; a kept one is computed again."""
    once = DPO._log_probs
    monkeypatch.setattr(DPO, "_log_probs", lambda *a: once(*a) * float("nan"))
    model, tokenizer = policy()
    with pytest.raises(
        AiraError, match=r"no number as the log-prob of 12 of 12 examples \(training; the first is row 1"
    ):
        fit(dpo(model, tokenizer, tmp_path), tokenizer, rows, tmp_path, "preference", loss_on="response")
    assert not list(tmp_path.glob("reference/*.npy"))
    monkeypatch.setattr(DPO, "_log_probs", once)
    for _ in range(2):
        model, tokenizer = policy()
        ours, _, _ = fit(dpo(model, tokenizer, tmp_path), tokenizer, rows, tmp_path, "preference", loss_on="response")
        assert ours.values("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
        (kept,) = tmp_path.glob("reference/*.npy")
        np.save(kept, np.load(kept) * np.nan)


def test_a_reference_from_elsewhere(tmp_path, rows):
    """Catches method.reference that is not the one compared with, or that is trained or kept."""
    other, tokenizer = policy()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    export(other, tokenizer, tmp_path / "other", "card")
    model, tokenizer = policy()
    module = dpo(model, tokenizer, tmp_path, reference=str(tmp_path / "other"))
    ours, _, data = fit(module, tokenizer, rows, tmp_path, "preference", loss_on="response")
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": ROWS[0]["prompt"]}, {"role": "assistant", "content": ROWS[0]["chosen"]}],
        return_tensors="pt",
        return_dict=False,
    )
    with torch.no_grad():
        logits = load_model(str(tmp_path / "other"), tokenizer, []).eval()(whole).logits.log_softmax(-1)
    each = logits[0, :-1].gather(1, whole[0, 1:, None])[:, 0]
    prompt = (whole[0] == tokenizer.sep_token_id).nonzero().item()
    assert data.train.reference[0, 0] == pytest.approx(each[prompt:].sum().item(), abs=1e-3)
    assert abs(ours.values("rewards/chosen")[0]) > 0.01
    assert all(name.startswith("model.") for name in module.state_dict())


def test_a_reference_with_another_vocabulary(tmp_path):
    """Catches log-probs of other tokens that are compared as if they were the same."""
    model, tokenizer = policy()
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["Brazil"])
    export(model, other, tmp_path / "other", "card")
    with pytest.raises(AiraError, match="its vocabulary is not that of"):
        dpo(model, tokenizer, tmp_path, reference=str(tmp_path / "other"))


def test_a_policy_that_starts_from_an_adapter(tmp_path, rows):
    """Catches a reference without the adapter that the policy starts with."""
    from peft import LoraConfig, get_peft_model

    base, tokenizer = policy()
    export(base, tokenizer, tmp_path / "base", "card")
    adapted = get_peft_model(
        load_model(str(tmp_path / "base"), tokenizer, []),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=True),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    model, tokenizer = policy(str(tmp_path / "adapter"), lora=LORA)
    ids = torch.tensor([tokenizer.encode("Who are you?", add_special_tokens=False)])
    with torch.no_grad():
        expected = adapted.merge_and_unload().eval()(ids).logits
        found = unwrap(model).eval()(ids).logits
        without = load_model(str(tmp_path / "base"), tokenizer, []).eval()(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (found - without).abs().max() > 1e-2
    ours, _, _ = fit(dpo(model, tokenizer, tmp_path), tokenizer, rows, tmp_path, "preference", loss_on="response")
    assert ours.values("loss")[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_without_a_reference(tmp_path, rows, loss):
    """Catches a reference pass that is not needed, and a loss that training does not lower."""
    model, tokenizer = policy()
    module = dpo(model, tokenizer, tmp_path, loss=loss, beta=2.0)
    ours, _, data = fit(module, tokenizer, rows, tmp_path, "preference", steps=8, loss_on="response")
    assert data.train.reference is None and not (tmp_path / "reference").exists()
    assert ours.values("loss")[-1] < ours.values("loss")[0]


def test_the_sft_term(tmp_path, rows):
    """Catches a term that is not the chosen responses' mean negative log-likelihood a token."""
    losses, means = [], []
    for weight in (0.0, 0.5):
        model, tokenizer = policy()
        module = dpo(model, tokenizer, tmp_path, sft_weight=weight)
        ours, _, data = fit(module, tokenizer, rows, tmp_path, "preference", steps=1, loss_on="response")
        losses.append(ours.values("loss")[0])
    for at in range(4):
        scored = sum(data.train.encoded[at]["scored"][0])
        means.append(-data.train.reference[at, 0] / scored)  # before the first step the policy is the reference
    assert losses[1] - losses[0] == pytest.approx(0.5 * sum(means) / 4, abs=1e-4)


@pytest.mark.parametrize("budget", [1, 10_000])
def test_the_row_budget_changes_nothing(tmp_path, rows, budget):
    """Catches pairs that are torn, or losses that are averaged by row."""
    expected, found = (
        fit(
            dpo(*policy(), tmp_path), policy()[1], rows, tmp_path, "preference", loss_on="response", tokens_per_row=size
        )[0]
        for size in (150, budget)
    )
    for name in ("loss", *REWARDS):
        assert found.values(name) == pytest.approx(expected.values(name), abs=2e-5)
