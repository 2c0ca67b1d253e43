"""Reward modelling step by step against TRL's RewardTrainer, and its metrics against numbers worked by hand."""

import copy
import math

import pytest
import torch

from aira.methods.reward import Reward, pair_calibration_error
from aira.models.loading import load_model, load_tokenizer
from tests.methods.fitting import CONSTANT, OPTIMIZER, TRL, Log, fit, write

ROWS = [
    {
        "prompt": f"What is {i} + 3?",
        "chosen": f"It is {i + 3}.",
        "rejected": "No idea. " * (1 + i % 3),
        "margin": 0.1 * i,
    }
    for i in range(12)
]
SHAPES = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 256},
    "bert": {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
    | {"num_attention_heads": 2, "max_position_embeddings": 256},
}


def scorer(family="gpt2"):
    architecture = "encoder" if family == "bert" else "causal"
    path = f"pkg://aira.models/tiny/{architecture}"
    tokenizer, added = load_tokenizer(path, architecture=architecture, head="score")
    torch.manual_seed(0)
    attention = "sdpa" if architecture == "encoder" else "trees"
    settings = {"architecture": architecture, "head": "score", "label": "reward", "attn_implementation": attention}
    return load_model(path, tokenizer, added, config=SHAPES[family], **settings), tokenizer


def by_trl(model, tokenizer, folder, rows, center):
    """What TRL logs at each of three steps of the same training."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    def talk(prompt, response):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]

    data = [
        {name: talk(row["prompt"], row[name]) for name in ("chosen", "rejected")}
        | ({"margin": row["margin"]} if "margin" in row else {})
        for row in rows
    ]
    config, log = RewardConfig(output_dir=str(folder), center_rewards_coefficient=center or None, **TRL), Log()
    data = Dataset.from_list(data).to_iterable_dataset()  # of which no trainer changes the order
    RewardTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[log]).train()
    return log.steps[:3]


@pytest.mark.parametrize("margin, center", [(False, 0.0), (True, 0.0), (False, 0.1)])
def test_the_steps_of_trl(tmp_path, margin, center):
    """Catches a loss, a margin, a centring or a score that parts from TRL's within three steps of training."""
    rows = [{name: row[name] for name in row if margin or name != "margin"} for row in ROWS]
    model, tokenizer = scorer()
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    theirs = by_trl(plain, tokenizer, tmp_path / "trl", rows, center)
    module = Reward(model, OPTIMIZER, CONSTANT, center_rewards_coefficient=center)
    path = write(tmp_path / "rows", rows)
    ours, _, _ = fit(module, tokenizer, path, tmp_path, "preference", head="score")
    assert ours.values("loss") == pytest.approx([step["loss"] for step in theirs], abs=1e-4)
    assert abs(ours.values("loss")[2] - ours.values("loss")[0]) > 1e-3
    for name in ("accuracy", "margin", "mean_reward"):
        assert ours.values(name) == pytest.approx([step[name] for step in theirs], abs=1e-3), name


@pytest.mark.parametrize("family", SHAPES)
def test_the_row_budget_changes_nothing(tmp_path, family):
    """Catches rows that tear a pair, or a loss that is averaged by row."""
    path = write(tmp_path / "rows", ROWS)
    found = []
    for budget in (1, 200, 10_000):
        model, tokenizer = scorer(family)
        module = Reward(model, OPTIMIZER, CONSTANT)
        settings = {"head": "score", "padded": family == "bert", "tokens_per_row": budget}
        ours, _, _ = fit(module, tokenizer, path, tmp_path, "preference", **settings)
        found.append(ours.values("loss") + ours.values("margin"))
    assert found[1] == pytest.approx(found[0], abs=2e-5) and found[2] == pytest.approx(found[0], abs=2e-5)


def test_validation_metrics(tmp_path):
    """Catches an average of averages: figures are those of the whole validation set."""
    model, tokenizer = scorer()
    path = write(tmp_path / "rows", ROWS, validation=ROWS[:7])
    module = Reward(model, OPTIMIZER, CONSTANT)
    _, trainer, _ = fit(module, tokenizer, path, tmp_path, "preference", head="score", validate=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert module.scores.shape == (7, 2) and sorted(module.indices) == list(range(7))
    difference = module.scores[:, 0] - module.scores[:, 1]
    margins = torch.tensor([row["margin"] for row in ROWS[:7]]).double()
    margins = margins[torch.from_numpy(module.indices)]
    expected = torch.nn.functional.softplus(-(torch.from_numpy(difference) - margins)).mean()
    assert metrics["val/loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["val/accuracy"] == pytest.approx((difference > 0).mean())
    assert metrics["val/min_reward"] == pytest.approx(module.scores.min())
    assert metrics["val/max_reward"] == pytest.approx(module.scores.max())


def test_calibration():
    """Catches another error than |confidence - accuracy| averaged over bins; worked by hand."""
    sure = math.log(0.9 / 0.1)  # the likelier response wins with probability 0.9
    half = math.log(0.62 / 0.38)
    found = torch.tensor([[sure, 0.0]] * 4 + [[0.0, sure]] + [[half, 0.0]] + [[0.0, half]])
    # bin of 0.9: 4 of 5 right, |0.9 - 0.8| = 0.1; bin of 0.62: 1 of 2 right, |0.62 - 0.5| = 0.12
    assert pair_calibration_error(found) == pytest.approx((5 * 0.1 + 2 * 0.12) / 7, abs=1e-6)
    assert math.isnan(pair_calibration_error(torch.empty(0, 2)))  # 0 / 0
