"""SIGKILL at random moments of a run: each one, gone on with, has to end like the undisturbed run, bit for bit.

    python benchmarks/kill.py [--kills 20] [--seed 0] [overrides of train.py …]

A short run of the embedded default, which writes a checkpoint after every step and validates at every fifth, is
killed (with all its processes) at moments spread at random over its whole time, from the imports to the export; every
second time, the kill waits for the next write of a checkpoint. It is gone on with by ``ckpt_path=last``; where it was
killed before its first checkpoint, it is started again. What is compared is the weights of the export, tensor by
tensor, and the step that ``best.ckpt`` is of.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

SETTINGS = [
    *("data.max_examples=64", "data.batch_size=8", "callbacks.samples.exact_match=0", "model.dropout=0.1"),
    *("model.config.n_layer=2", "model.config.n_embd=64", "trainer.enable_progress_bar=false"),
    *("trainer.max_steps=150", "trainer.val_check_interval=5", "callbacks.checkpoint.every_n_train_steps=1"),
]
CHECKPOINTS = "outputs/*/*/checkpoints"


def start(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    script = str(Path(__file__).parent.parent / "train.py")
    return subprocess.Popen(
        [sys.executable, script, *overrides, f"cache_dir={folder.parent / 'cache'}"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end_of(folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    (run,) = folder.glob("outputs/*/*/metrics.json")
    best = torch.load(run.parent / "checkpoints" / "best.ckpt", weights_only=True, mmap=True)
    return load_file(run.parent / "export" / "model.safetensors"), best["global_step"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    settings = SETTINGS + arguments.overrides
    root = Path(tempfile.mkdtemp(prefix="aira-kill-"))
    (root / "whole").mkdir()
    begun = time.time()
    if start(root / "whole", *settings).wait():
        raise SystemExit("The undisturbed run failed.")
    whole = time.time() - begun
    weights, best = end_of(root / "whole")
    draw, outcomes = random.Random(arguments.seed), Counter[str]()
    print(f"The undisturbed run took {whole:.1f} s.\n")
    print("| killed after, s | at step | while writing | the end |\n|--:|--:|---|---|")
    for number in range(arguments.kills):
        folder = root / str(number)
        folder.mkdir()
        process = start(folder, *settings)
        moment = draw.uniform(0, whole)
        time.sleep(moment)
        while number % 2 and process.poll() is None and not list(folder.glob(f"{CHECKPOINTS}/*.part")):
            pass
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        last = [file for name in ("last", "previous") for file in folder.glob(f"{CHECKPOINTS}/{name}.ckpt")]
        parts = [file.name for file in folder.glob(f"{CHECKPOINTS}/*.part")]
        step = torch.load(last[0], weights_only=True, mmap=True)["global_step"] if last else None
        if not last:
            for file in sorted(folder.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
        if start(folder, *settings, *(["ckpt_path=last"] if last else [])).wait():
            outcome = "failed"
        else:
            found, found_best = end_of(folder)
            same = found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
            outcome = "equal" if same and found_best == best else "DIFFERENT"
        outcomes[outcome] += 1
        at = "before the first" if step is None else step
        print(f"| {moment:.2f} | {at} | {', '.join(parts)} | {outcome} |", flush=True)
    print(f"\n{', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())} of {arguments.kills}.")
    return int(outcomes["equal"] != arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
