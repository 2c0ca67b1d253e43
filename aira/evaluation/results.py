"""Figures of an evaluation as files and tables: results.json, Markdown, LaTeX, the console."""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aira.config.schema import Evaluate, Suite
from aira.errors import AiraError, nearest, reason_of
from aira.files import append_lines, as_json, exports, matching_paths, nearest_path, read_json, write_atomically

PUBLISHED = Path(__file__).parent / "published"
COLUMNS = {
    "arc_challenge": "arc_challenge_25shot_acc_norm",
    "arc_pt": "arc_challenge_25shot_acc_norm",
    "truthfulqa_mc2": "truthfulqa_mc2",
    "truthfulqa_pt_mc2": "truthfulqa_mc2",
    "toxigen": "toxigen_acc_norm",
}
"""Task -> column of published/chat.csv."""
BENCHMARKS = {
    "WebGPT": "webgpt",
    "HH-RLHF": "hh_harmless",
    "wiki_toxic": "wiki_toxic",
    "toxic_conversations_50k": "toxic_conversations",
    "hatecheck-portuguese": "hatecheck_pt",
    "told-br": "told_br",
}
"""Benchmark of published/scorers.csv -> task."""


@dataclass
class Score:
    """A task's figure for one model or baseline."""

    value: float
    low: float | None = None  # of the 95 % interval
    high: float | None = None
    stderr: float | None = None
    percent: bool = True  # a fraction, shown in percent; else shown as it is
    lower: bool = False  # less is better
    metric: str = ""  # its name, as in results.json

    def __str__(self) -> str:
        if not self.percent:
            return f"{self.value:.2f}"
        shown = f"{100 * self.value:.2f}"
        if self.low is not None and self.high is not None:
            return f"{shown} [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return shown if self.stderr is None else f"{shown} ± {100 * self.stderr:.2f}"


@dataclass
class Line:
    """A line of the table: a model, a baseline, or what was published."""

    name: str
    scores: dict[str, Score]
    published: float | None = None  # the average that was published, where it is not the mean
    candidate: bool = False  # a model of this evaluation, so the best of its column may be in bold
    more: dict[str, dict[str, float]] = field(default_factory=dict)  # further figures of each task

    def average(self, tasks: Iterable[str]) -> float | None:
        """The mean over the tasks that are there, in percent."""
        values = [self.scores[task].value for task in tasks if task in self.scores and self.scores[task].percent]
        return 100 * sum(values) / len(values) if values else None


def table(lines: Sequence[Line], tasks: Sequence[str], averaged: Sequence[str], form: str = "markdown") -> str:
    """The lines as a table with an average over `averaged`.

    Args:
        form: `markdown`, `latex` or `plain`.
    """
    rows = [["model", *tasks, *(["average"] if len(averaged) > 1 else [])]]
    for line in lines:
        cells = [str(line.scores[task]) if task in line.scores else "–" for task in tasks]
        if len(averaged) > 1:
            average = line.average(averaged)
            cells.append("–" if average is None else f"{average:.2f}")
            if line.published is not None and average is not None and abs(line.published - average) > 0.02:
                cells[-1] += f" (published as {line.published:.2f})"
        rows.append([line.name, *cells])
    if form != "plain":
        bold = {"markdown": "**{}**", "latex": r"\textbf{{{}}}"}[form]
        candidates = [i for i, line in enumerate(lines) if line.candidate]
        for column in range(1, len(rows[0])) if len(candidates) > 1 else ():
            values = {i: _value(lines[i], column, tasks, averaged) for i in candidates}
            best = max((value for value in values.values() if value is not None), default=None)
            for i in candidates:
                if best is not None and values[i] == best:
                    rows[i + 1][column] = bold.format(rows[i + 1][column])
    return _format(rows, form)


def class_table(lines: Sequence[Line], tasks: Sequence[str], form: str = "markdown") -> str:
    """Balanced accuracy and F1 (of the toxic class) of the lines that have them, in percent; empty where none has.

    Args:
        form: as for `table`.
    """
    names = {"balanced_accuracy": "balanced", "f1": "F1"}
    shown = [task for task in tasks if any("balanced_accuracy" in line.more.get(task, ()) for line in lines)]
    rows = [["model", *(f"{task} {name}" for task in shown for name in names.values())]]
    for line in lines:
        of_tasks = [line.more.get(task, {}) for task in shown]
        if any("balanced_accuracy" in figures for figures in of_tasks):
            cells = [f"{100 * figures[key]:.2f}" if key in figures else "–" for figures in of_tasks for key in names]
            rows.append([line.name, *cells])
    return _format(rows, form) if len(rows) > 1 else ""


def _format(rows: list[list[str]], form: str) -> str:
    if form == "latex":
        rows = [[cell.replace("_", r"\_").replace("%", r"\%").replace("±", r"$\pm$") for cell in row] for row in rows]
        body = "\n".join(" & ".join(row) + r" \\" for row in rows[1:])
        head = " & ".join(rows[0]) + r" \\"
        return f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n{head}\n\\hline\n{body}\n\\end{{tabular}}\n"
    if form == "markdown":
        rule = ["---", *["--:"] * (len(rows[0]) - 1)]
        return "".join("| " + " | ".join(row) + " |\n" for row in [rows[0], rule, *rows[1:]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths)))
        + "\n"
        for row in rows
    )


def _value(line: Line, column: int, tasks: Sequence[str], averaged: Sequence[str]) -> float | None:
    """A cell as a number, the higher the better."""
    if column > len(tasks):
        return line.average(averaged)
    score = line.scores.get(tasks[column - 1])
    return None if score is None else -score.value if score.lower else score.value


def task_with_settings(task: str, suite: Suite, seed: int, chat: bool) -> str:
    """A task with the settings that change what its score means, so that only scores of equal settings are compared.

    Args:
        suite: of conf/eval.
        seed: of the rows and of the few-shot examples that are drawn.
        chat: whether the model is a language model.
    """
    shots, limit, longest = suite.num_fewshot.get(task), suite.limit, suite.max_length
    settings = [
        *([f"{shots}-shot"] if shots is not None else []),
        *([f"{limit} rows"] if limit is not None else []),
        *([f"{longest} tokens"] if longest is not None else []),
        *(["chat template"] if chat and suite.chat_template else []),
        *([f"seed {seed}"] if seed else []),
    ]
    return f"{task} ({', '.join(settings)})" if settings else task


def record_scores(run: Path, lines: Sequence[Line], suite: Suite, seed: int, chat: bool) -> None:
    """Add the lines to the evaluations.jsonl of the run whose export was evaluated, a row for each line and task.

    Args:
        suite, seed, chat: see `task_with_settings`.
    """
    rows = []
    for line in lines:
        for task, score in line.scores.items():
            row = {
                "task": task_with_settings(task, suite, seed, chat),
                "name": run.name if line.candidate else line.name,
                "candidate": line.candidate,
            }
            row |= {"value": score.value, "shown": str(score), "percent": score.percent, "lower": score.lower}
            row["metric"] = score.metric
            rows.append(as_json(row))
    append_lines(run / "evaluations.jsonl", rows)


def published_lines(names: Sequence[str]) -> list[Line]:
    """Lines of the published tables.

    Raises:
        AiraError: there is no such line.
    """
    lines: dict[str, Line] = {}
    for row in _csv("chat.csv"):
        scores = {
            task: Score(float(row[column]) / 100)
            for task, column in COLUMNS.items()
            if row[column] != "None" and task.startswith(("arc_pt", "truthfulqa_pt")) == ("portuguese" in row["family"])
        }
        lines[row["model"]] = Line(f"{row['model']} (published)", scores, float(row["average"]))
    for row in _csv("scorers.csv"):
        line = lines.setdefault(row["model"], Line(f"{row['model']} (published)", {}))
        line.scores[BENCHMARKS[row["benchmark"]]] = Score(float(row["accuracy_percent"]) / 100)
    for name in names:
        if name not in lines:
            raise AiraError(f"eval.published={name}: no such line was published. {nearest(name, lines)}")
    return [lines[name] for name in names]


def _csv(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / name).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write_rows(folder: Path, task: str, rows: dict[str, list[Any]]) -> None:
    """Write the figure of each row, one per line, for later comparisons.

    Args:
        rows: columns, with `row` (which it is) and `value` (its figure) among them.
    """
    lines = (as_json(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True))
    write_atomically(folder / f"{task}.jsonl", "".join(line + "\n" for line in lines))


def compare(folders: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Which of two evaluations is better, task by task, on the rows that both have.

    Args:
        folders: of one model's figures each: `<evaluation>/<model>`, or `<evaluation>` with a single model.

    Returns:
        For each task `task`, `rows`, `first` and `second` (means), `difference` (second minus first), and `low` and
        `high` of its paired 95 % interval.

    Raises:
        AiraError: a folder holds no evaluation, or the two have no row in common.
    """
    from aira.evaluation.statistics import interval  # which the names of this module, checked first, do not need

    files = [{file.stem: file for file in model_folder(folder).glob("rows/*.jsonl")} for folder in folders]
    comparisons = []
    for task in sorted(set(files[0]) & set(files[1])):
        first, second = (_rows(one[task]) for one in files)
        both = [row for row in first if row in second and first[row].get("group") == second[row].get("group")]
        if both:
            values = np.array([[one[row]["value"] for row in both] for one in (first, second)], dtype=float)
            wrong = [row for row, column in zip(both, values.T, strict=True) if not np.isfinite(column).all()]
            if wrong:
                raise AiraError(
                    f"compare={list(folders)}: {task}, row {wrong[0]}: there is a value that is no number, so the two "
                    "cannot be compared. Evaluate again."
                )
            groups = np.array([first[row].get("group", i) for i, row in enumerate(both)])
            width = max(1.0, values.max()) - min(0.0, values.min())  # a metric without bounds has those of its rows
            low, high = interval(values[1] - values[0], groups, seed, (-width, width))
            means = values.mean(1).tolist()
            comparisons.append(
                {
                    "task": task,
                    "rows": len(both),
                    "first": means[0],
                    "second": means[1],
                    "difference": means[1] - means[0],
                    "low": low,
                    "high": high,
                }
            )
    if not comparisons:
        raise AiraError(f"compare={list(folders)}: the two have no row of a task in common.")
    return comparisons


def differing_settings(folders: Sequence[str]) -> list[str]:
    """The settings in which two evaluations differ and that change what a score means."""
    suites = []
    for folder in folders:
        results = read_json(model_folder(folder) / "results.json")
        try:
            suites.append(dict(results["aira"]["config"]["eval"]))
        except (TypeError, KeyError, ValueError):  # it may be a stranger's
            suites.append({})
    keys = ("num_fewshot", "chat_template", "max_length", "high_score", "precision")
    return [
        f"eval.{key} ({suites[0].get(key)} and {suites[1].get(key)})"
        for key in keys
        if suites[0].get(key) != suites[1].get(key)
    ]


def _rows(file: Path) -> dict[Any, dict[str, Any]]:
    """The rows that `write_rows` wrote, by their numbers."""
    rows: dict[Any, dict[str, Any]] = {}
    try:
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            row = json.loads(line)
            value, _ = row["value"], hash(row.get("group"))
            if not isinstance(value, int | float | None) or row["row"] in rows:
                raise ValueError(f"{value!r} is no figure, or row {row['row']} stands there twice")
            rows[row["row"]] = row
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AiraError(
            f"{file} is damaged, or no file of an evaluation: {reason_of(error)}. Evaluate again."
        ) from error
    return rows


def models_by_name(settings: Evaluate) -> dict[str, str]:
    """The paths of the models to evaluate, by name.

    Raises:
        AiraError: `last` or a pattern stands for none.
    """
    by_name: dict[str, str] = {}
    for model in settings.models or [settings.model.path]:
        if model == "last":
            newest = next(exports(settings.output_dir), None)
            if newest is None:
                raise AiraError(
                    f"model.path=last: no run below {settings.output_dir}/ has an export. Train first (aira "
                    "train), or name a model: model.path=<folder or hub id>, or model=gpt2-124m."
                )
            paths = [str(newest)]
        elif "*" in model and not Path(model).exists():
            paths = [str(path) for path in matching_paths(model, folders=True)]
            if not paths:
                raise AiraError(f"models=[{model}]: nothing has such a name.{nearest_path(Path(model))}")
        else:
            paths = [model]
        for path in paths:
            located = Path(path).resolve() if Path(path).exists() else Path(path)
            parts = [part for part in located.parts if part != "export"]
            name = re.sub(r"[^\w.-]+", "-", parts[-1].removesuffix(".gguf")) if parts else "model"
            by_name[next(n for n in [name, *(f"{name}-{i}" for i in range(2, 1000))] if n not in by_name)] = path
    return by_name


def model_folder(folder: str) -> Path:
    """The folder of one model's figures: `<evaluation>/<model>`, or that of the only model of `<evaluation>`.

    Raises:
        AiraError: there is none, or there are several.
    """
    path = Path(folder).expanduser()
    inside = [path] if (path / "rows").is_dir() else sorted(part.parent for part in path.glob("*/rows"))
    if not inside:
        hint = "" if path.exists() else nearest_path(path)
        raise AiraError(f"compare: {folder} holds no evaluation (a folder with results.json and rows/).{hint}")
    if len(inside) > 1:
        raise AiraError(f"compare: {folder} has several models: name one, such as {inside[0]}.")
    return inside[0]
