"""Training speed and memory."""

import resource
from typing import Any

import pytorch_lightning as pl
import torch

from aira.data.batches import Batch
from aira.methods.base import Method
from aira.parts import Part, RunEnd


class Throughput(pl.Callback, Part):
    """Logs tokens and examples a second, over all ranks, and the peak memory of rank 0 in GiB.

    Tokens are those that the model reads: in a packed tree the shared prefix once and each branch, in an encoder's rows
    each whole branch; padding and filler rows do not count. The time of a step is from the end of the step before it to
    its own end, including the wait for data, but not validation, samples and checkpoints; see `Method.step_seconds`.
    """

    def __init__(self) -> None:
        self.tokens = self.examples = 0
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, for a resumed run."""
        return {name: getattr(self, name) for name in ("tokens", "examples", "seconds")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums."""
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
            module.log_dict({f"perf/{name}": value for name, value in self.averages().items()})

    def finish(self, run: RunEnd) -> dict[str, float]:
        """The averages."""
        return {f"perf/{name}": value for name, value in self.averages().items()}

    def averages(self) -> dict[str, float]:
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
