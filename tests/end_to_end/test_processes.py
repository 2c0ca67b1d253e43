"""One process, two of them, and weights that are sharded over two: the same run."""

import csv
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.command import SMALL, finish, run, run_folder, start

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


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def by_lightning(*arguments, cwd):
    run(*arguments, cwd=cwd)


def by_torchrun_on_two_nodes(*arguments, cwd):
    """Two launches, of one process each, that meet at an address."""
    meet = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    arguments = [*arguments, "trainer.devices=1", "trainer.num_nodes=2", "hydra.run.dir=outputs/by/torchrun"]
    launchers = [["torch.distributed.run", *meet, f"--node_rank={rank}"] for rank in (0, 1)]
    finish(*(start(*arguments, cwd=cwd, launcher=launcher) for launcher in launchers))


def by_srun(*arguments, cwd):
    """Two tasks with what SLURM tells each of them."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "aira", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = [{**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in (0, 1)]
    arguments = [*arguments, "hydra.run.dir=outputs/by/srun"]
    finish(*(start(*arguments, cwd=cwd, environment=task) for task in tasks))


@pytest.mark.parametrize(
    "method, trainer, launch",
    [
        ("dpo", ["trainer=ddp-cpu"], by_lightning),
        pytest.param("dpo", SHARDED, by_lightning, marks=SLOW),
        pytest.param("sft", SHARDED, by_torchrun_on_two_nodes, marks=SLOW),
        pytest.param("reward", ["trainer=ddp-cpu"], by_srun, marks=SLOW),
        pytest.param("toxicity", SHARDED, by_srun, marks=SLOW),
        pytest.param("toxicity", ["trainer=ddp-cpu"], by_torchrun_on_two_nodes, marks=SLOW),
    ],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_processes_make_no_difference(tmp_path, method, trainer, launch):
    """Catches averages of averages, a reference or scores of each rank's own, and weights that are not put together."""
    found = []
    for name, chosen, how in (("one", ["trainer=cpu"], by_lightning), ("two", trainer, launch)):
        folder = tmp_path / name
        folder.mkdir()
        how(*SETTINGS, f"method={method}", *chosen, f"cache_dir={folder}/cache", cwd=folder)
        found.append(outcome(folder))
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


@pytest.mark.slow
def test_torchrun_starts_a_worker_again(tmp_path):
    """Catches a run that begins anew, or not at all, where torchrun starts it again after the death of a worker."""
    arguments = [*SETTINGS, "trainer=ddp-cpu", f"cache_dir={tmp_path}/cache", "hydra.run.dir=outputs/by/torchrun"]
    arguments += ["callbacks.checkpoint.every_n_train_steps=1", "trainer.max_steps=60"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=1"]
    weights = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        process = start(*arguments, cwd=folder, launcher=launcher)
        if name == "killed":
            while not list(folder.glob("outputs/*/*/checkpoints/last.ckpt")):
                time.sleep(0.05)
                assert process.poll() is None
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
        printed = finish(process)
        weights.append(load_file(run_folder(folder) / "export" / "model.safetensors"))
    assert "resumes from" in printed
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
