"""Weights & Biases: a logger that never asks and never stops a run, and the lineage of what runs make."""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from aira.environment import environment
from aira.files import content_hash, run_of_export, without_home
from aira.parts import Part, RunEnd, RunStart
from aira.tracking.login import online

CONNECTING = 30
"""Seconds until Weights & Biases is taken to be out of reach."""


class Wandb(WandbLogger, Part):
    """Lightning's logger of Weights & Biases, with what a run was made from and what it made: their lineage.

    Args:
        upload_export: the weights of exports too; else their check sums, which is enough for the lineage.
    """

    def __init__(self, upload_export: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.upload_export = upload_export

    def on_export(self, run: RunEnd) -> None:
        """Log the inputs and the export of the run, and its final metrics, which the table of runs shows."""
        self.log_input("model", run.settings.model.path)
        self.log_input("dataset", run.data.path, run.data.key)
        self.log_export(run.folder)
        self.experiment.summary.update(run.metrics)

    def on_evaluation(self, folder: Path, suite: str, models: list[str]) -> None:
        """Log which models were evaluated, and the files with their results."""
        for path in models:
            self.log_input("model", path)
        self.log_files(f"evaluation-{suite}", "evaluation", folder, sorted(folder.glob("*/results.json")))

    @rank_zero_only
    def log_input(self, kind: str, path: str, key: str | None = None) -> None:
        """Log a model or a data set as an input of the run.

        Args:
            kind: `model` or `dataset`.
            path: an export of Aira's is the artifact that its own run logged; for all else only the name is logged.
            key: changes when the content does.
        """
        run = run_of_export(path) if kind == "model" else None
        if run:
            artifact = self._export(run)
        else:
            artifact = wandb.Artifact(artifact_name(without_home(path)), kind)
            with artifact.new_file("source.json") as file:
                json.dump({"path": without_home(path), "key": key}, file)
        with self._warn_on_error():
            if self.experiment.offline:  # where `use_artifact` is refused; this is what it does for a new artifact
                self.experiment._log_artifact(artifact, is_user_created=True, use_after_commit=True)
            else:
                self.experiment.use_artifact(artifact)

    @rank_zero_only
    def log_export(self, run: Path) -> None:
        """Log the export in the run's folder as its output."""
        with self._warn_on_error():
            self.experiment.log_artifact(self._export(run))

    @rank_zero_only
    def log_files(self, name: str, kind: str, folder: Path, files: Iterable[Path]) -> None:
        """Log files in the run's folder as its output."""
        artifact = wandb.Artifact(artifact_name(name), kind)
        for file in files:
            artifact.add_file(str(file), name=str(file.relative_to(folder)), policy="immutable")
        with self._warn_on_error():
            self.experiment.log_artifact(artifact)

    def _export(self, run: Path) -> wandb.Artifact:
        """The same artifact for the same export, whichever run logs it; its card may still change."""
        artifact = wandb.Artifact(artifact_name(f"{run.parent.name}-{run.name}"), "model")
        for file in sorted((run / "export").iterdir()):
            if file.suffix == ".safetensors" and not self.upload_export:
                with artifact.new_file(f"{file.name}.sha256") as sums:
                    sums.write(content_hash([file]))
            elif file.name != "README.md":
                artifact.add_file(str(file), name=file.name, policy="immutable")  # not copied to a staging area
        return artifact

    @contextlib.contextmanager
    def _warn_on_error(self) -> Iterator[None]:
        try:
            yield
        except wandb.errors.Error as error:
            warnings.warn(f"Weights & Biases did not take an artifact, and the run goes on: {error}", stacklevel=3)


def artifact_name(text: str) -> str:
    """A name that Weights & Biases takes for an artifact: of ASCII's letters and digits, and not too long."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-")[-100:] or "unnamed"


class WandbRun(Part):
    """A Weights & Biases run; offline where there is no login or no connection, never a prompt.

    `wandb sync` uploads an offline run later. All that it needs is in the run's folder, and what the client would tell
    of the machine, its user and its folders is left out: `aira.environment` has what matters.

    Args:
        project, group, tags: as Weights & Biases has them.
        upload_export: see `Wandb`.
    """

    def __init__(self, project: str, group: str | None, tags: list[str], upload_export: bool) -> None:
        self.start = partial(Wandb, upload_export, project=project, group=group, tags=tags)

    def begin(self, run: RunStart) -> Wandb:
        """Start it, with the configuration and the environment."""
        config = json.loads(without_home(json.dumps({**run.config, "environment": environment()}, default=str)))
        start = partial(self.start, name=run.folder.name, save_dir=run.folder, config=config)
        os.environ.setdefault("WANDB_DATA_DIR", str(run.folder / "wandb"))  # of files that wait to be uploaded
        private: dict[str, Any] = {"x_disable_meta": True, "x_disable_machine_info": True, "disable_git": True}
        mode = os.environ.get("WANDB_MODE", "online" if online() else "offline")
        started = start(mode=mode, settings=wandb.Settings(init_timeout=CONNECTING, **private))
        try:
            _ = started.experiment  # connects, on rank 0
        except wandb.errors.Error as error:
            warnings.warn(
                f"Weights & Biases goes on offline, `wandb sync` uploads the run later: {error}", stacklevel=2
            )
            started = start(mode="offline", settings=wandb.Settings(**private))
        return started
