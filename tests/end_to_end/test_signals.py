"""Stopping and being stopped: signals, processes that are gone, and files that are broken."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.command import SMALL, run, run_folder, start

SETTINGS = [
    *SMALL,
    "trainer.max_steps=40",
    "trainer.val_check_interval=7",
    "callbacks.checkpoint.every_n_train_steps=3",
    "callbacks.samples.max_new_tokens=2",
]


def weights(folder):
    return load_file(run_folder(folder) / "export" / "model.safetensors")


def checkpoints(folder):
    return list(folder.glob("outputs/*/*/checkpoints/last.ckpt"))


def wait_for_checkpoint(process, folder):
    while not checkpoints(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(*SETTINGS, cwd=folder)
    return folder


@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGUSR1", "SIGHUP"))]
)
def test_a_signal_saves_and_stops(undisturbed, tmp_path, name):
    """Catches steps that a signal loses, a status that a scheduler does not know, and another end after going on."""
    process = start(*SETTINGS, cwd=tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(getattr(signal, name))
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + getattr(signal, name), printed
    step = torch.load(checkpoints(tmp_path)[0], weights_only=True)["global_step"]
    assert f"Stopped by {name} after step {step}. Resume with ckpt_path=last" in printed and "Traceback" not in printed
    assert 3 <= step < 40 and not (run_folder(tmp_path) / "export").exists()
    run(*SETTINGS, "ckpt_path=last", cwd=tmp_path)
    expected, found = weights(undisturbed), weights(tmp_path)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes(tmp_path):
    """Catches ranks that stop at different steps and wait for each other for ever."""
    process = start(*SETTINGS, "trainer=ddp-cpu", cwd=tmp_path)
    wait_for_checkpoint(process, tmp_path)
    os.kill(child_of(process), signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert printed.count("Stopped by SIGTERM after step") == 1


def child_of(process):
    """The process of rank 1, which that of rank 0 has started."""
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/environ") as environment:
                parent = stat.read().rpartition(")")[2].split()[1]
                if parent == str(process.pid) and "LOCAL_RANK=1" in environment.read():
                    return int(entry)
        except (OSError, ValueError):
            continue
    raise AssertionError("there is no second process")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_others(tmp_path, killed):
    """Catches a process that waits for one that is gone."""
    process = start(*SETTINGS, "trainer=ddp-cpu", "trainer.max_steps=4000", cwd=tmp_path)
    wait_for_checkpoint(process, tmp_path)
    other = child_of(process)
    os.kill((process.pid, other)[killed], signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)  # until both have closed the pipe
    # where the first rank is slow to end, Lightning's observer of the other kills it, once it has said why
    assert process.returncode in ((-signal.SIGKILL,) if killed == 0 else (2, -signal.SIGKILL)), printed
    assert "Another process of this run has ended" in printed and "Resume with ckpt_path=" in printed
    assert not os.path.exists(f"/proc/{other}/fd") or not os.listdir(f"/proc/{other}/fd")


@pytest.mark.slow
def test_a_broken_checkpoint_is_passed_over(undisturbed, tmp_path):
    """Catches a run that cannot be gone on with because its newest checkpoint was cut off."""
    process = start(*SETTINGS, cwd=tmp_path)
    while not (found := list(tmp_path.glob("outputs/*/*/checkpoints/previous.ckpt"))) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    last = found[0].with_name("last.ckpt")
    if last.exists():
        os.truncate(last, last.stat().st_size // 2)
    else:
        last.write_bytes(b"")
    said = run(*SETTINGS, f"ckpt_path={last}", cwd=tmp_path, status=2)
    assert "it is cut short" in said and f"The one before it is whole: ckpt_path={found[0]}" in said
    printed = run(*SETTINGS, "ckpt_path=last", cwd=tmp_path)
    assert "is skipped: it is cut short" in printed
    expected, ended = weights(undisturbed), weights(tmp_path)
    assert all(torch.equal(expected[key], ended[key]) for key in expected)
