"""One model on its tasks: figures, rows and, for scorers, baselines; what was computed is cached on disk."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.exceptions import DatasetNotFoundError
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from sqlitedict import SqliteDict
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aira.config.schema import Evaluate, Suite
from aira.data.labels import HARMLESS, TOXIC, is_toxic
from aira.data.schemas import Example
from aira.data.texts import BadRow
from aira.data.tokenize import tokenizer_hash
from aira.data.trees import Tree
from aira.environment import versions
from aira.errors import AiraError
from aira.evaluation.baselines import cross_fitted, pair_baselines, text_baselines
from aira.evaluation.harness import PackedLM
from aira.evaluation.results import Line, Score, write_rows
from aira.evaluation.statistics import CHANCE, class_figures, compare_systems, interval
from aira.evaluation.tasks import SCORER_TASKS, ScorerRow, harness_task, scorer_rows
from aira.files import as_json
from aira.hub import OFFLINE, reach_hub
from aira.inference.generation import prompt_ids
from aira.inference.scorers import ScoringModel
from aira.models.forward import device_of
from aira.models.loading import load_model, load_tokenizer
from aira.models.weights import weights_hash

Measured = tuple[list[Line], dict[str, Any]]
"""Lines of the table (of a scorer, those of its baselines too), and what results.json is to hold."""

PURPOSES = {"reward": "reward", "harmless": "toxicity"}
"""What a high score means, by `id2label`, and what the model is for."""

evaluator.get_git_commit_hash = lambda: None  # of the folder that the user is in; results.json has Aira's own

PORTION = 64
"""Examples of a scorer that are scored before they are cached on disk."""


def chat(name: str, path: str, tasks: list[str], settings: Evaluate, where: dict[str, Any], rows: Path) -> Measured:
    """Measure a language model, by lm-evaluation-harness.

    Args:
        name: of the line in the table.
        where: `revision` and `trust_remote_code`.
        rows: the folder for the values of each row.

    Raises:
        AiraError: it has no chat template to be asked by, it gives an answer no number, or a task's data cannot be
            read.
    """
    suite = settings.eval
    tokenizer, added = load_tokenizer(path, template=None, **where)
    if suite.chat_template and not tokenizer.chat_template:
        raise AiraError(f"{path} has no chat template: eval.chat_template=false asks it plainly.")
    if suite.chat_template:
        prompt_ids(tokenizer, [{"role": "user", "content": "?"}])  # one that refuses all is told now
    model = load_model(path, tokenizer, added, **where).to(device_of(settings.device))
    language = PackedLM(model, tokenizer, suite.tokens_per_row, _autocast(suite), max_length=suite.max_length)
    shots = suite.num_fewshot
    is_sample = all(task.startswith("sample_answers_") for task in tasks)
    manager = TaskManager(include_defaults=not is_sample)  # reading the list of the harness's tasks takes seconds
    if not is_sample and not suite.data_dir:
        reach_hub()
    try:
        evaluation = evaluator.simple_evaluate(
            language,
            tasks=[harness_task(task, shots.get(task), suite.data_dir, manager) for task in tasks],
            task_manager=manager,
            limit=suite.limit,
            use_cache=str(store(settings, model, tokenizer)),
            apply_chat_template=suite.chat_template,
            fewshot_random_seed=1234 + settings.seed,
            bootstrap_iters=1000,
        )
    except (ConnectionError, DatasetNotFoundError) as error:
        raise AiraError(
            f"The data of {', '.join(tasks)} could not be read from the hub: {error}. If it cannot be reached: "
            f"{OFFLINE}, and eval.data_dir=<folder> reads files, for the tasks of docs/evaluation.md."
        ) from error
    line = Line(name, {}, candidate=True)
    for task in tasks:
        figures = evaluation["results"][task]
        key = _main_figure(figures)
        metric, _, chosen = key.partition(",")
        stderr = figures.get(f"{metric}_stderr,{chosen}")
        stderr = stderr if isinstance(stderr, float) and stderr > 0 else None
        percent = metric in ("acc", "acc_norm", "exact_match", "f1")
        lower = evaluation["higher_is_better"].get(task, {}).get(metric) is False
        numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
        undefined = [name for name, value in numbers.items() if not math.isfinite(value)]
        if undefined:
            print(f"{task}: left out as undefined on these rows: {', '.join(undefined)}.")
        line.more[task] = {
            name.removesuffix(",none"): value for name, value in numbers.items() if name not in undefined
        }
        if key in undefined:
            continue
        line.scores[task] = score = Score(figures[key], stderr=stderr, percent=percent, lower=lower, metric=metric)
        samples = evaluation["samples"].get(task, [{}])  # a group of tasks has none
        samples = [one for one in samples if one.get("filter", chosen) == chosen] or [{}]
        if isinstance(samples[0].get(metric), (int, float)):
            values = [float(one[metric]) for one in samples]
            write_rows(rows, task, {"row": [one["doc_id"] for one in samples], "value": values})
            if percent and stderr is None:  # all rows are equal, or there is one: a standard error says nothing
                score.low, score.high = interval(np.array(values), seed=settings.seed)
    results = {key: value for key, value in evaluation.items() if key != "samples"}
    return [line], results


def _main_figure(figures: dict[str, Any]) -> str:
    """The key, `<metric>,<filter>`, that stands in the table: length-normalised accuracy, accuracy, or the first."""
    names = [key for key, value in figures.items() if isinstance(value, (int, float)) and "," in key]
    names = [key for key in names if "_stderr," not in key]
    if not names:
        raise AiraError(f"The harness has no figure for {figures.get('alias', 'a task')}: name the tasks of its group.")
    return next(name for name in ["acc_norm,none", "acc,none", *names] if name in names)


def scorer(name: str, path: str, tasks: list[str], settings: Evaluate, where: dict[str, Any], rows: Path) -> Measured:
    """Measure a reward or toxicity model, beside simple baselines on the same rows; arguments as of `chat`.

    Raises:
        AiraError: a task has no usable row, or its data cannot be read.
    """
    suite, seed = settings.eval, settings.seed
    model = ScoringModel(
        path, device_of(settings.device), suite.max_length, suite.tokens_per_row, _autocast(suite), **where
    )
    lines = {name: Line(name, {}, candidate=True)}
    file = f"{store(settings, model.model, model.tokenizer)}.db"
    with SqliteDict(file, autocommit=True, encode=as_json, decode=json.loads) as cache:
        for task in tasks:
            usable, trees = _encode_rows(task, model, settings)
            numbers, examples, keys = map(list, zip(*usable))
            scores = np.array(_score_trees(model, trees, cache, task, numbers))
            groups = np.array(keys)
            if SCORER_TASKS[task].purpose == "reward":
                right, figures = _pairs(name, examples, scores, groups)
            else:
                sign = -1 if suite.high_score == "toxic" and model.meaning not in PURPOSES else 1
                right, figures = _texts(name, examples, sign * scores, groups, sign * model.threshold)
                if "f1" not in figures[name]:
                    print(f"{task}: all texts are of one class: balanced accuracy and F1 are undefined, and left out.")
            for system, figure in compare_systems(right, groups, seed).items():
                line = lines.setdefault(system, Line(system, {}))
                line.scores[task] = Score(figure["accuracy"], figure.get("low"), figure.get("high"), metric="accuracy")
                line.more[task] = figure | figures.get(system, {})
            columns = {"row": numbers, "value": right[name].tolist(), "group": keys}
            write_rows(rows, task, columns | {"scores": scores.tolist()})
    figures_of = {task: {system: line.more[task] for system, line in lines.items()} for task in tasks}
    results = {"results": {task: figures_of[task][name] for task in tasks}, "baselines": figures_of}
    return list(lines.values()), results


def _encode_rows(task: str, scorer: ScoringModel, settings: Evaluate) -> tuple[list[ScorerRow], list[Tree]]:
    suite = settings.eval
    rows, notices = scorer_rows(task, suite.data_dir, suite.limit, settings.seed, settings.cache_dir)
    usable: list[ScorerRow] = []
    trees: list[Tree] = []
    dropped: dict[str, int] = {}
    for row in rows:
        try:
            trees.append(scorer.encode(row.example.conversations))
            usable.append(row)
        except BadRow as problem:
            dropped[problem.reason] = dropped.get(problem.reason, 0) + 1
    for line in [*notices, *(f"{task}: dropped {count} rows: {reason}." for reason, count in dropped.items())]:
        print(line)
    if not usable:
        raise AiraError(f"The task {task} has no usable row.")
    return usable, trees


def _score_trees(
    scorer: ScoringModel, trees: list[Tree], cache: SqliteDict, task: str, numbers: list[int]
) -> list[list[float]]:
    """Scores of all trees, read from the cache if they were computed before; `numbers` are those of the rows."""
    names = [hashlib.sha256(json.dumps(tree.branches).encode()).hexdigest() for tree in trees]
    missing = [i for i, one in enumerate(names) if not _is_complete(cache.get(one), len(trees[i].branches))]
    missing.sort(key=lambda i: -sum(map(len, trees[i].branches)))
    with tqdm(total=len(trees), initial=len(trees) - len(missing), desc=task, leave=False) as bar:
        for start in range(0, len(missing), PORTION):
            portion = missing[start : start + PORTION]
            rows = [f"row {numbers[i]} of the task {task}" for i in portion]
            for i, scores in zip(portion, scorer.score([trees[i] for i in portion], rows), strict=True):
                cache[names[i]] = scores
            bar.update(len(portion))
    return [cache[one] for one in names]


def _is_complete(scores: Any, count: int) -> bool:
    """Whether cached scores are one number for each branch."""
    values = scores if isinstance(scores, list) else []
    return len(values) == count and all(isinstance(one, float) and math.isfinite(one) for one in values)


Figures = dict[str, dict[str, float]]


def _pairs(
    name: str, examples: list[Example], scores: np.ndarray, groups: np.ndarray
) -> tuple[dict[str, Any], Figures]:
    """Whether each system finds the better response."""
    pairs = [(one.conversations[0][-1]["content"], one.conversations[1][-1]["content"]) for one in examples]
    better, worse = scores.T
    right = {name: np.where(better == worse, 0.5, better > worse), CHANCE: np.full(len(pairs), 0.5)}
    right |= cross_fitted(lambda a, b: pair_baselines([pairs[i] for i in a], [pairs[i] for i in b]), groups)
    return right, {name: {"margin": float((better - worse).mean())}}


def _texts(
    name: str, examples: list[Example], scores: np.ndarray, groups: np.ndarray, threshold: float
) -> tuple[dict[str, Any], Figures]:
    """Whether each system gives a text its class, with further figures of the classes."""
    texts = [one.conversations[0][-1]["content"] for one in examples]
    labels = np.array([TOXIC if is_toxic(one.labels[0]) else HARMLESS for one in examples])
    predicted = {name: np.where(scores[:, 0] < threshold, TOXIC, HARMLESS)}
    predicted["majority"] = np.full(len(labels), np.bincount(labels).argmax())
    predicted |= cross_fitted(
        lambda a, b: text_baselines([texts[i] for i in a], labels[a], [texts[i] for i in b]), groups
    )
    right = {system: (classes == labels).astype(float) for system, classes in predicted.items()}
    return right, {system: class_figures(classes, labels) for system, classes in predicted.items()}


def _autocast(suite: Suite) -> torch.dtype | None:
    return {"32-true": None, "bf16-mixed": torch.bfloat16}[suite.precision]


def store(settings: Evaluate, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Where the answers of a model are cached by request: under a key of everything else that they depend on."""
    suite = settings.eval
    parts = [
        weights_hash(model),
        tokenizer_hash(tokenizer),
        model.device.type,
        versions("torch", "transformers", "tokenizers", "lm_eval"),
        *(suite.precision, suite.max_length, suite.chat_template),
    ]
    folder = Path(settings.cache_dir).expanduser() / "evaluated"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
