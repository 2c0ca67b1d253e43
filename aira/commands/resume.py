"""Which checkpoint a run is resumed from, and whether that can be; no torch is imported here."""

import os
import sys
from pathlib import Path
from typing import Any

from aira.config.overrides import parse_override
from aira.config.schema import Train, Trainer
from aira.errors import AiraError
from aira.files import damage, near, newest_first, override, read_json, typed, wrong_with
from aira.folders import differing_from, starts_the_run


def scheduled() -> int:
    """How many processes torchrun or srun has started for the run."""
    started = "RANK" in os.environ or "SLURM_PROCID" in os.environ
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) if started else 1


def _broken(checkpoint: Path, trainer: Trainer) -> str | None:
    """Why a run cannot go on from a file, of which the first process reads all; a finished run has no need of it."""
    return None if _finished(run_of(checkpoint), trainer) else damage(checkpoint, sums=starts_the_run())


def _refused(checkpoint: Path, broken: str) -> AiraError:
    """The error for a file that is named, or that the other processes take."""
    before = checkpoint.with_name("previous.ckpt")
    whole = before != checkpoint and before.is_file() and not damage(before, sums=starts_the_run())
    offer = f"The one before it is whole: {typed('ckpt_path', before)}." if whole else "No whole one stands beside it."
    return AiraError(f"ckpt_path={checkpoint}: {broken}. {offer}")


def find_last(settings: Train, written: dict[str, Any], named: Path | None = None) -> Path:
    """The newest whole checkpoint of a run with this configuration; `written` is the same as it is written down.

    It is looked for in the folder that is `named` for the run, and then below `output_dir`.

    Of several processes that look for it by themselves, only the first reads it. So all come to the same file, or the
    first one ends the run.

    Raises:
        AiraError: there is none; the message lists other runs, and in what the most similar differ. Or its bytes have
            changed, and there are other processes, which would go on from it.
    """
    others: list[tuple[int, str]] = []
    files = newest_first(named, "checkpoints/*.ckpt") if named else []
    files += newest_first(settings.output_dir, "*/*/checkpoints/*.ckpt")
    for checkpoint in (file for file in files if file.stem in ("last", "previous")):
        try:
            differing = differing_from(run_of(checkpoint), written)
        except AiraError as error:
            print(f"Notice: {checkpoint} is passed over: {error}", file=sys.stderr)
            continue
        if not differing:
            broken = _broken(checkpoint, settings.trainer)
            if not broken:
                return checkpoint
            if scheduled() > 1 and not damage(checkpoint, sums=False):
                raise _refused(checkpoint, broken)
            if starts_the_run():
                print(f"Notice: {checkpoint} is passed over: {broken}.", file=sys.stderr)
            continue
        if checkpoint.stem == "previous" and checkpoint.with_name("last.ckpt").exists():
            continue
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        others.append((len(differing), f"\n  {typed('ckpt_path', checkpoint)}\n    {'; '.join(differing[:3])}{more}"))
    others.sort(key=lambda other: other[0])
    nearest_runs = f"Other runs, the most similar first:{''.join(told for _, told in others[:5])}"
    raise AiraError(
        f"ckpt_path=last: no run below {settings.output_dir}/ has this configuration and a checkpoint. "
        f"{nearest_runs if others else 'There is no other run: leave ckpt_path out to start one.'}"
    )


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    return checkpoint.resolve().parent.parent


def named_folder(overrides: list[str]) -> Path | None:
    """The folder that the command line names for the run."""
    named = [text for text in overrides if text.startswith("hydra.run.dir=")]
    return Path(str(parse_override(named[-1]).value())) if named else None


def begun(overrides: list[str]) -> str | None:
    """The checkpoint that a run goes on from where torchrun or SLURM has started it again; None where it is new."""
    again = any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    folder = named_folder(overrides)
    if not again or not folder:
        return None
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return None
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID")) == "0":
        print(f"Notice: this run was started again, and goes on from {last}.", file=sys.stderr)
    return str(last)


def resume(ckpt_path: str, settings: Train, written: dict[str, Any], named: Path | None) -> Path:
    """Make the command line name the checkpoint file, and the folder of the run that it belongs to, which is returned.

    Args:
        ckpt_path: a file, or `last`.
        settings: the configuration.
        written: the same, as a run writes it down.
        named: the folder that is named for the run.
    """
    if ckpt_path == "last":
        checkpoint = find_last(settings, written, named)
    else:
        checkpoint = Path(ckpt_path)
        if not checkpoint.is_file():
            raise AiraError(
                f"ckpt_path={checkpoint}: there is no such file.{near(checkpoint)} `ckpt_path=last` looks for "
                "the newest run."
            )
        broken = _broken(checkpoint, settings.trainer)
        if broken:
            raise _refused(checkpoint, broken)
    run = run_of(checkpoint)
    steps = _finished(run, settings.trainer)
    if steps:
        print(
            f"{run} is finished, after {steps} steps: nothing is left to do. Its figures are in metrics.json, its "
            f"model is in export/. To train it for longer, raise trainer.max_steps or max_epochs, with "
            f"{typed('ckpt_path', checkpoint)}."
        )
        sys.exit(0)
    sys.argv = [arg for arg in sys.argv if not arg.startswith("ckpt_path=")]
    sys.argv.append(override("ckpt_path", checkpoint.resolve()))
    if (run / ".hydra").is_dir() and not any(arg.startswith("hydra.run.dir=") for arg in sys.argv):
        sys.argv.append(override("hydra.run.dir", run))
    return run


def _finished(run: Path, trainer: Trainer) -> int:
    """The steps of a run that has come to its end, and has its export; or 0."""
    metrics = read_json(run / "metrics.json") or {}
    if not metrics or wrong_with(run / "export"):
        return 0
    by_steps = trainer.max_steps > 0
    done, limit = ("steps", trainer.max_steps) if by_steps else ("epochs", trainer.max_epochs)
    return int(metrics.get("steps", 0)) if metrics.get(done, 0) >= limit else 0
