"""What an offline run of Weights & Biases holds once a run has ended."""

import json

import pytest
import wandb

from aira.config.compose import compose_config
from aira.tracking.wandb import artifact_name
from aira.training import train
from tests.end_to_end.command import SMALL
from tests.wandb_records import records


def test_a_short_run_has_all_that_the_docs_promise(tmp_path):
    """Catches a run too short for a round of questions that has no answers, and final figures that are not told."""
    given = [*SMALL, "method=dpo", "trainer.max_steps=2", "logger=wandb", f"cache_dir={tmp_path}/cache"]
    metrics = train(compose_config("train", given), tmp_path / "run")
    wandb.finish()
    (file,) = tmp_path.glob("run/wandb/offline-run-*/run-*.wandb")
    told: dict = {}
    for record in records(file):
        for item in [*record.summary.update, *record.history.item]:
            told[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    assert told["samples._type"] == "table-file" and told["samples.nrows"] == 3
    assert {"emissions/energy_kwh", "val/rewards/accuracies", "perf/tokens_per_second", "seconds"} <= metrics.keys()
    assert {name: told.get(name) for name in metrics} == metrics


@pytest.mark.parametrize(
    "name", ["a b|c", "dados/português.jsonl", "日本", "///", "x" * 300, "$x_y$", "day-<b>", "😀", "a\nb"]
)
def test_any_name_is_one_of_an_artifact(name):
    """Catches a run that ends by the name of its folder or data after its last step, before its metrics are written."""
    artifact = wandb.Artifact(artifact_name(name), "model")
    assert artifact.name
