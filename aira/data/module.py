"""The LightningDataModule: splits, the plan of a run, and the rows of each step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from aira.data.plan import Plan, Step
from aira.data.schemas import SCHEMAS, Message, mapped_columns, pick
from aira.data.sources import read
from aira.data.tokenize import tokenize, usable
from aira.data.trees import Row, Tree, pack, pad
from aira.errors import AiraError


class Batch(NamedTuple):
    """One optimizer step of one rank: its rows, and the totals over all ranks that losses are normalised by."""

    rows: list[Row]
    indices: list[int]  # rows of the split that this rank's examples come from
    number: int  # of the step
    weight: float  # 0 where this rank has no share of the batch
    examples: int
    tokens: int  # scored tokens


class Split:
    """The usable rows of one split: raw for reading, encoded for training."""

    def __init__(self, rows: Dataset, encoded: Dataset, index: np.ndarray) -> None:
        self.rows, self.encoded, self.index = rows, encoded, index
        self.lengths = encoded.data.column("length").to_numpy()[index]
        self.targets = encoded.data.column("targets").to_numpy()[index]

    def __len__(self) -> int:
        return len(self.index)

    def part(self, chosen: np.ndarray) -> "Split":
        """The split with only some of its usable rows."""
        return Split(self.rows, self.encoded, self.index[chosen])


class _Steps:
    """What the DataLoader indexes with a `Step` of the plan."""

    def __init__(self, split: Split, pad_id: int, separator_id: int | None, padded: bool) -> None:
        self.split, self.pad_id, self.separator_id, self.padded = split, pad_id, separator_id, padded

    def __getitem__(self, step: Step) -> Batch:
        rows = [self._row(indices) for indices in step.rows]
        indices = [int(self.split.index[i]) for row in step.rows for i in row]
        return Batch(rows, indices, step.number, step.weight, step.examples, step.tokens)

    def _row(self, indices: Sequence[int]) -> Row:
        found = self.split.encoded[[int(self.split.index[i]) for i in indices]]
        trees = [Tree(*tree) for tree in zip(found["branches"], found["scored"], strict=True)]
        return pad(trees, self.pad_id, self.separator_id) if self.padded else pack(trees)


class DataModule(pl.LightningDataModule):
    """Data of one kind, tokenized, split and planned.

    Args:
        tokenizer: with the chat template that training is to use.
        kind: `instruction`; see `aira.data.schemas.SCHEMAS`.
        loss_on: `completion` or `all`; see `aira.data.tokenize.encode`.
        padded: rows for an encoder instead of packed trees.
        seed: of the held-out part and of the order of examples.
        The others are the keys of conf/data/_base.yaml.

    Raises:
        AiraError: the source cannot be read, its columns do not fit, or no row is usable.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind: str,
        path: str,
        split: str = "train",
        validation_split: str = "validation",
        validation_fraction: float = 0.05,
        revision: str | None = None,
        columns: dict[str, Any] | None = None,
        max_examples: int | None = None,
        max_length: int = 600,
        loss_on: str = "completion",
        batch_size: int = 16,
        tokens_per_row: int = 1024,
        num_workers: int = 0,
        num_proc: int = 1,
        padded: bool = False,
        seed: int = 0,
        cache_dir: str = "~/.cache/aira",
    ) -> None:
        super().__init__()
        self.tokenizer, self.kind, self.columns, self.padded, self.seed = tokenizer, kind, columns, padded, seed
        self.batch_size, self.tokens_per_row, self.num_workers = batch_size, tokens_per_row, num_workers
        source = read(path, revision=revision, cache_dir=cache_dir)
        self.path = path
        self.said: list[str] = []

        def load(name: str) -> Split:
            rows = source.split(name)
            if name == split and max_examples is not None:
                rows = rows.select(range(min(max_examples, len(rows))))
            encoded = tokenize(
                rows,
                tokenizer,
                kind=kind,
                source=path,
                key=f"{source.key}-{name}-{len(rows)}",
                columns=columns,
                max_length=max_length,
                loss_on=loss_on,
                cache_dir=cache_dir,
                num_proc=num_proc,
            )
            index, said = usable(encoded, f"{path} ({name})")
            self.said += said
            if not len(index):
                raise AiraError(f"No row of {path} ({name}) can be used. {' '.join(said)}")
            return Split(rows, encoded, index)

        self.train = load(split)
        if validation_split in source.splits and validation_split != split:
            self.validation = load(validation_split)
        else:
            if len(self.train) < 2:
                raise AiraError(f"{path} has one usable row; training and validation need one each.")
            held = max(1, round(validation_fraction * len(self.train)))
            order = np.random.default_rng(seed).permutation(len(self.train))
            self.validation = self.train.part(np.sort(order[:held]))
            self.train = self.train.part(np.sort(order[held:]))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training split; the last one may have fewer examples."""
        return -(-len(self.train) // self.batch_size)

    def conversations(self, split: Split, limit: int) -> list[list[Message]]:
        """The first branch of the first `limit` usable rows of a split, as messages."""
        mapping = mapped_columns(self.kind, split.rows.column_names, self.columns, self.path)
        to_conversations = SCHEMAS[self.kind][1]
        rows = (split.rows[int(i)] for i in split.index[:limit])
        return [to_conversations({name: pick(row, column) for name, column in mapping.items()})[0] for row in rows]

    def train_dataloader(self) -> DataLoader[Batch]:
        """The rest of the run, from the step that the trainer is at; its length is that of the whole run."""
        assert self.trainer is not None
        return self._loader(self.train, steps=self.trainer.max_steps, start=self.trainer.global_step, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """One pass over the validation split, in its order."""
        return self._loader(self.validation, steps=None, start=0, shuffle=False)

    def _loader(self, split: Split, steps: int | None, start: int, shuffle: bool) -> DataLoader[Batch]:
        assert self.trainer is not None
        plan = Plan(
            split.lengths,
            split.targets,
            batch_size=self.batch_size,
            tokens_per_row=self.tokens_per_row,
            padded=self.padded,
            shuffle=shuffle,
            seed=self.seed,
            steps=steps,
            start=start,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
        )
        separator = self.tokenizer.sep_token_id if "token_type_ids" in self.tokenizer.model_input_names else None
        return DataLoader(
            _Steps(split, self.tokenizer.pad_token_id or 0, separator, self.padded),  # type: ignore[arg-type]
            sampler=plan,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _as_it_is(batch: Any) -> Any:
    return batch
