"""One process, two of them, and weights that are sharded over two: the same run."""

import csv

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.command import SMALL, run, run_folder

SETTINGS = [
    *(argument for argument in SMALL if "exact_match" not in argument),
    "trainer.max_steps=20",
    # The shared prompt's gradients cancel in the reward loss, and what is left of some is rounding, which Adam would
    # divide by itself: with the default of 1e-8 one weight in 131392 moved 2e-4 apart, with this one none moves 1e-6.
    "optimizer.eps=1e-6",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=10",
    "callbacks.samples.max_new_tokens=2",
    "callbacks.samples.every_n_steps=10",
]
SHARDED = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]
SLOW = pytest.mark.slow


def outcome(folder):
    """What was logged at each step and counted in all, and the weights of the export."""
    with open(run_folder(folder) / "logs" / "version_0" / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    logged = {
        (row["step"], name): float(value)
        for row in rows
        for name, value in row.items()
        if value and name.startswith(("train/", "val/"))
    }
    counted = torch.load(run_folder(folder) / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Throughput"]
    logged |= {("all", name): counted[name] for name in ("tokens", "examples")}
    return logged, load_file(run_folder(folder) / "export" / "model.safetensors")


@pytest.mark.parametrize(
    "method, trainer",
    [
        pytest.param("sft", ["trainer=ddp-cpu"], marks=SLOW),
        ("dpo", ["trainer=ddp-cpu"]),
        pytest.param("reward", ["trainer=ddp-cpu"], marks=SLOW),
        pytest.param("toxicity", ["trainer=ddp-cpu"], marks=SLOW),
        pytest.param("sft", SHARDED, marks=SLOW),
        pytest.param("dpo", SHARDED, marks=SLOW),
        pytest.param("reward", SHARDED, marks=SLOW),
        pytest.param("toxicity", SHARDED, marks=SLOW),
    ],
    ids=str,
)
def test_processes_make_no_difference(tmp_path, method, trainer):
    """Catches averages of averages, a reference or scores of each rank's own, and weights that are not put together."""
    found = []
    for name, chosen in (("one", ["trainer=cpu"]), ("two", trainer)):
        (tmp_path / name).mkdir()
        run(*SETTINGS, f"method={method}", *chosen, f"cache_dir={tmp_path / name}/cache", cwd=tmp_path / name)
        found.append(outcome(tmp_path / name))
    (logged, weights), (logged_two, weights_two) = found
    losses = [key for key in logged if key[1] == "train/loss"]
    assert len(losses) == 20 and logged.keys() == logged_two.keys()
    for key, value in logged.items():
        assert logged_two[key] == pytest.approx(value, abs=1e-5 if key[1].endswith("/loss") else 1e-3, rel=1e-4), key
    assert weights.keys() == weights_two.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_two[name], tensor, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_sharded_and_gone_on_with_in_one_process(tmp_path):
    """Catches a checkpoint of sharded weights that only the same number of processes can read."""
    arguments = [*SETTINGS, f"cache_dir={tmp_path}/cache"]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    run(*arguments, *SHARDED, cwd=tmp_path / "whole")
    run(*arguments, *SHARDED, "trainer.max_steps=10", "schedule.name=constant", cwd=tmp_path / "parts")
    last = run_folder(tmp_path / "parts") / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == 10 and all(type(value) is torch.Tensor for value in state["state_dict"].values())
    run(*arguments, "schedule.name=constant", f"ckpt_path={last}", cwd=tmp_path / "parts")
    assert torch.load(last, weights_only=True)["global_step"] == 20
