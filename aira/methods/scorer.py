"""The base of the two methods that train a scorer, with metrics over all validation scores."""

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
    """A scorer: a number for each branch."""

    unit = "examples"
    indices: np.ndarray
    """[examples] row numbers in the last validation."""
    scores: np.ndarray
    """[examples, branches] scores in the last validation."""
    undefined: dict[str, str]
    """Metrics that are undefined in the last validation, with the reason."""

    def loss_of(self, scores: Tensor, row: Row) -> tuple[Tensor, Sums]:
        """The loss, summed over the row's examples, and further sums.

        Args:
            scores: [trees, branches of each].
        """
        raise NotImplementedError

    def score_metrics(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics of the whole validation set.

        Args:
            scores: [examples, branches of each].
            labels: [examples, branches] classes; no columns if the data has none.
        """
        raise NotImplementedError

    def row_loss(self, row: Row, totals: Totals) -> tuple[Tensor, Sums]:
        """Score the row's branches, and collect the scores of a validation."""
        by_tree = scores(self.model, row).reshape(int(row.tree[-1]) + 1, -1)
        if not self.training:
            self._batch_scores.append(by_tree.detach())
        return self.loss_of(by_tree, row)

    def on_validation_epoch_start(self) -> None:
        """Reset the scores."""
        super().on_validation_epoch_start()
        self.undefined = {}
        self._collected: list[tuple[list[int], list[list[float]]]] = []

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        """Collect the scores of the batch with their row numbers."""
        self._batch_scores: list[Tensor] = []
        super().validation_step(batch, index, dataloader_idx)
        if batch.real_rows:
            self._collected.append((batch.indices, torch.cat(self._batch_scores[: batch.real_rows]).tolist()))

    def validation_metrics(self) -> dict[str, float]:
        """Gather the scores of all ranks, and compute metrics over all of them.

        Raises:
            AiraError: a score is not finite.
        """
        shares: list[Any] = [self._collected]
        if self.trainer.world_size > 1:
            shares = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shares, self._collected)
        by_row = {i: values for share in shares for rows, part in share for i, values in zip(rows, part, strict=True)}
        self.indices, self.scores = np.array(list(by_row)), np.array(list(by_row.values()))
        wrong = self.indices[~np.isfinite(self.scores).all(1)]
        if len(wrong):
            raise AiraError(
                f"At step {self.trainer.global_step} the score of {len(wrong)} of {len(self.indices)} validation rows "
                f"is no number (the first is row {wrong[0] + 1}), so there are no metrics. A smaller optimizer.lr or "
                "trainer.precision=32-true may help; the checkpoint before is whole."
            )
        split = self.trainer.datamodule.validation  # type: ignore[attr-defined]
        labels = torch.tensor(split.labels_of(self.indices))
        metrics = self.score_metrics(torch.from_numpy(self.scores).float(), labels)
        for reason in dict.fromkeys(self.undefined.values()) if self.trainer.is_global_zero else ():
            names = [name for name, each in self.undefined.items() if each == reason]
            print(f"Undefined, and left out: {', '.join(f'val/{name}' for name in names)} ({reason}).")
        for name in self.undefined:  # or Lightning would keep the value of the validation before
            self.trainer.callback_metrics.pop(f"val/{name}", None)
        return super().validation_metrics() | metrics
