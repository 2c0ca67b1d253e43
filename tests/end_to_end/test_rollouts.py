"""Batches that are generated while a run trains: nothing but their source is another."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.command import SMALL, run, run_folder

SETTINGS = [
    *(argument for argument in SMALL if "max_examples" not in argument),
    "method.datamodule=tests.end_to_end.rollouts.Rollouts",
    "data.tokens_per_row=64",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "optimizer.eps=1e-6",
]


def trained(folder, *arguments):
    """The printed lines, the weights, and what was counted."""
    folder.mkdir(exist_ok=True)
    printed = run(*SETTINGS, *arguments, f"cache_dir={folder}/cache", cwd=folder)
    state = torch.load(run_folder(folder) / "checkpoints" / "last.ckpt", weights_only=True)
    counted = {name: state["callbacks"]["Throughput"][name] for name in ("tokens", "examples")}
    return printed, load_file(run_folder(folder) / "export" / "model.safetensors"), counted


def test_gone_on_with(tmp_path):
    """Catches rollouts that are made ahead of their step, by other weights, or anew from the first one on."""
    printed, expected, counted = trained(tmp_path / "whole", "data.path=policy")
    assert "Answers are generated." in printed and "6 training and 2 validation examples, 6 steps of 8" in printed
    assert counted["examples"] == 48
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    resumed = run_folder(tmp_path / "resumed")
    shutil.rmtree(resumed / "export")
    (resumed / "checkpoints" / "last.ckpt").unlink()
    middle = resumed / "checkpoints" / "previous.ckpt"
    assert torch.load(middle, weights_only=True)["global_step"] == 3
    _, found, again = trained(tmp_path / "resumed", "data.path=policy", f"ckpt_path={middle}")
    assert again == counted and all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    _, other, _ = trained(tmp_path / "other", "data.path=policy", "optimizer.lr=1e-4")
    assert not any(torch.equal(other[name], tensor) for name, tensor in expected.items() if "attn.c_attn.w" in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer", [["trainer=ddp-cpu"], ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]]
)
def test_processes_make_no_difference(tmp_path, trainer):
    """Catches rollouts that are normalised by one rank's tokens, and ranks that run other numbers of rows and hang."""
    chosen = ["data.path=seed", "callbacks.samples.max_new_tokens=2"]
    _, expected, counted = trained(tmp_path / "one", *chosen)
    _, found, again = trained(tmp_path / "two", *chosen, *trainer)
    assert again == counted
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)
