"""Mixtures of sources: how much an epoch has of each, which are held out, and their losses apart."""

import json

import numpy as np
import pytest

from aira.config.compose import compose_settings
from aira.config.schema import Mixed, Train
from aira.data.module import DataModule
from aira.data.plan import Plan
from aira.errors import AiraError
from tests.end_to_end.command import run, run_folder


@pytest.fixture
def mixed(tokenizer, tmp_path):
    """Make a DataModule of two files: 20 short rows and 40 long ones."""
    for name, count, words in (("short", 20, 1), ("long", 40, 9)):
        rows = [{"question": f"{name} {i}", "answer": "yes " * words} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(first, second, by="passes", **settings):
        mix = [Mixed(path=f"{tmp_path}/{name}.jsonl", **one) for name, one in (("short", first), ("long", second))]
        settings = {"validation_fraction": 0.1, "cache_dir": str(tmp_path / "cache"), **settings}
        return DataModule(tokenizer, kind="instruction", path="", mix=mix, mix_by=by, **settings)

    return make


def epoch(data, number=0):
    """How often each example is in an epoch."""
    plan = Plan(
        data.train.lengths, data.train.targets, batch_size=4, tokens_per_row=1024, seed=3, shares=data.shares, steps=999
    )
    steps = [step for step in plan if step.number // plan.steps_per_epoch == number]
    return np.bincount([i for step in steps for row in step.rows for i in row], minlength=len(data.train)), plan


def test_passes(mixed):
    """Catches a weight that is not the number of passes, and a half of a source that is the same half each epoch."""
    data = mixed({"weight": 2.0}, {"weight": 0.5})
    sources = data.train.sources_of(data.train.index)
    sizes = np.bincount(sources)
    assert sizes.tolist() == [18, 36] or sizes.sum() == 54
    first, plan = epoch(data)
    second, _ = epoch(data, 1)
    for times in (first, second):
        assert set(times[sources == 0]) == {2} and set(times[sources == 1]) == {0, 1}
        assert times[sources == 1].sum() == round(sizes[1] / 2)
    assert (first != second).any()
    assert data.steps_per_epoch == -(-first.sum() // data.batch_size) and plan.steps_per_epoch == -(-first.sum() // 4)
    again, _ = epoch(data)
    assert (again == first).all()
    assert any(f"({2:.2f} passes over {sizes[0]})" in line for line in data.notices)


@pytest.mark.parametrize("by", ["examples", "tokens"])
def test_shares(mixed, by):
    """Catches shares of examples that are taken for shares of tokens."""
    data = mixed({"weight": 3.0}, {"weight": 1.0}, by)
    times, _ = epoch(data)
    sources = data.train.sources_of(data.train.index)
    amount = times if by == "examples" else times * data.train.tokens
    share = amount[sources == 0].sum() / amount.sum()
    assert share == pytest.approx(0.75, abs=0.02)
    total = len(data.train) if by == "examples" else data.train.tokens.sum()
    assert amount.sum() == pytest.approx(total, rel=0.05)


def test_equal_passes_are_the_plan_of_all(mixed):
    """Catches a mixture of weights 1 that leaves a row out or repeats one."""
    times, _ = epoch(mixed({}, {}))
    assert set(times) == {1}


def test_one_prompt_in_two_sources(mixed, tokenizer, tmp_path):
    """Catches a prompt that is trained on in one source and held out in the other."""
    rows = [{"prompt": f"SHORT  {i}", "completion": "no"} for i in range(20)]
    (tmp_path / "twins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mix = [Mixed(path=f"{tmp_path}/short.jsonl"), Mixed(path=f"{tmp_path}/twins.jsonl", max_examples=15)]
    data = DataModule(
        tokenizer, kind="instruction", path="", mix=mix, validation_fraction=0.3, cache_dir=str(tmp_path / "cache")
    )
    assert (
        not np.isin(data.validation.prompts, data.train.prompts).any() and len(data.train) + len(data.validation) == 35
    )
    texts = [example.conversations[0][0]["content"] for example in data.examples(data.train, data.train.index)]
    assert any(text.startswith("SHORT") for text in texts) and any(text.startswith("short") for text in texts)


def test_names_are_of_the_sources_that_are_validated(mixed):
    """Catches a loss under the name of another source, where one has no rows held out."""
    data = mixed({"max_examples": 1}, {}, validation_fraction=0.05, seed=1)
    present = np.unique(data.validation.sources_of(data.validation.index))
    assert data.source_names == [("short", "long")[i] for i in present]


def test_a_source_keeps_what_belongs_to_its_examples(mixed):
    """Catches a reference log-prob of another example, or none, in the validation of one source."""
    data = mixed({}, {}, validation_fraction=0.3)
    data.validation.reference = data.validation.index[:, None].astype(np.float32)
    parts = data.validation.of_sources()
    assert len(parts) == 2 and sum(map(len, parts)) == len(data.validation)
    for part in parts:
        assert (part.reference[:, 0] == part.index).all() and len(np.unique(part.sources_of(part.index))) == 1


def test_keys_tell_mixtures_apart(mixed):
    """Catches a run that is resumed with another mixture as if it were the same."""
    keys = [mixed(*weights).rows_key for weights in (({}, {}), ({}, {"max_examples": 39}))]
    assert keys[0] != keys[1]


@pytest.mark.slow
def test_from_the_command_line(mixed, tmp_path):
    """Catches keys that the command line does not reach, and losses of the sources that are not apart."""
    mixed({}, {})
    mix = f"data.mix=[{{path: {tmp_path}/short.jsonl, weight: 2}}, {{path: {tmp_path}/long.jsonl, max_examples: 30}}]"
    settings = compose_settings(Train, [mix])
    assert [one.weight for one in settings.data.mix] == [2, 1] and settings.data.mix[1].max_examples == 30
    for wrong, message in (
        (mix.replace("weight: 2", "weight: 0"), "weight"),
        (mix.replace("weight: 2", "wieght: 2"), "wieght"),
        (mix.replace("weight: 2", "columns: 3"), "columns"),
    ):
        with pytest.raises(AiraError, match=message):
            compose_settings(Train, [wrong])
    arguments = ["trainer.max_steps=2", "data.validation_fraction=0.3", "callbacks.samples.exact_match=0"]
    run(mix, *arguments, cwd=tmp_path)
    results = json.loads((run_folder(tmp_path) / "metrics.json").read_text())
    apart = [results[f"val/{name}/loss"] for name in ("short", "long")]
    assert min(apart) <= results["val/loss"] <= max(apart) and apart[0] != apart[1]
