"""Which settings change what a metric means, and which do not."""

import json

import pytest

from aira.config.compose import compose_config
from aira.config.spaces import examples
from aira.errors import AiraError
from aira.ranking import UNRANKED, confounders
from aira.sweeps import _check_metric, _check_study, table

CASES = [
    ("val/loss", "method.beta", True),
    ("val/loss", "method.loss", True),
    ("val/loss", "method.label_smoothing", True),
    ("val/loss", "method.center_rewards_coefficient", True),
    ("val/loss", "method.class_weights", True),
    ("val/loss", "method.sft_weight", True),
    ("val/loss", "method.reference", True),
    ("val/loss", "tokenizer", True),
    ("val/loss", "model.template", True),
    ("val/loss", "optimizer.lr", False),
    ("val/loss", "data.batch_size", False),
    ("val/loss", "seed", False),
    ("val/perplexity", "method.loss_on", True),
    ("val/perplexity", "data.max_length", True),
    ("val/perplexity", "method.beta", False),
    ("val/rewards/margins", "method.beta", True),
    ("val/rewards/margins_by_beta", "method.beta", False),
    ("val/rewards/accuracies", "method.beta", False),
    ("val/rewards/accuracies", "method.loss", False),
    ("val/rewards/accuracies", "method.reference", True),
    ("val/rewards/accuracies", "tokenizer", False),
    ("val/accuracy", "data.path", True),
    ("val/accuracy", "data_key", True),
    ("val/accuracy", "data.validation_split", True),
    ("val/accuracy", "method.center_rewards_coefficient", False),
    ("val/margin", "method.center_rewards_coefficient", True),
    ("val/f1", "method.threshold_by", True),
    ("val/auroc", "method.threshold_by", False),
    ("perf/tokens_per_second", "data.path", False),
]


@pytest.mark.parametrize("metric, key, blurred", CASES)
def test_what_a_setting_changes(metric, key, blurred):
    """Catches a metric that is ranked over settings that are its unit, and one that is not ranked without need."""
    runs = [{"tokenizer": "t", key: "a"}, {"tokenizer": "t", key: "b"}]
    assert confounders(metric, runs) == ([key] if blurred else [])
    assert confounders(metric, runs[:1] * 2) == []


def test_what_is_no_quality():
    """Catches a threshold, or the level of a reward, in bold."""
    unranked = ("train/loss", "val/threshold", "val/rewards/chosen", "val/mean_reward", "val/kl", "train/grad_norm")
    assert all(UNRANKED.search(name) for name in unranked)
    assert not any(
        UNRANKED.search(name) for name in ("val/loss", "val/rewards/margins", "val/auroc", "exact_match/val")
    )


@pytest.mark.parametrize("key", ["data_key", "tokenizer"])
def test_trials_of_other_rows(tmp_path, key):
    """Catches a search that goes on with other rows, of which the easier ones win."""
    for number in range(3):  # the last one has not ended, and wrote nothing down
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "trial.json").write_text(f'["optimizer.lr=1e-{number}"]')
    for last in ("a", "b"):
        for number, hashed in enumerate(("a", last)):
            (tmp_path / str(number) / "environment.json").write_text(json.dumps({key: hashed}))
            (tmp_path / str(number) / "metrics.json").write_text(f'{{"val/loss": {1 - number / 2}}}')
        told = table(tmp_path, "val/loss", "min")
        assert ("Best: aira train optimizer.lr=1e-1" in told) == (last == "a")
        assert (f"Not ranked: {key} changes" in told) == (last == "b")


def test_a_search_by_its_own_unit(tmp_path):
    """Catches a best beta that is found by a loss in units of beta, in a search and in a table."""
    with pytest.raises(AiraError, match=r"sweep.metric=val/loss: method.beta, which sweep.space varies"):
        _check_metric("val/loss", {"method.beta": "choice(0.1, 0.5)", "optimizer.lr": "interval(0, 1)"})
    _check_metric("val/rewards/accuracies", {"method.beta": "choice(0.1, 0.5)"})
    for number, (beta, loss) in enumerate([(0.1, 0.6), (0.5, 0.2)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "trial.json").write_text(f'["method=dpo", "method.beta={beta}"]')
        (folder / "metrics.json").write_text(f'{{"val/loss": {loss}}}')
    told = table(tmp_path, "val/loss", "min")
    assert "Not ranked: method.beta changes what val/loss means." in told and "Best:" not in told
    assert [line.split()[0] for line in told.split("\n") if "method.beta=" in line] == ["0", "1"]


@pytest.mark.parametrize(
    "values, told", [((1.0, 2.0), "Best: "), ((1.0, 1.0, 2.0), "Best (as 1 others): "), ((1.0,), "Best: ")]
)
def test_no_winner_among_equals(tmp_path, values, told):
    """Catches the first of several equal trials as the best, and a traceback for a trial that is no list of texts."""
    for i, value in enumerate([*values, 0.0]):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "metrics.json").write_text(f'{{"val/loss": {value}}}')
        (tmp_path / str(i) / "trial.json").write_text(f'["seed={i}"]' if i < len(values) else '["seed=1", 5]')
    assert f"\n{told}aira train seed=0" in table(tmp_path, "val/loss", "min")


def test_a_choice_of_odd_texts():
    """Catches a choice that Hydra takes for several, or for a mapping."""
    space = {"data.path": "choice('a,b', 'c=d', 'e f', \"it's\", '{x}', plain.jsonl)"}
    paths = [compose_config("train", [example]).data.path for example in examples(space)]
    assert paths == ["a,b", "c=d", "e f", "it's", "{x}", "plain.jsonl"]


@pytest.mark.parametrize(
    "content, told",
    [
        (b'{"a": 1}\n{"b', "is skipped"),
        (b'{"b', "is skipped"),
        (b"garbage\n", "is damaged"),
        (b"[1]\n", "is damaged"),
        (bytes(range(256)), "is damaged"),
        (b'{"a": 1}\n', ""),
        (b"", ""),
        (None, ""),
    ],
)
def test_a_damaged_study(tmp_path, capsys, content, told):
    """Catches a search that ends in a traceback after a kill, trials later, since a record was added to half of one."""
    log = tmp_path / "study.log"
    if content is not None:
        log.write_bytes(content)
    if told == "is damaged":
        with pytest.raises(AiraError, match=told):
            _check_study(log)
        return
    _check_study(log)
    assert (told in capsys.readouterr().err) and (
        content is None or log.read_bytes() == content[: content.rfind(b"\n") + 1]
    )
