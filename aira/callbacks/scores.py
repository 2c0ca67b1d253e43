"""A scorer's scores of held-out texts: the highest, the lowest, and the pairs that are ranked wrongly."""

from typing import Any

import numpy as np
import pytorch_lightning as pl

from aira.data.labels import is_toxic
from aira.data.module import DataModule
from aira.data.turns import Message
from aira.files import write_atomically
from aira.parts import Part, RunEnd, RunStart, log_table

MAX_CHARACTERS = 60
"""Characters of a text on the console; loggers get the whole text."""


class Scores(pl.Callback, Part):
    """Logs a table of validation texts after each validation, and prints it at the end.

    `scores.csv` has all scores of the last validation.

    Args:
        count: number of texts of each sort: highest, lowest, and (for pairs) wrongly ranked, the worst first.
    """

    head = "score"

    def __init__(self, count: int) -> None:
        self.count = count

    def begin(self, run: RunStart) -> "Scores":
        """Take the folder of the run."""
        self.folder = run.folder
        return self

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Log the table."""
        if trainer.is_global_zero and trainer.state.fn == "fit":
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._write(module, data)
            columns = ["sort", "score", "prompt", "text"]
            log_table(trainer.loggers, "scores", columns, self.table(module, data), trainer.global_step)

    def finish(self, run: RunEnd) -> dict[str, float]:
        """Print the table of the last validation."""
        if hasattr(run.module, "scores"):
            print("\nHeld-out texts by score:")
            for sort, score, _, text in self.table(run.module, run.data):
                short = text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
                print(f"  {sort:18} {score:8.3f}  {' '.join(short.split())}")
        return {}

    def _write(self, module: Any, data: DataModule) -> None:
        """Write the example, branch, class (-1 if there is none) and score of every text."""
        labels = data.validation.labels_of(module.indices)
        lines = ["row,branch,label,score"]
        for row, of_row, scores in zip(module.indices, labels, module.scores, strict=True):
            for branch, score in enumerate(scores):
                lines.append(f"{row},{branch},{int(is_toxic(of_row[branch])) if of_row else -1},{score:.6g}")
        write_atomically(self.folder / "scores.csv", "\n".join([*lines, ""]))

    def table(self, module: Any, data: DataModule) -> list[list[Any]]:
        """Rows of sort, score, prompt and text; for wrongly ranked pairs, chosen and rejected follow each other."""
        indices, scores = module.indices, module.scores
        branches = scores.shape[1]
        order = np.argsort(-scores.flatten(), kind="stable")
        places = [("highest", place) for place in order[: self.count]]
        places += [("lowest", place) for place in order[::-1][: self.count]]
        if branches == 2:
            difference = scores[:, 0] - scores[:, 1]
            wrong = [i for i in np.argsort(difference, kind="stable")[: self.count] if difference[i] <= 0]
            names = ("ranked too low", "ranked too high")
            places += [(name, i * 2 + side) for i in wrong for side, name in enumerate(names)]
        examples = data.examples(data.validation, [indices[place // branches] for _, place in places])
        rows = []
        for (sort, place), example in zip(places, examples, strict=True):
            *prompt, response = example.conversations[place % branches]
            rows.append([sort, float(scores.flatten()[place]), _text(prompt), response["content"]])
        return rows


def _text(messages: list[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)
