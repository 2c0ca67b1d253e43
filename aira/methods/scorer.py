"""What the two methods that train a scorer share: every validation score is kept, and measured as a whole."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from aira.data.batches import Batch
from aira.data.trees import Row
from aira.errors import AiraError
from aira.methods.base import Method, Sums, Totals
from aira.models.forward import scores


class Scorer(Method):
    """A number for each branch."""

    unit = "examples"
    indices: np.ndarray
    """[examples] row numbers of the last validation."""
    scores: np.ndarray
    """[examples, branches] its scores."""
    undefined: dict[str, str]
    """Metrics that the last validation does not define, with the reason."""

    def loss_of(self, scores: Tensor, row: Row) -> tuple[Tensor, Sums]:
        """The loss summed over the row's examples, and further sums.

        Args:
            scores: [trees, branches of each].
        """
        raise NotImplementedError

    def measured(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics of the whole validation set.

        Args:
            scores: [examples, branches of each].
            labels: [examples, branches] classes; no columns where the data has none.
        """
        raise NotImplementedError

    def row_loss(self, row: Row, totals: Totals) -> tuple[Tensor, Sums]:
        """Score the row's branches, and keep the scores of a validation."""
        by_tree = scores(self.model, row).reshape(int(row.tree[-1]) + 1, -1)
        if not self.training:
            self._batch.append(by_tree.detach())
        return self.loss_of(by_tree, row)

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the validation before."""
        super().on_validation_epoch_start()
        self.undefined = {}
        self._kept: list[tuple[list[int], list[list[float]]]] = []

    def validation_step(self, batch: Batch, index: int) -> None:
        """Keep which row got which scores."""
        self._batch: list[Tensor] = []
        super().validation_step(batch, index)
        if batch.real_rows:
            self._kept.append((batch.indices, torch.cat(self._batch[: batch.real_rows]).tolist()))

    def validation_metrics(self) -> dict[str, float]:
        """Bring the scores of all ranks together, and measure them as a whole.

        Raises:
            AiraError: a score is no number.
        """
        shares: list[Any] = [self._kept]
        if self.trainer.world_size > 1:
            shares = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, self._kept)
        by_row = {i: values for share in shares for rows, part in share for i, values in zip(rows, part, strict=True)}
        self.indices, self.scores = np.array(list(by_row)), np.array(list(by_row.values()))
        wrong = self.indices[~np.isfinite(self.scores).all(1)]
        if len(wrong):
            raise AiraError(
                f"At step {self.trainer.global_step} the score of {len(wrong)} of {len(self.indices)} validation rows "
                f"is no number (the first is row {wrong[0] + 1}), so nothing can be measured. A smaller optimizer.lr "
                "or trainer.precision=32-true may help; the checkpoint before is whole."
            )
        split = self.trainer.datamodule.validation  # type: ignore[attr-defined]
        labels = torch.tensor(split.labels_of(self.indices))
        metrics = self.measured(torch.from_numpy(self.scores).float(), labels)
        for why in dict.fromkeys(self.undefined.values()) if self.trainer.is_global_zero else ():
            names = [name for name, reason in self.undefined.items() if reason == why]
            print(f"Undefined, and left out: {', '.join(f'val/{name}' for name in names)} ({why}).")
        for name in self.undefined:  # Lightning would go on with what the validation before had
            self.trainer.callback_metrics.pop(f"val/{name}", None)
        return super().validation_metrics() | metrics
