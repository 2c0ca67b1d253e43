"""Which checkpoint a run is resumed from, and whether it can be; torch is not imported here."""

import os
import sys
from pathlib import Path
from typing import Any

from aira.config.overrides import parse_override
from aira.config.schema import Train, Trainer
from aira.errors import AiraError
from aira.files import damage, export_problem, nearest_path, newest_first, override, quoted_override, read_json
from aira.folders import config_differences, is_first_process


def process_count() -> int:
    """The number of processes that torchrun or srun has started for the run."""
    started = "RANK" in os.environ or "SLURM_PROCID" in os.environ
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) if started else 1


def _find_damage(checkpoint: Path, trainer: Trainer) -> str | None:
    """Why a run cannot be resumed from a checkpoint, which only the first process reads; None for a finished run."""
    return None if _finished(run_folder(checkpoint), trainer) else damage(checkpoint, sums=is_first_process())


def _damage_error(checkpoint: Path, problem: str) -> AiraError:
    """The error for a damaged checkpoint that cannot be skipped."""
    before = checkpoint.with_name("previous.ckpt")
    is_whole = before != checkpoint and before.is_file() and not damage(before, sums=is_first_process())
    offer = (
        f"The one before it is whole: {quoted_override('ckpt_path', before)}."
        if is_whole
        else "There is no whole one next to it."
    )
    return AiraError(f"ckpt_path={checkpoint}: {problem}. {offer}")


def find_last(settings: Train, config: dict[str, Any], named: Path | None = None) -> Path:
    """The newest whole checkpoint of a run with this configuration; `config` is the same as a run writes it.

    It is looked for in the folder that is `named` for the run, and then below `output_dir`.

    If several processes look for it, only the first one reads it. So all find the same file, or the first one ends the
    run.

    Raises:
        AiraError: there is none; the message lists other runs, and in what the most similar ones differ. Or its bytes
            have changed, and there are other processes, which would resume from it.
    """
    others: list[tuple[int, str]] = []
    files = newest_first(named, "checkpoints/*.ckpt") if named else []
    files += newest_first(settings.output_dir, "*/*/checkpoints/*.ckpt")
    for checkpoint in (file for file in files if file.stem in ("last", "previous")):
        try:
            differing = config_differences(run_folder(checkpoint), config)
        except AiraError as error:
            print(f"Notice: {checkpoint} is skipped: {error}", file=sys.stderr)
            continue
        if not differing:
            problem = _find_damage(checkpoint, settings.trainer)
            if not problem:
                return checkpoint
            if process_count() > 1 and not damage(checkpoint, sums=False):
                raise _damage_error(checkpoint, problem)
            if is_first_process():
                print(f"Notice: {checkpoint} is skipped: {problem}.", file=sys.stderr)
            continue
        if checkpoint.stem == "previous" and checkpoint.with_name("last.ckpt").exists():
            continue
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        others.append(
            (len(differing), f"\n  {quoted_override('ckpt_path', checkpoint)}\n    {'; '.join(differing[:3])}{more}")
        )
    others.sort(key=lambda other: other[0])
    nearest_runs = f"Other runs, the most similar first:{''.join(text for _, text in others[:5])}"
    raise AiraError(
        f"ckpt_path=last: no run below {settings.output_dir}/ has this configuration and a checkpoint. "
        f"{nearest_runs if others else 'There is no other run: leave ckpt_path out to start one.'}"
    )


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint."""
    return checkpoint.resolve().parent.parent


def named_folder(overrides: list[str]) -> Path | None:
    """The folder that the command line names for the run, by hydra.run.dir."""
    named = [text for text in overrides if text.startswith("hydra.run.dir=")]
    return Path(str(parse_override(named[-1]).value())) if named else None


def restarted_checkpoint(overrides: list[str]) -> str | None:
    """The checkpoint from which a run that torchrun or SLURM has restarted is resumed; None for a new run."""
    restarted = any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    folder = named_folder(overrides)
    if not restarted or not folder:
        return None
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return None
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID")) == "0":
        print(f"Notice: this run was restarted, and resumes from {last}.", file=sys.stderr)
    return str(last)


def resume(ckpt_path: str, settings: Train, config: dict[str, Any], named: Path | None) -> Path:
    """Set the checkpoint file and the folder of its run on the command line, and return the folder.

    Args:
        ckpt_path: a file, or `last`.
        settings: the configuration.
        config: the same, as a run writes it.
        named: the folder that is named for the run.
    """
    if ckpt_path == "last":
        checkpoint = find_last(settings, config, named)
    else:
        checkpoint = Path(ckpt_path)
        last = checkpoint / "checkpoints" / "last.ckpt"
        if last.is_file():
            raise AiraError(f"ckpt_path={checkpoint} is the folder of a run: {quoted_override('ckpt_path', last)}.")
        if not checkpoint.is_file():
            raise AiraError(
                f"ckpt_path={checkpoint}: there is no such file.{nearest_path(checkpoint)} `ckpt_path=last` looks for "
                "the newest run."
            )
        problem = _find_damage(checkpoint, settings.trainer)
        if problem:
            raise _damage_error(checkpoint, problem)
    run = run_folder(checkpoint)
    steps = _finished(run, settings.trainer)
    if steps:
        print(
            f"{run} is finished, after {steps} steps: nothing is left to do. Its metrics are in metrics.json, its "
            f"model is in export/. To train it for longer, raise trainer.max_steps or max_epochs, with "
            f"{quoted_override('ckpt_path', checkpoint)}."
        )
        sys.exit(0)
    sys.argv = [arg for arg in sys.argv if not arg.startswith("ckpt_path=")]
    sys.argv.append(override("ckpt_path", checkpoint.resolve()))
    if (run / ".hydra").is_dir() and not any(arg.startswith("hydra.run.dir=") for arg in sys.argv):
        sys.argv.append(override("hydra.run.dir", run))
    return run


def _finished(run: Path, trainer: Trainer) -> int:
    """The steps of a run that has finished and has an export; otherwise 0."""
    metrics = read_json(run / "metrics.json") or {}
    if not metrics or export_problem(run / "export"):
        return 0
    by_steps = trainer.max_steps > 0
    done, limit = ("steps", trainer.max_steps) if by_steps else ("epochs", trainer.max_epochs)
    return int(metrics.get("steps", 0)) if metrics.get(done, 0) >= limit else 0
