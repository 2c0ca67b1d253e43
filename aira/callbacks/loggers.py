"""Loggers of Lightning, set up so that they need no answer from a terminal and lose nothing."""

import os
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, WandbLogger


def csv(run: Path) -> CSVLogger:
    """`logs/version_<n>/metrics.csv` in the run's folder; a run that is gone on with adds a version."""
    return CSVLogger(run, name="logs")


def wandb(run: Path, project: str, group: str | None, tags: list[str]) -> WandbLogger:
    """A Weights & Biases run; offline where there is no login (`wandb sync` uploads it later), never a prompt."""
    import wandb as client

    logged_in = bool(os.environ.get("WANDB_API_KEY") or client.api.api_key)
    mode = os.environ.get("WANDB_MODE", "online" if logged_in else "offline")
    return WandbLogger(name=run.name, save_dir=run, project=project, group=group, tags=tags, mode=mode)
