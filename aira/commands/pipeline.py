"""`aira pipeline`: fine-tuning, scorers, rejection sampling, DPO, evaluation and report in one command.

A stage is one of Aira's commands in a process of its own, with a folder of its own. A stage that is done is not run
again, unless its overrides or those of a stage that it reads from have changed; a training run is resumed where it
stopped. Overrides after ` -- ` are for every training run: aira pipeline pipeline=sample -- trainer=gpu logger=wandb
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
from aira.files import acquire_lock, check_writable, override, read_json, write_atomically
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
    key: str  # depends on the overrides, and on those of the stages whose results it reads
    minutes: float | None  # on two cores; None if it was not measured

    @property
    def marker(self) -> Path:
        """The file that marks the stage as done, with its key."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def done(self) -> bool:
        """Whether the stage is done."""
        return bool((read_json(self.marker) or {}).get("key") == self.key)


@command("pipeline")
def main() -> None:
    """Compose conf/pipeline.yaml with the command line, and run the stages that are not done."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    settings = compose_settings(Pipeline, sys.argv[1:cut])
    chain = build_stages(settings, sys.argv[cut + 1 :])
    print_plan(chain, Path(settings.output))
    if not settings.dry_run:
        output = Path(settings.output).resolve()
        check_writable("output", str(output))
        output.mkdir(parents=True, exist_ok=True)
        with acquire_lock(output / LOCK, output):
            for stage in chain:
                run(stage)
        print(f"\nDone: {chain[-1].folder}/")


def build_stages(settings: Pipeline, shared: Sequence[str] = ()) -> list[Stage]:
    """The stages of a configuration, each override checked.

    Args:
        settings: of conf/pipeline.yaml.
        shared: overrides of every training run.

    Raises:
        AiraError: a stage is skipped that does not exist, or an override of one is wrong.
    """
    specs, output = settings.pipeline.stages, Path(settings.output).resolve()
    for name in settings.skip:
        if name not in specs:
            raise AiraError(f"skip: there is no stage {name}. {nearest(name, specs)}")
    stages: dict[str, Stage] = {}
    for name, spec in specs.items():
        if name in settings.skip:
            continue
        if spec.command not in COMMANDS:
            raise AiraError(f"{name}: there is no command {spec.command}. {nearest(spec.command, COMMANDS)}")
        overrides = list(spec.overrides)
        if spec.models:
            models = ",".join(f"{{{model}}}" for model in spec.models if model in stages)
            overrides.append(f"models=[{models}]")
        # overrides that refer to a skipped stage are left out
        overrides = [text for text in overrides if not set(re.findall(r"{(\w+)}", text)) & set(settings.skip)]
        if spec.command != "report" and not any(text.startswith("experiment=") for text in overrides):
            overrides.append(f"language={settings.language.code}")
        overrides += shared if spec.command == "train" else []
        repeated = {text.partition("=")[0] for text in spec.overrides} & {text.partition("=")[0] for text in shared}
        if spec.command == "train" and "method" in repeated:
            raise AiraError("method= belongs to each stage, and what stands behind -- is for all. Leave it out.")
        needed = sorted({before for text in overrides for before in re.findall(r"{(\w+)}", text)} & set(stages))
        needed = needed or list(stages) * (spec.command == "report")
        identity = json.dumps([spec.command, overrides, [stages[before].key for before in needed]])
        folders = {"output": str(output), **{before: str(stage.folder) for before, stage in stages.items()}}
        stage = Stage(
            name,
            spec.command,
            [_fill_folders(text, folders) for text in overrides],
            output / name,
            hashlib.sha256(identity.encode()).hexdigest(),
            spec.minutes,
        )
        compose_config(
            stage.command,
            stage.overrides + [override("output", stage.folder)] * (stage.command not in ("train", "evaluate")),
        )
        stages[name] = stage
    return list(stages.values())


def _fill_folders(text: str, folders: dict[str, str]) -> str:
    """An override with the folders of the stages that it names, quoted if need be; other braces are unchanged."""

    def fill(match: re.Match[str]) -> str:
        bare = match[0].strip("'")
        filled = re.sub(r"{(\w+)}", lambda name: folders.get(name[1], name[0]), bare)
        value = override("folder", filled).partition("=")[2]
        return match[0] if filled == bare else value if match[0] == bare or value[0] == "'" else f"'{value}'"

    return re.sub(r"'[^']*'|{\w+}[\w./-]*", fill, text)


def print_plan(chain: list[Stage], output: Path) -> None:
    """Print each stage, whether it is done, and the time that the rest is expected to take."""
    for stage in chain:
        minutes = "" if stage.minutes is None else f"about {stage.minutes:g} min"
        print(f"{stage.name:20} {'done' if stage.done else minutes or 'time not known':16} {' '.join(stage.overrides)}")
    left = [stage for stage in chain if not stage.done]
    minutes_left = [stage.minutes for stage in left if stage.minutes is not None]
    existing = next(folder for folder in [output.resolve(), *output.resolve().parents] if folder.exists())
    used = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(
        f"{len(left)} of {len(chain)} stages are left"
        + (
            f", about {sum(minutes_left):.0f} min on two cores"
            if minutes_left and len(minutes_left) == len(left)
            else ""
        )
        + f"; {output} holds {used / 1e9:.2f} GB, and {shutil.disk_usage(existing).free / 1e9:.0f} GB are free.\n"
        "A training run takes 40 bytes a parameter for its checkpoints and its export."
    )


def run(stage: Stage) -> None:
    """Run a stage that is not done; the folder of an earlier one with another key is moved aside.

    Raises:
        AiraError: it failed.
    """
    if stage.done:
        return
    started, stage_file = time.time(), stage.folder / "stage.json"
    record = {"key": stage.key, "overrides": stage.overrides}
    if stage.folder.exists() and not stage_file.exists():
        raise AiraError(f"{stage.folder} exists, and was not made by a pipeline. Name another folder: output=<folder>.")
    if stage.folder.exists() and (read_json(stage_file) or {}).get("key") != stage.key:
        aside = stage.folder.with_name(".old")
        aside.mkdir(exist_ok=True)
        number = next(n for n in range(1, 10**6) if not (aside / f"{stage.name}-{n}").exists())
        stage.folder.rename(aside / f"{stage.name}-{number}")
    stage.marker.unlink(missing_ok=True)
    write_atomically(stage_file, json.dumps(record, indent=2))
    print(f"\n== {stage.name}", flush=True)
    if stage.command == "train":
        succeeded = run_trial(stage.overrides, stage.folder, str(Path.cwd()), "seconds") is not None
    else:
        output = {
            # the folder is this stage's, by its stage.json
            "evaluate": [override("hydra.run.dir", stage.folder), "overwrite=true"],
            "rejection_sampling": [override("output", stage.folder)],
            "report": [override("output", stage.folder / "report.html")],
        }
        command = [sys.executable, "-m", f"aira.commands.{stage.command}", *stage.overrides, *output[stage.command]]
        succeeded = run_process(command, str(Path.cwd())) == 0
    if not succeeded:
        raise AiraError(f"The stage {stage.name} failed; the reason is printed above. The same command resumes there.")
    seconds = round(time.time() - started, 1)
    write_atomically(stage.marker, json.dumps({**record, "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
