"""What saves memory and steps, by the command that a user types."""

import csv

import pytest
from safetensors import safe_open

from tests.end_to_end.command import SMALL, run, run_folder

STEPS = ["trainer.max_steps=3", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=2"]


def logged(cwd, name="train/loss"):
    with (run_folder(cwd) / "logs/version_0/metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "sft", "reward", "toxicity"])
def test_bf16_true(tmp_path, method):
    """Catches weights that stay in float32, log-probs or sums in bfloat16, and a reference of another precision."""
    losses = {}
    for precision in ("32-true", "bf16-true"):
        folder = tmp_path / precision
        folder.mkdir()
        run(*SMALL, *STEPS, f"method={method}", f"trainer.precision={precision}", cwd=folder)
        losses[precision] = logged(folder)
        with safe_open(run_folder(folder) / "export/model.safetensors", "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds == {"BF16" if precision == "bf16-true" else "F32"}
    assert losses["bf16-true"] == pytest.approx(losses["32-true"], rel=0.02)
    if method == "dpo":
        assert losses["bf16-true"][0] == pytest.approx(0.6931472, abs=1e-6)


@pytest.mark.slow
def test_early_stopping_and_an_average(tmp_path):
    """Catches callbacks that cannot be chosen from the command line, and a stop that is not told."""
    early = [
        "callbacks=[default,early_stopping,ema]",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=9.0",
    ]
    steps = ["trainer.max_steps=20", "trainer.val_check_interval=2", "schedule.name=constant"]
    printed = run(*SMALL, *early, *steps, cwd=tmp_path)
    assert "Ended early, after step " in printed and len(logged(tmp_path, "val/loss")) < 10
    assert (run_folder(tmp_path) / "checkpoints/best.ckpt").exists()
