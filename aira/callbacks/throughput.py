"""How fast the training is and how much memory it takes."""

import resource
from typing import Any

import pytorch_lightning as pl
import torch

from aira.data.batches import Batch
from aira.methods.base import Method
from aira.parts import Finished, Part


class Throughput(pl.Callback, Part):
    """Logs tokens and examples a second, over all ranks, and the peak memory of rank 0 in GiB.

    Counted are the tokens that the model reads: of a packed tree the shared prefix once and each branch, of an
    encoder's rows each branch whole; neither padding nor rows that are run for nothing. The time goes from the end of a
    step to the end of the next, with the wait for data, without validation, samples and checkpoints; see
    `Method.step_seconds`.
    """

    def __init__(self) -> None:
        self.tokens = self.examples = 0
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, for a run that is gone on with."""
        return {name: getattr(self, name) for name in ("tokens", "examples", "seconds")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on adding to them."""
        vars(self).update(state_dict)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Batch, index: int
    ) -> None:
        """Count the step."""
        assert isinstance(module, Method)
        self.seconds += module.step_seconds
        self.tokens += batch.input_tokens
        self.examples += batch.examples
        module.log("tokens_per_second", self.tokens / self.seconds, prog_bar=True, logger=False)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            module.log_dict({f"perf/{name}": value for name, value in self.measured().items()})

    def finish(self, run: Finished) -> dict[str, float]:
        """The averages."""
        return {f"perf/{name}": value for name, value in self.measured().items()}

    def measured(self) -> dict[str, float]:
        """Averages over the run; the memory is that of this process."""
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**30
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = max(self.seconds, 1e-9)
        return {
            "tokens_per_second": self.tokens / seconds,
            "examples_per_second": self.examples / seconds,
            "peak_memory_gib": peak,
        }
