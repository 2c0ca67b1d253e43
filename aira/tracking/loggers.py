"""Loggers of Lightning that write into the run's folder."""

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from aira.errors import AiraError
from aira.files import install_command
from aira.parts import Part, RunStart


class CSV(Part):
    """`logs/version_<n>/metrics.csv` in the run's folder; a run that is resumed adds a version."""

    def begin(self, run: RunStart) -> CSVLogger:
        """The logger, which writes each step at once, since who watches a run reads it while it trains."""
        return CSVLogger(run.folder, name="logs", flush_logs_every_n_steps=1)


class TensorBoard(Part):
    """`tensorboard/` in the run's folder."""

    def begin(self, run: RunStart) -> TensorBoardLogger:
        """The logger.

        Raises:
            AiraError: TensorBoard is not installed.
        """
        try:
            return TensorBoardLogger(run.folder, name="tensorboard", version="")
        except ModuleNotFoundError as error:
            raise AiraError(f"logger=tensorboard needs TensorBoard: {install_command('tensorboard')}.") from error
