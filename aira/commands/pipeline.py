"""`aira pipeline`: fine-tuning, scorers, rejection sampling, DPO, evaluation and report in one command.

A stage is one of Aira's commands in a process of its own, with a folder of its own. One whose result is there for the
same overrides and the same results of the stages before it is not run again; a training run goes on where it stopped.
What stands behind ` -- ` is for every training run: aira pipeline pipeline=sample -- trainer=gpu logger=wandb
"""

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aira.commands.shell import command
from aira.config.compose import compose_config, compose_settings
from aira.config.schema import Pipeline
from aira.errors import AiraError, nearest
from aira.files import check_writable, locked, override, read_json, write_whole
from aira.folders import LOCK
from aira.trials import run_process, run_trial

COMMANDS = ("train", "evaluate", "rejection_sampling", "report")
"""The commands that a stage can be: modules of `aira.commands`, whose configurations have the same names."""


@dataclass
class Stage:
    """One command, ready to run."""

    name: str
    command: str
    overrides: list[str]
    folder: Path
    key: str  # changes with the overrides, and with those of the stages whose results it reads
    minutes: float | None  # on two cores, where it was measured

    @property
    def marker(self) -> Path:
        """The file that says that the stage is done, and which one it was."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def done(self) -> bool:
        """Whether its result is there."""
        return bool((read_json(self.marker) or {}).get("key") == self.key)


@command("pipeline")
def main() -> None:
    """Compose conf/pipeline.yaml with the command line, and run what is missing."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    settings = compose_settings(Pipeline, sys.argv[1:cut])
    chain = stages(settings, sys.argv[cut + 1 :])
    show(chain, Path(settings.output))
    if not settings.dry_run:
        output = Path(settings.output).resolve()
        check_writable("output", str(output))
        output.mkdir(parents=True, exist_ok=True)
        with locked(output / LOCK, output):
            for stage in chain:
                run(stage)
        print(f"\nDone: {chain[-1].folder}/")


def stages(settings: Pipeline, shared: Sequence[str] = ()) -> list[Stage]:
    """The stages of a configuration, each override checked.

    Args:
        settings: of conf/pipeline.yaml.
        shared: overrides of every training run.

    Raises:
        AiraError: a stage is skipped that does not exist, or an override of one is wrong.
    """
    given, output = settings.pipeline.stages, Path(settings.output).resolve()
    for name in settings.skip:
        if name not in given:
            raise AiraError(f"skip: there is no stage {name}. {nearest(name, given)}")
    found: dict[str, Stage] = {}
    for name, described in given.items():
        if name in settings.skip:
            continue
        if described.command not in COMMANDS:
            raise AiraError(f"{name}: there is no command {described.command}. {nearest(described.command, COMMANDS)}")
        overrides = list(described.overrides)
        if described.models:
            models = ",".join(f"{{{model}}}" for model in described.models if model in found)
            overrides.append(f"models=[{models}]")
        # what would be taken from a skipped stage is left out
        overrides = [text for text in overrides if not set(re.findall(r"{(\w+)}", text)) & set(settings.skip)]
        if described.command != "report" and not any(text.startswith("experiment=") for text in overrides):
            overrides.append(f"language={settings.language.code}")
        overrides += shared if described.command == "train" else []
        needed = sorted({before for text in overrides for before in re.findall(r"{(\w+)}", text)} & set(found))
        needed = needed or list(found) * (described.command == "report")
        told = json.dumps([described.command, overrides, [found[before].key for before in needed]])
        places = {"output": str(output), **{before: str(stage.folder) for before, stage in found.items()}}
        stage = Stage(
            name,
            described.command,
            [_filled(text, places) for text in overrides],
            output / name,
            hashlib.sha256(told.encode()).hexdigest(),
            described.minutes,
        )
        compose_config(
            stage.command,
            stage.overrides + [override("output", stage.folder)] * (stage.command not in ("train", "evaluate")),
        )
        found[name] = stage
    return list(found.values())


def _filled(text: str, places: dict[str, str]) -> str:
    """An override with the folders of the stages that it names, quoted where need be; other braces are the user's."""

    def fill(found: re.Match[str]) -> str:
        bare = found[0].strip("'")
        filled = re.sub(r"{(\w+)}", lambda name: places.get(name[1], name[0]), bare)
        value = override("folder", filled).partition("=")[2]
        return found[0] if filled == bare else value if found[0] == bare or value[0] == "'" else f"'{value}'"

    return re.sub(r"'[^']*'|{\w+}[\w./-]*", fill, text)


def show(chain: list[Stage], output: Path) -> None:
    """The plan: each stage, whether it is there, and what the rest is expected to take."""
    for stage in chain:
        minutes = "" if stage.minutes is None else f"about {stage.minutes:g} min"
        print(f"{stage.name:20} {'done' if stage.done else minutes or 'time not known':16} {' '.join(stage.overrides)}")
    left = [stage for stage in chain if not stage.done]
    known = [stage.minutes for stage in left if stage.minutes is not None]
    existing = next(folder for folder in [output.resolve(), *output.resolve().parents] if folder.exists())
    used = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(
        f"{len(left)} of {len(chain)} stages are left"
        + (f", about {sum(known):.0f} min on two cores" if known and len(known) == len(left) else "")
        + f"; {output} holds {used / 1e9:.2f} GB, and {shutil.disk_usage(existing).free / 1e9:.0f} GB are free.\n"
        "A training run takes 40 bytes a parameter for its checkpoints and its export."
    )


def run(stage: Stage) -> None:
    """Run a stage whose result is not there; what is there of another one is moved aside.

    Raises:
        AiraError: it failed.
    """
    if stage.done:
        return
    started, begun = time.time(), stage.folder / "stage.json"
    told = json.dumps({"key": stage.key, "overrides": stage.overrides}, indent=2)
    if stage.folder.exists() and not begun.exists():
        raise AiraError(
            f"{stage.folder} is there, and was not made by a pipeline. Name another folder: output=<folder>."
        )
    if stage.folder.exists() and (read_json(begun) or {}).get("key") != stage.key:
        aside = stage.folder.with_name(".old")
        aside.mkdir(exist_ok=True)
        number = next(n for n in range(1, 10**6) if not (aside / f"{stage.name}-{n}").exists())
        stage.folder.rename(aside / f"{stage.name}-{number}")
    stage.marker.unlink(missing_ok=True)
    write_whole(begun, told)
    print(f"\n== {stage.name}", flush=True)
    if stage.command == "train":
        fine = run_trial(stage.overrides, stage.folder, str(Path.cwd()), "seconds") is not None
    else:
        where = {
            # the folder is this stage's: see stage.json
            "evaluate": [override("hydra.run.dir", stage.folder), "overwrite=true"],
            "rejection_sampling": [override("output", stage.folder)],
            "report": [override("output", stage.folder / "report.html")],
        }
        command = [sys.executable, "-m", f"aira.commands.{stage.command}", *stage.overrides, *where[stage.command]]
        fine = run_process(command, str(Path.cwd())) == 0
    if not fine:
        raise AiraError(f"The stage {stage.name} failed; the reason stands above. The same command goes on from there.")
    told = json.dumps(
        {"key": stage.key, "overrides": stage.overrides, "seconds": round(time.time() - started, 1)}, indent=2
    )
    write_whole(stage.marker, told + "\n")


if __name__ == "__main__":
    main()
