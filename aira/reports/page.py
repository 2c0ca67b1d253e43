"""Runs as one self-contained HTML page: it loads nothing, runs no script, and reads well on paper, phone and screen."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from aira.files import without_home
from aira.ranking import UNRANKED, confounders
from aira.reports import plots
from aira.reports.runs import Run, differing

CURVES = (
    ("loss", "Loss"),
    ("rewards/margins", "Margins of rewards"),
    ("rewards/margins_by_beta", "Margins of rewards / beta"),
    ("rewards/accuracies", "Chosen preferred"),
    ("kl", "KL to the reference, estimated, nats"),
    ("margin", "Margin of scores"),
    ("accuracy", "Accuracy"),
    ("accuracy_at_0", "Accuracy at threshold 0"),
    ("lr", "Learning rate"),
    ("grad_norm", "Norm of the gradient"),
)
"""Metrics that are drawn, without `train/` and `val/`, with what they are called."""

NAMES = ("method.name", "model.name", "language.code", "data.name")
"""Keys that say which option of a group was chosen."""

LOWER = ("loss", "/lr", "perplexity", "calibration_error")
"""Ends of the names of metrics of which less is better."""

LINES = 8
"""Runs that can be told apart by colour; of more, the best."""


@dataclass
class Cell:
    """One cell of a table."""

    text: str
    kind: str = ""  # `number` or `text`
    best: bool = False


@dataclass
class Table:
    """Heads, and rows of cells."""

    heads: Sequence[str]
    rows: list[list[Cell]]


@dataclass
class Part:
    """A section, or a part of one that can be folded; what is empty is left out."""

    title: str
    id: str = ""
    text: str = ""
    code: str = ""
    wide: str = ""
    table: Table | None = None
    plots: list[str] = field(default_factory=list)
    parts: list["Part"] = field(default_factory=list)


def page(runs: list[Run], title: str) -> str:
    """The report on runs as HTML text."""
    _name_apart(runs)
    kinds = _kinds(runs)
    ranked = [run for kind in kinds for run in kind]
    sections = [_summary(kinds)]
    metric, _ = compared_by(ranked[0])
    trials = [run for run in kinds[0] if run.trial is not None and metric in run.metrics]
    if len(trials) > 1:
        sections.append(_sweep(trials, metric))
    sections += [
        _curves(ranked[:LINES]),
        _evaluation_part(ranked),
        _score_part(ranked),
        _samples(ranked),
        _cost(ranked),
        _how(ranked),
    ]
    finished = sum(run.finished for run in runs)
    subtitle = f"{len(runs)} runs, {finished} of them finished" if len(runs) > 1 else _subtitle(runs[0])
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [part for part in sections if part.table or part.plots or part.parts or part.wide]
    return without_home(environment.from_string(template).render(title=title, subtitle=subtitle, sections=shown))


def _name_apart(runs: list[Run]) -> None:
    """Name runs that have one name by more of their folders."""
    depth = 1
    while len({run.name for run in runs}) < len({run.folder.resolve() for run in runs}):
        depth += 1
        for run in runs:
            run.name = "/".join(run.folder.resolve().parts[-depth:])
            for row in run.evaluations:
                row["name"] = run.name if row["candidate"] else row["name"]


def _subtitle(run: Run) -> str:
    model, method, data, language = (run.values[group] for group in ("model", "method", "data", "language"))
    text = f"{method['name']} of {model['name']} on {data['path']}, {language['code']}"
    return text if run.finished else f"{text}; not finished"


def compared_by(run: Run) -> tuple[str, str]:
    """The metric that runs of its method are compared by, and whether less (min) or more (max) of it is better."""
    method = run.values["method"]
    return method.get("compare_by", method["monitor"]), method.get("compare_mode", method["mode"])


def _kinds(runs: list[Run]) -> list[list[Run]]:
    """Runs of one method, measured on the same rows, together; of each such kind the best first."""
    kinds: list[list[Run]] = []
    for run in runs:
        same = [kind for kind in kinds if not confounders(compared_by(run)[0], [kind[0].settings, run.settings])]
        if same:
            same[0].append(run)
        else:
            kinds.append([run])
    return [sorted(kind, key=_rank) for kind in kinds]


def _rank(run: Run) -> float:
    metric, mode = compared_by(run)
    value = run.metrics.get(metric, math.nan)
    return math.inf if math.isnan(value) else value if mode == "min" else -value


def number(value: float) -> str:
    """A figure as a reader wants it."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _numbers(kinds: list[list[Run]], names: Sequence[str], lower_is_better: set[str]) -> list[list[Cell]]:
    """A row a run: its figures, the best of each kind of runs marked where there is a choice that means something."""
    rows = []
    for runs in kinds:
        new = [[Cell(run.name, "text")] for run in runs]
        for name in names:
            column = [run.metrics.get(name) for run in runs]
            present = [value for value in column if value is not None and not math.isnan(value)]
            ranked = not UNRANKED.search(name) and not confounders(name, [run.settings for run in runs])
            best = (min if name in lower_is_better else max)(present) if ranked and len(set(present)) > 1 else None
            for row, value in zip(new, column):
                row.append(Cell("" if value is None else number(value), "number", value is not None and value == best))
        rows += new
    return rows


def _summary(kinds: list[list[Run]]) -> Part:
    runs = [run for kind in kinds for run in kind]
    names = dict.fromkeys(compared_by(run)[0] for run in runs)
    for run in runs:
        names |= dict.fromkeys(name for name in run.values["method"]["summary"] if name in run.metrics)
    changed = differing(runs) if len(runs) > 1 else {}
    groups = [name.split(".")[0] for name in NAMES if name in changed]
    # of another method or model everything differs: its name says so
    keys = [key for key in changed if key in NAMES or key.split(".")[0] not in groups][:6]
    lower = {name for name in names if name.endswith(LOWER) or "energy" in name}
    rows = _numbers(kinds, list(names), lower)
    for i, row in enumerate(rows):
        row[1:1] = [Cell(_short(changed[key][i]), "number" if _is_number(changed[key][i]) else "text") for key in keys]
        if not runs[i].finished:
            row[0].text += " (not finished)"
    return Part("Summary", "summary", _order(kinds, list(names)), table=Table(["run", *keys, *names], rows))


def _order(kinds: list[list[Run]], names: list[str]) -> str:
    """What runs are ordered by, and which figures are not compared since settings change what they mean."""
    sentences = []
    if any(len(kind) > 1 for kind in kinds):
        sentences.append(
            f"Ordered by {' or '.join(dict.fromkeys(compared_by(kind[0])[0] for kind in kinds))}, the best first."
        )
    if len(kinds) > 1:
        firsts = [kind[0] for kind in kinds]
        keys = confounders(compared_by(firsts[0])[0], [run.settings for run in firsts])
        sentences.append(f"Runs with another {' or '.join(keys) or 'method'} are not compared with each other.")
    for name in names:
        keys = [key for kind in kinds for key in confounders(name, [run.settings for run in kind])]
        if keys:
            sentences.append(f"{name} is not compared: {' and '.join(dict.fromkeys(keys))} changes what it means.")
    return " ".join(sentences)


def _short(value: Any) -> str:
    if _is_number(value):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _sweep(trials: list[Run], metric: str) -> Part:
    keys = list(dict.fromkeys(text.split("=")[0].lstrip("+") for run in trials for text in run.trial or ()))
    columns = {}
    for key in keys:
        column = [_value(run.values, key) for run in trials]
        if len({str(value) for value in column}) > 1:
            columns[key] = column
    command = f"aira train {shlex.join(trials[0].trial or [])}"
    values = [run.metrics[metric] for run in trials]
    equal = sum(value == values[0] for value in values) - 1
    text = f"The best trial, {trials[0].name}{f' (as {equal} others)' * (equal > 0)}, again:"
    wide = plots.parallel(columns, metric, values, 0) if columns else ""
    return Part("Sweep", "sweep", text, command, wide=wide)


def _value(values: dict[str, Any], key: str) -> Any:
    """What a key of the configuration is; of a group, its name."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value.get("name", value.get("code")) if isinstance(value, dict) else value


def _curves(runs: list[Run]) -> Part:
    drawn = []
    for name, title in CURVES:
        for side, side_name in (("train", "training"), ("val", "held out")):
            series = {run.name: run.curves[f"{side}/{name}"] for run in runs if f"{side}/{name}" in run.curves}
            if series:
                drawn.append(
                    plots.curves(f"{title}, {side_name}" if name not in ("lr", "grad_norm") else title, series)
                )
    text = f"The {LINES} best runs." if len(runs) == LINES else ""
    return Part("Curves", "curves", text, plots=drawn)


def evaluations(runs: list[Run]) -> tuple[list[str], list[list[str]], list[list[bool]]]:
    """What evaluations found: tasks; a row of cells for each run or baseline; and which of them are the best run's."""
    tasks = list(dict.fromkeys(row["task"] for run in runs for row in run.evaluations))
    names = dict.fromkeys(run.name for run in runs if run.evaluations)
    names |= dict.fromkeys(row["name"] for run in runs for row in run.evaluations)
    by_name = {(row["name"], row["task"]): row for run in runs for row in run.evaluations}
    best: dict[str, float] = {}  # the figure of each task, where several runs have one
    for task in tasks:
        values = [_signed(row) for row in by_name.values() if row["task"] == task and row["candidate"]]
        best |= {task: max(values)} if len(values) > 1 else {}
    cells, marks = [], []
    for name in names:
        rows = [by_name.get((name, task)) for task in tasks]
        cells.append([name, *("" if row is None else row["shown"] for row in rows)])
        marks.append([bool(row and row["candidate"] and best.get(row["task"]) == _signed(row)) for row in rows])
    return tasks, cells, marks


def _signed(row: dict[str, Any]) -> float:
    """A figure of which more is better."""
    return float(-row["value"] if row.get("lower") else row["value"])


def _evaluation_part(runs: list[Run]) -> Part:
    tasks, rows, marks = evaluations(runs)
    text = "Fractions in percent, with a 95 % interval in brackets or a standard error. Simple rules stand last."
    cells = [
        [Cell(name, "text"), *(Cell(figure, "number", best) for figure, best in zip(figures, marked))]
        for (name, *figures), marked in zip(rows, marks)
    ]
    return Part("Evaluation", "evaluation", text, table=Table(["", *tasks], cells) if tasks else None)


def _score_part(runs: list[Run]) -> Part:
    """What a scorer makes of held-out texts."""
    parts = []
    for run in runs:
        if not len(run.scores):
            continue
        row, branch, label, score = run.scores.T
        part = Part(run.name)
        if set(label) == {0, 1}:
            threshold = run.metrics.get("val/threshold", 0.0)
            groups = {"harmless": score[label == 0], "toxic": score[label == 1]}
            part.plots = [
                plots.histogram("Scores of held-out texts", groups, "score", threshold),
                plots.roc(score, label == 1),
            ]
            part.table = confusion(score < threshold, label == 1)
        elif set(branch) == {0, 1} and np.array_equal(row[branch == 0], row[branch == 1]):
            chosen, rejected = score[branch == 0], score[branch == 1]
            groups = {"chosen": chosen, "rejected": rejected}
            part.plots = [
                plots.histogram("Scores of held-out answers", groups, "score"),
                plots.calibration(chosen - rejected),
            ]
        parts.append(part)
    return Part("Held-out texts", "scores", parts=parts)


def confusion(flagged: np.ndarray, toxic: np.ndarray) -> Table:
    """Texts by what they are and what they are taken to be.

    Args:
        flagged, toxic: [texts] booleans.
    """
    rows = [
        [Cell(name, "text"), *(Cell(str(int(np.sum(kind & predicted))), "number", same) for predicted, same in cells)]
        for name, kind, cells in (
            ("harmless", ~toxic, ((~flagged, True), (flagged, False))),
            ("toxic", toxic, ((~flagged, False), (flagged, True))),
        )
    ]
    return Table(["texts that are", "taken to be harmless", "taken to be toxic"], rows)


def _samples(runs: list[Run]) -> Part:
    parts = []
    for run in runs:
        rows = [
            [Cell(str(s["step"]), "number"), Cell(s["question"], "text"), Cell(s["answer"], "text")]
            for s in run.samples
        ]
        if rows:
            parts.append(Part(run.name, table=Table(["step", "question", "answer"], rows)))
    return Part("Answers", "samples", parts=parts)


COSTS = ("seconds", "emissions/energy_kwh", "emissions/co2_kg", "perf/tokens_per_second", "perf/peak_memory_gib")


def _cost(runs: list[Run]) -> Part:
    names = [name for name in COSTS if any(name in run.metrics for run in runs)]
    lower = set(names) - {"perf/tokens_per_second"}
    finished = [run for run in runs if run.finished]
    energy = {
        run.name: 1000 * run.metrics["emissions/energy_kwh"]
        for run in finished
        if "emissions/energy_kwh" in run.metrics
    }
    drawn = [plots.bars("Energy, Wh (by CodeCarbon)", energy, "Wh")] if energy else []
    return Part(
        "Cost", "cost", table=Table(["run", *names], _numbers([finished], names, lower)) if names else None, plots=drawn
    )


def _how(runs: list[Run]) -> Part:
    keys = ("model", "method", "language", "data", "optimizer", "schedule", "trainer", "seed")
    parts = [
        Part(
            f"{run.name}: configuration and environment",
            code=json.dumps(
                {key: run.values[key] for key in keys} | {"environment": run.environment}, indent=2, ensure_ascii=False
            ),
        )
        for run in runs
    ]
    return Part("How it was made", "how", parts=parts)
