"""The LightningDataModule: splits, the plan of a run, and the rows of each step."""

import contextlib
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from aira.config.schema import Mixed
from aira.data.batches import Batch, BatchSource, needs_equal_rows
from aira.data.cells import pick, reachable
from aira.data.labels import is_toxic, named_classes
from aira.data.plan import Plan, Step
from aira.data.schemas import (
    SCHEMAS,
    Example,
    cell_key,
    described,
    last_key,
    mapped_columns,
    prompt_key,
    read_example,
)
from aira.data.sources import Source, read
from aira.data.texts import BadRow
from aira.data.tokenize import encode, separator_id, tokenize, usable
from aira.data.trees import Row, Tree, pack, pad
from aira.errors import AiraError

TEXTS = {"text", "harmless", "harmful"}
"""Columns of lone texts."""


class Part(NamedTuple):
    """One source of a split: its rows, as they are read and as they are encoded."""

    path: str
    columns: dict[str, Any]  # see `aira.data.schemas.mapped_columns`
    rows: Dataset
    encoded: Dataset
    usable: np.ndarray  # indices of usable examples in `encoded`


class Split:
    """The usable examples of one split, of one source or several."""

    reference: np.ndarray | None = None
    """[examples, branches] log-probs by the reference model, for methods that need them."""

    def __init__(self, parts: Sequence[Part], index: np.ndarray | None = None) -> None:
        self.parts = parts
        self.encoded = concatenate_datasets([part.encoded for part in parts]) if len(parts) > 1 else parts[0].encoded
        self.starts = np.cumsum([0, *(len(part.encoded) for part in parts)])
        usable = [start + part.usable for start, part in zip(self.starts, parts)]
        self.index: np.ndarray = np.concatenate(usable) if index is None else index
        self.lengths, self.tokens, self.targets, self.cut = map(self._column, ("length", "tokens", "targets", "cut"))
        self.prompts = np.stack([self._column("prompt"), self._column("last")])  # [2, examples]

    def __len__(self) -> int:
        return len(self.index)

    def _column(self, name: str) -> np.ndarray:
        values: np.ndarray = self.encoded.data.column(name).to_numpy()[self.index]
        return values

    def sources_of(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The sources that examples come from, as numbers."""
        sources: np.ndarray = np.searchsorted(self.starts, np.asarray(indices), side="right") - 1
        return sources

    def rows_of(self, indices: Sequence[int] | np.ndarray) -> list[int]:
        """The rows of their sources that examples come from."""
        rows: list[int] = self.encoded[np.asarray(indices).tolist()]["row"]
        return rows

    def of_sources(self) -> list["Split"]:
        """The split as one of each source that has usable examples."""
        sources = self.sources_of(self.index)
        present = np.unique(sources)
        return [self] if len(present) == 1 else [self.select(np.flatnonzero(sources == i)) for i in present]

    @property
    def labels(self) -> np.ndarray:
        """[examples, branches] labels of labelled texts: the probability that each is toxic."""
        return np.stack(list(self._column("labels")))

    def labels_of(self, indices: np.ndarray) -> list[list[float]]:
        """The labels of examples; empty for one of a kind without labels."""
        labels: list[list[float]] = self.encoded[indices.tolist()]["labels"]
        return labels

    def select(self, chosen: np.ndarray) -> "Split":
        """The split with only some of its usable rows."""
        selected = Split(self.parts, self.index[chosen])
        selected.reference = None if self.reference is None else self.reference[chosen]
        return selected


class _Steps:
    """The data set of the DataLoader, indexed with a `Step` of the plan."""

    def __init__(self, split: Split, pad_id: int, separator_id: int | None, padded: bool) -> None:
        self.split, self.pad_id, self.separator_id, self.padded = split, pad_id, separator_id, padded

    def __getitem__(self, step: Step) -> Batch:
        rows = [self._row(indices) for indices in step.rows]
        indices = [int(self.split.index[i]) for row in step.rows[: step.real_rows] for i in row]
        return Batch(rows, indices, step.number, step.real_rows, step.examples, step.tokens, step.input_tokens)

    def _row(self, indices: Sequence[int]) -> Row:
        encoded = self.split.encoded[[int(self.split.index[i]) for i in indices]]
        trees = [Tree(*tree) for tree in zip(encoded["branches"], encoded["scored"], strict=True)]
        row = pad(trees, self.pad_id, self.separator_id) if self.padded else pack(trees)
        reference = self.split.reference
        return row._replace(
            labels=torch.tensor([label for labels in encoded["labels"] for label in labels]),
            margin=torch.tensor(encoded["margin"]),
            reference=None if reference is None else torch.from_numpy(reference[list(indices)]).flatten(),
        )


class DataModule(BatchSource):
    """Data of one kind: tokenized, split, and batched by a plan made from the lengths of its examples.

    Args:
        tokenizer: with the chat template that training uses.
        kind: `instruction`, `preference`, `labelled` or `harmful`; see `aira.data.schemas.SCHEMAS`.
        head: `lm` or `score`: what the model computes, and so how a text is encoded.
        loss_on: `completion`, `response` or `all`; see `aira.data.tokenize.encode`.
        ends: ids that end an answer, besides the tokenizer's own.
        padded: rows for an encoder instead of packed trees.
        seed: of the held-out part and of the order of examples.
        The other arguments are the keys of conf/data/_base.yaml.

    Raises:
        AiraError: the source cannot be read, its columns do not fit, or no row is usable.
    """

    train: Split
    validation: Split

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        kind: str,
        path: str,
        head: str = "lm",
        split: str = "train",
        validation_split: str = "validation",
        validation_fraction: float = 0.05,
        revision: str | None = None,
        columns: dict[str, Any] | None = None,
        labels: Mapping[str, int | None] | None = None,
        exclude: Sequence[str] = (),
        max_examples: int | None = None,
        max_length: int = 600,
        loss_on: str = "completion",
        ends: Sequence[int] = (),
        batch_size: int = 16,
        tokens_per_row: int = 1024,
        num_workers: int = 0,
        num_proc: int = 1,
        consecutive_turns: str = "keep",
        padded: bool = False,
        seed: int = 0,
        cache_dir: str = "~/.cache/aira",
        mix: Sequence[Mixed] = (),
        mix_by: str = "passes",
    ) -> None:
        super().__init__()
        self.tokenizer, self.kind, self.columns, self.labels = tokenizer, kind, columns, labels
        self.padded, self.seed, self.mix_by = padded, seed, mix_by
        self.batch_size, self.tokens_per_row, self.num_workers = batch_size, tokens_per_row, num_workers
        self.mix = list(mix) or [
            Mixed(
                path=path,
                split=split,
                validation_split=validation_split,
                revision=revision,
                max_examples=max_examples,
                columns=columns,
            )
        ]
        sources = [read(one.path, revision=one.revision, cache_dir=cache_dir) for one in self.mix]
        self.path = " + ".join(one.path for one in self.mix)
        self.key = "-".join(source.key for source in sources)
        self.notices = [line for source in sources for line in source.notices]
        self.layouts = layouts = list[str]()
        excluded = self._excluded_keys(exclude, cache_dir)

        def load(one: Mixed, source: Source, name: str) -> Part:
            rows = source.split(name)
            if name == one.split and one.max_examples is not None:
                rows = rows.select(range(min(one.max_examples, len(rows))))
            encoded = tokenize(
                rows,
                tokenizer,
                kind=kind,
                source=f"{one.path} ({name})",
                key=f"{source.key}-{name}-{len(rows)}",
                columns=one.columns,
                labels=labels,
                max_length=max_length,
                loss_on=loss_on,
                head=head,
                padded=padded,
                cache_dir=cache_dir,
                parts=source.parts.get(name, ()),
                num_proc=num_proc,
                consecutive=consecutive_turns,
            )
            mapping = mapped_columns(kind, rows.column_names, one.columns, one.path)
            layouts.append(f"{one.path} ({name}): {len(rows)} rows, {described(kind, rows.column_names, mapping)}.")
            index, notices = usable(encoded, f"{one.path} ({name})", source.parts.get(name, ()))
            self.notices += notices
            if not len(index):
                raise AiraError(f"No row of {one.path} ({name}) can be used. {' '.join(notices)}")
            return Part(one.path, mapping, rows, encoded, index)

        pairs = list(zip(self.mix, sources, strict=True))
        self.train = Split([load(one, source, one.split) for one, source in pairs])
        if head == "lm":
            self._check_end({*ends, tokenizer.eos_token_id} - {None})
        if exclude:
            first, last = np.isin(self.train.prompts, excluded)
            remaining = ~(first | last)
            count = np.sum(~remaining)
            self.notices.append(f"{self.path}: excluded {count} of {len(remaining)} rows by data.exclude.")
            if not remaining.any():
                raise AiraError(f"data.exclude={list(exclude)} leaves no row of {self.path}.")
            self.train = self.train.select(np.flatnonzero(remaining))
        given = [one.validation_split in source.splits and one.validation_split != one.split for one, source in pairs]
        if all(given):
            self.validation = Split([load(one, source, one.validation_split) for one, source in pairs])
            first, last = np.isin(self.validation.prompts, self.train.prompts)
            shared = first | last
            if shared.any():
                self.notices.append(
                    f"{self.path}: {shared.sum()} of {len(shared)} rows for validation have a prompt or a text that "
                    "is also trained on, so metrics on them do not show how well the model generalizes."
                )
        else:
            for (one, source), has in zip(pairs, given, strict=True):
                if has or one.validation_split not in (one.split, "validation"):
                    problem = "is not read" if has else f"is no split of it (it has: {', '.join(source.splits)})"
                    self.notices.append(
                        f"{one.path}: the validation split '{one.validation_split}' {problem}. A part of the training "
                        "rows is held out."
                    )
            held_out = self._held_out(validation_fraction)
            self.validation = self.train.select(np.flatnonzero(held_out))
            self.train = self.train.select(np.flatnonzero(~held_out))
        self.shares = self._shares()
        names, present = _names([one.path for one in self.mix]), self.validation.sources_of(self.validation.index)
        self.source_names = [names[i] for i in np.unique(present)]
        contents = [part.prompts.tobytes() + part.index.tobytes() for part in (self.train, self.validation)]
        self.rows_key = hashlib.sha256(b"-".join([self.key.encode(), *contents])).hexdigest()
        if kind in ("labelled", "harmful"):
            for name, part in (("training", self.train), ("validation", self.validation)):
                for of_source in part.of_sources():
                    (source_number,) = np.unique(of_source.sources_of(of_source.index))
                    counts = self._class_counts(of_source, of_source.parts[source_number])
                    self.notices.append(f"{self.mix[source_number].path}, {name}: {counts}.")
        if kind == "labelled" and len({is_toxic(label) for label in self.train.labels.flatten()}) < 2:
            raise AiraError(
                f"{self.path}: all training rows have the same label; a classifier needs two. Check data.labels. "
                + " ".join(self.notices)
            )

    def _shares(self) -> list[tuple[np.ndarray, int]] | None:
        """How many examples of each source an epoch has; None for one source, with one pass over it.

        Raises:
            AiraError: it has none of a source, or of more than one.
        """
        if len(self.mix) == 1 and self.mix[0].weight == 1:
            return None
        sources = self.train.sources_of(self.train.index)
        groups = [np.flatnonzero(sources == i) for i in range(len(self.mix))]
        weights = np.array([one.weight for one in self.mix])
        sizes = np.array([len(group) for group in groups])
        if not sizes.all():
            raise AiraError(f"data.mix: no row of {self.mix[int(sizes.argmin())].path} is left to train on.")
        tokens = np.array([self.train.tokens[group].mean() for group in groups])
        counts = {
            "passes": sizes * weights,
            "examples": sizes.sum() * weights / weights.sum(),
            "tokens": (sizes * tokens).sum() * weights / weights.sum() / tokens,
        }[self.mix_by]
        whole = np.maximum(1, np.round(counts)).astype(int)
        for one, size, count, each in zip(self.mix, sizes, whole, tokens, strict=True):
            self.notices.append(
                f"{one.path}: {count} of {whole.sum()} examples of an epoch ({count / size:.2f} passes over {size}), "
                f"{100 * count * each / (whole * tokens).sum():.0f} % of its tokens."
            )
        return list(zip(groups, whole.tolist(), strict=True))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last one may have fewer examples."""
        count = len(self.train) if self.shares is None else sum(count for _, count in self.shares)
        return -(-count // self.batch_size)

    def _class_counts(self, split: Split, source: Part) -> str:
        """The class that each label of a split, which is of one source, was read as, with its number of rows."""
        column = source.columns.get("label")
        classes = ["toxic" if is_toxic(label) else "harmless" for label in split.labels[:, 0]]
        if column is None:
            return f"{len(split)} pairs of a harmless and a toxic text"
        if isinstance(column, list):
            meaning = {"toxic": f"any of {', '.join(column)} is above 0", "harmless": "none of them is"}
            return "; ".join(
                f"{kind}, where {meaning[kind]}: {count}" for kind, count in Counter(classes).most_common()
            )
        names = named_classes(source.rows.features).get(column)
        cells = source.rows.select_columns(column if column in source.rows.column_names else column.split(".")[0])
        values = [pick(row, column) for row in cells.select(split.rows_of(split.index))]
        labels = [f"{cell} ({names[cell]})" if names else str(cell) for cell in values]
        counts = Counter(zip(labels, classes, strict=True)).most_common()
        return "; ".join(f"label {label} is {kind} in {count} rows" for (label, kind), count in counts)

    def _check_end(self, ends: set[int]) -> None:
        """Add a notice if an answer has no end token to be learnt; some formats end an answer with plain text."""
        (example,) = self.examples(self.train, self.train.index[:1])
        if len(example.conversations[0]) == 1:
            return  # a document, which ends with the end token
        encoded = encode(self.tokenizer, example.conversations[:1], sys.maxsize, "response", example.tools)
        if ends.isdisjoint(compress(encoded["branches"][0], encoded["scored"][0])):
            names = (
                " or ".join(map(str, self.tokenizer.convert_ids_to_tokens(sorted(ends)))) or "the tokenizer has none"
            )
            self.notices.append(
                f"{self.path}: the chat template writes no end token ({names}) after an answer, so the model will not "
                "learn to stop. Let the template write one, or set model.template=aira."
            )

    def _held_out(self, fraction: float) -> np.ndarray:
        """A mask of the training rows that are held out for validation: whole groups, so no prompt is on both sides."""
        count = len(self.train)
        if count < 2:
            raise AiraError(f"{self.path} has one usable row; training and validation need one each.")
        _, nodes = np.unique(self.train.prompts, return_inverse=True)  # of a graph whose edges are the rows
        edges = nodes.reshape(2, count)
        shape = (nodes.max() + 1,) * 2
        _, component = connected_components(coo_array((np.ones(count), (edges[0], edges[1])), shape), directed=False)
        group = component[edges[0]]
        if group.max() == 0:
            self.notices.append(f"{self.path}: all rows have the same prompt, so the held-out rows share it.")
            group = np.arange(count)
        sizes = np.bincount(group)
        order = np.random.default_rng(self.seed).permutation(len(sizes))
        chosen = order[:-1][np.cumsum(sizes[order[:-1]]) <= max(1, round(fraction * count))]  # one is left to train on
        return np.isin(group, chosen if len(chosen) else [np.argmin(sizes)])

    def _excluded_keys(self, files: Sequence[str], cache_dir: str) -> np.ndarray:
        """The keys of all rows of the files of data.exclude, which need only a column of prompts or texts."""
        keys = []
        for file in files:
            source = read(file, cache_dir=cache_dir, key="data.exclude")
            self.notices += source.notices
            for rows in source.splits.values():
                row_keys = self._row_keys(rows, file)
                keys += [key for of_row in row_keys for key in of_row]
                missing = sum(not of_row for of_row in row_keys)
                if missing == len(row_keys):
                    raise AiraError(f"data.exclude: no row of {file} has a prompt or a text. Check data.columns.")
                if missing:
                    self.notices.append(f"{file}: {missing} of {len(row_keys)} rows have no prompt or text to exclude.")
        return np.array(keys, dtype=np.int64)

    def _row_keys(self, rows: Dataset, file: str) -> list[list[int]]:
        """The keys of each row of a file, which needs no answers and no labels."""
        names = {layout.columns[0] for layout in SCHEMAS[self.kind]}
        wanted = [(self.columns or {}).get(name, name) for name in (TEXTS if names <= TEXTS else sorted(names))]
        columns = [column for column in wanted if reachable(column, rows.column_names)]
        mapping = None
        try:
            mapping = mapped_columns(self.kind, rows.column_names, self.columns, file)
        except AiraError as error:
            if not columns:
                raise AiraError(f"data.exclude: {error}") from error
        row_keys, classes = [], named_classes(rows.features)
        for row in rows:
            keys: list[int] = []
            with contextlib.suppress(BadRow, AiraError):
                if mapping:
                    example = read_example(self.kind, row, mapping, self.labels, classes)
                    keys = [prompt_key(example), last_key(example)]
            for column in () if keys else columns:
                with contextlib.suppress(BadRow):
                    keys.append(cell_key(pick(row, column)))
            row_keys.append(keys)
        return row_keys

    def examples(self, split: Split, chosen: Sequence[int] | np.ndarray) -> list[Example]:
        """Rows of a split as examples, for display or generation.

        Args:
            chosen: indices of examples, such as those of `Split.index`.
        """
        parts = [split.parts[i] for i in split.sources_of(chosen)]
        return [
            read_example(self.kind, part.rows[row], part.columns, self.labels, named_classes(part.rows.features))
            for part, row in zip(parts, split.rows_of(chosen), strict=True)
        ]

    def train_dataloader(self) -> DataLoader[Batch]:
        """The rest of the run, from the trainer's current step on; its length is that of the whole run."""
        assert self.trainer is not None
        return self._loader(self.train, steps=self.trainer.max_steps, start=self.trainer.global_step, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """One pass over the validation split, source by source."""
        loaders = [self.once(split) for split in self.validation.of_sources()]
        return loaders[0] if len(loaders) == 1 else loaders

    def once(self, split: Split) -> DataLoader[Batch]:
        """One pass over a split, in its order."""
        return self._loader(split, steps=None, start=0, shuffle=False)

    def plan(self, split: Split, shuffle: bool = True, **settings: Any) -> Plan:
        """The plan of a split, by the settings of the data and further ones of `aira.data.plan.Plan`."""
        return Plan(
            split.lengths,
            split.targets,
            batch_size=self.batch_size,
            tokens_per_row=self.tokens_per_row,
            padded=self.padded,
            shuffle=shuffle,
            seed=self.seed,
            input_tokens=split.tokens,
            shares=self.shares if shuffle else None,
            **settings,
        )

    def _loader(self, split: Split, steps: int | None, start: int, shuffle: bool) -> DataLoader[Batch]:
        assert self.trainer is not None
        plan = self.plan(
            split,
            shuffle,
            steps=steps,
            start=start,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
            equal_rows=needs_equal_rows(self.trainer),
        )
        return DataLoader(
            _Steps(split, self.tokenizer.pad_token_id or 0, separator_id(self.tokenizer), self.padded),  # type: ignore[arg-type]
            sampler=plan,
            batch_size=None,
            collate_fn=_identity,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _names(paths: Sequence[str]) -> list[str]:
    """Short names of sources, for metrics: of their files, with a number where two are equal."""
    stems = [PurePath(path.rstrip("/")).stem or path for path in paths]
    return [f"{stem}-{i}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems, start=1)]


def _identity(batch: Any) -> Any:
    return batch
