"""The benchmarks of the published tables: where their rows come from, on the hub or on disk."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict
from lm_eval.tasks import TaskManager

from aira.data.cells import finite
from aira.data.labels import named_classes
from aira.data.rows import read_rows
from aira.data.schemas import Example, mapped_columns, prompt_key, read_example
from aira.data.sources import read
from aira.data.texts import BadRow
from aira.errors import AiraError, nearest, reason_of
from aira.files import nearest_path

Record = dict[str, Any]


class HarnessTask(NamedTuple):
    """A task of lm-evaluation-harness whose data may come from files instead of the hub."""

    hub: str
    files: Mapping[str, str]  # split -> file name
    row: Callable[[Record], Record] = dict  # from a row of the file to one of the hub's form


class ScorerTask(NamedTuple):
    """Held-out rows for reward or toxicity models."""

    purpose: str  # reward | toxicity
    kind: str  # preference | labelled
    hub: str
    file: str
    split: str = "test"
    folder: str | None = None  # of the hub's repository
    revision: str | None = None  # of it
    columns: Mapping[str, str] | None = None
    file_columns: Mapping[str, str] | None = None  # where the file names them otherwise


def _targets(row: Record) -> Record:
    """TruthfulQA's file maps each answer to 1 (true) or 0; the hub has lists of answers and labels."""
    lists = {
        name: {"choices": list(row[name]), "labels": list(row[name].values())}
        for name in ("mc1_targets", "mc2_targets")
    }
    return {"question": row["question"], **lists}


def _ratings(row: Record) -> Record:
    return {"text": row["text"], **{name: finite(row[name], name) for name in ("toxicity_ai", "toxicity_human")}}


_ARC = HarnessTask("allenai/ai2_arc", {"test": "arc_challenge_test.jsonl", "train": "arc_challenge_train.jsonl"})
_TRUTHFUL = HarnessTask("truthfulqa/truthful_qa", {"validation": "truthfulqa_mc.jsonl"}, _targets)
_TRUTHFUL_PT = HarnessTask("alexandrainst/m_truthfulqa", {"val": "m_truthfulqa_pt_val.jsonl"})

HARNESS_TASKS = {
    "arc_challenge": _ARC,
    "truthfulqa_mc1": _TRUTHFUL,
    "truthfulqa_mc2": _TRUTHFUL,
    "toxigen": HarnessTask("skg/toxigen-data", {"test": "toxigen_annotated_train.csv"}, _ratings),
    "arc_pt": HarnessTask("alexandrainst/m_arc", {"test": "m_arc_pt_test.jsonl", "train": "m_arc_pt_train.jsonl"}),
    "truthfulqa_pt_mc1": _TRUTHFUL_PT,
    "truthfulqa_pt_mc2": _TRUTHFUL_PT,
    "wikitext": HarnessTask("EleutherAI/wikitext_document_level", {"test": "wikitext_test.jsonl"}),
}

_HATECHECK = {"text": "test_case", "label": "label_gold"}
SAMPLE = "pkg://aira.data/sample/"

SCORER_TASKS = {
    "webgpt": ScorerTask(
        "reward",
        "preference",
        "openai/webgpt_comparisons",
        "webgpt_comparisons.jsonl",
        "train",
        revision="refs/convert/parquet",
    ),
    "hh_harmless": ScorerTask(
        "reward", "preference", "Anthropic/hh-rlhf", "hh_rlhf_harmless_base_test.jsonl", folder="harmless-base"
    ),
    "hh_helpful": ScorerTask(
        "reward", "preference", "Anthropic/hh-rlhf", "hh_rlhf_helpful_base_test.jsonl", folder="helpful-base"
    ),
    "wiki_toxic": ScorerTask(
        "toxicity",
        "labelled",
        "OxAISH-AL-LLM/wiki_toxic",
        "wiki_toxicity_testset.csv",
        columns={"text": "comment_text"},
        file_columns={"text": "comment", "label": "toxic"},
    ),
    "toxic_conversations": ScorerTask(
        "toxicity", "labelled", "mteb/toxic_conversations_50k", "toxic_conversations_test.jsonl"
    ),
    "hatecheck_en": ScorerTask("toxicity", "labelled", "Paul/hatecheck", "hatecheck_en.csv", columns=_HATECHECK),
    "hatecheck_pt": ScorerTask(
        "toxicity", "labelled", "Paul/hatecheck-portuguese", "hatecheck_pt.csv", columns=_HATECHECK
    ),
    "told_br": ScorerTask("toxicity", "labelled", "", "told_br_test_binary.csv", columns={"label": "toxic"}),
    **{
        f"sample_{kind}_{language}": ScorerTask(purpose, kind, f"{SAMPLE}{kind}-{language}", "", "validation")
        for purpose, kind in (("reward", "preference"), ("toxicity", "labelled"))
        for language in ("en", "pt")
    },
}


def _locate_file(task: str, folder: str, file: str, hub: str) -> Path:
    file_path = Path(folder).expanduser() / file
    if not file_path.is_file():
        elsewhere = f" The data set is {hub} on the hub: eval.data_dir=null reads it there." if hub else ""
        raise AiraError(
            f"eval.data_dir={folder} has no file {file}, which the task {task} needs."
            f"{nearest_path(file_path)}{elsewhere} "
            "eval.tasks names the tasks that are wanted."
        )
    return file_path


def check(tasks: list[str], purpose: str, data_dir: str | None) -> None:
    """Check before any long work that the tasks can be evaluated.

    Raises:
        AiraError: a file is missing, or a task is not for models of this purpose.
    """
    for task in tasks:
        known = HARNESS_TASKS.get(task), SCORER_TASKS.get(task)
        is_scorer = known[1] is not None
        if is_scorer != (purpose != "chat") or (known[1] and known[1].purpose != purpose):
            fitting = [name for name, one in SCORER_TASKS.items() if one.purpose == purpose] or sorted(HARNESS_TASKS)
            raise AiraError(f"The task {task} is not for a {purpose} model. These are: {', '.join(fitting)}.")
        if known[1] and not known[1].hub and not data_dir:
            raise AiraError(f"The task {task} reads {known[1].file}, which the hub does not hold: set eval.data_dir=.")
        if data_dir:
            files = list(known[0].files.values()) if known[0] else [known[1].file] if known[1] else []
            for file in filter(None, files):
                _locate_file(task, data_dir, file, (known[0] or known[1]).hub)  # type: ignore[union-attr]


def file_rows(file: Path, change: Callable[[Record], Record]) -> list[Record]:
    """The rows of a task's file, in the hub's form.

    Raises:
        AiraError: a row cannot be brought into it, such as one whose rating is no number.
    """
    rows = []
    for i, row in enumerate(read_rows(file), start=1):
        try:
            rows.append(change(row))
        except (BadRow, LookupError, TypeError, AttributeError) as error:
            raise AiraError(f"{file}, row {i}: this is no row of the task's data: {reason_of(error)}.") from error
    return rows


def harness_task(task: str, shots: int | None, data_dir: str | None, manager: TaskManager) -> Any:
    """A task for the harness: one of its own by name, or loaded with other rows or another number of few-shot examples.

    Args:
        task: one of the harness, or `sample_answers_en` or `_pt`.
        shots: examples before each question; None for the task's own number.
        data_dir: a folder of files that take the place of the hub.

    Raises:
        AiraError: the harness has no such task, or it stands for several where a single one is needed.
    """
    changes: Record = {} if shots is None else {"num_fewshot": shots}
    if task.startswith("sample_answers_"):
        return {"task": task, **_sample_answers(task.removeprefix("sample_answers_")), **changes}
    if task not in manager.task_index:
        raise AiraError(f"There is no task {task}. {nearest(task, manager.task_index)}")
    if task in manager.all_tags:
        members = ",".join(sorted(manager.task_index[task].tags))
        raise AiraError(f"{task} stands for several tasks. Name those that are meant: eval.tasks=[{members}].")
    if changes and task in manager.all_groups:
        raise AiraError(f"{task} is a group: eval.num_fewshot names its tasks, and eval.tasks too.")
    known = HARNESS_TASKS.get(task)
    if data_dir and known:
        folder, files = data_dir, known

        def from_files(**_: Any) -> DatasetDict:
            splits = files.files.items()
            located = {split: _locate_file(task, folder, name, files.hub) for split, name in splits}
            rows = {split: file_rows(file, files.row) for split, file in located.items()}
            return DatasetDict({split: Dataset.from_list(part) for split, part in rows.items()})

        config = manager.task_index[task].cfg
        splits = (f"{name}_split" for name in ("training", "validation", "test"))
        changes |= {name: None for name in splits if config.get(name) not in known.files}
        changes |= {"custom_dataset": from_files, "dataset_kwargs": {}}
    if not changes:
        return task
    # a group is where the harness takes changes to a task of its own
    return manager.load({"group": "changed", "task": [{"task": task, **changes}]})["tasks"][task]


def _sample_answers(language: str) -> Record:
    """Held-out questions of the embedded sample; the right answer among those of three other questions."""

    def rows(**_: Any) -> DatasetDict:
        questions = list(read(f"{SAMPLE}instruction-{language}").split("validation"))
        answers = sorted({row["completion"] for row in questions})
        documents = []
        for row in questions:
            at = answers.index(row["completion"])
            choices = [answers[(at + step * len(answers) // 4) % len(answers)] for step in range(4)]
            messages = [{"role": "user", "content": row["prompt"]}]
            documents.append({"question": row["prompt"], "messages": messages, "choices": choices})
        return DatasetDict({"validation": Dataset.from_list(documents)})

    return {
        "custom_dataset": rows,
        "dataset_kwargs": {},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


class ScorerRow(NamedTuple):
    """A row of a scorer's task."""

    number: int  # of the task's whole data, counted from 0
    example: Example
    key: int  # its `prompt_key`


def scorer_rows(
    task: str, data_dir: str | None, limit: int | None, seed: int, cache_dir: str
) -> tuple[list[ScorerRow], list[str]]:
    """The rows of a scorer's task.

    Args:
        data_dir: a folder of files that take the place of the hub.
        limit: take so many rows, drawn by `seed` (files are often sorted).
        cache_dir: where the tables of local files are kept.

    Returns:
        The usable rows, and notices: how many were dropped, and why.
    """
    known = SCORER_TASKS[task]
    columns = dict(known.columns or {})
    if data_dir and known.file:
        path = str(_locate_file(task, data_dir, known.file, known.hub))
        source, split = read(path, cache_dir=cache_dir, key="eval.data_dir"), "train"
        columns = dict(known.file_columns or columns)
    else:
        split = known.split
        source = read(known.hub, revision=known.revision, folder=known.folder, cache_dir=cache_dir, key="eval.data_dir")
    rows = source.split(split)
    mapping = mapped_columns(known.kind, rows.column_names, columns, source.name)
    usable: list[ScorerRow] = []
    dropped: dict[str, int] = {}
    drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit])
    for number, row in zip(drawn.tolist(), rows.select(drawn), strict=True):
        try:
            example = read_example(known.kind, row, mapping, names=named_classes(rows.features))
        except BadRow as problem:
            dropped[problem.reason] = dropped.get(problem.reason, 0) + 1
            continue
        except AiraError as error:
            raise AiraError(f"{source.name}, row {number + 1}: {error}") from error
        usable.append(ScorerRow(number, example, prompt_key(example)))
    return usable, source.notices + [f"{task}: dropped {count} rows: {reason}." for reason, count in dropped.items()]
