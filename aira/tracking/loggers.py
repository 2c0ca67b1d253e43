"""Loggers of Lightning that write into the run's folder."""

from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from aira.errors import AiraError


def csv(run: Path) -> CSVLogger:
    """`logs/version_<n>/metrics.csv` in the run's folder; a run that is gone on with adds a version."""
    return CSVLogger(run, name="logs", flush_logs_every_n_steps=1)  # who watches a run reads it while it trains


def tensorboard(run: Path) -> TensorBoardLogger:
    """`tensorboard/` in the run's folder.

    Raises:
        AiraError: TensorBoard is not installed.
    """
    try:
        return TensorBoardLogger(run, name="tensorboard", version="")
    except ModuleNotFoundError as error:
        raise AiraError("logger=tensorboard needs TensorBoard: pip install -e '.[tensorboard]'.") from error
