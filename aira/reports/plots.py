"""Plots as SVG text whose colours are those of the page around them, in light and dark."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler

matplotlib.use("agg")
import matplotlib.pyplot as plt

from aira.reports.runs import Curve

INK, GRID = "#010203", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06", "#0a0b07", "#0a0b08")
"""Stand-ins, which become the page's variables; matplotlib has none."""

VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"} | {
    colour: f"var(--s{i})" for i, colour in enumerate(SERIES, start=1)
}
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may have a $
    "svg.hashsalt": "aira",  # the same plot has the same text
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.prop_cycle": cycler(color=SERIES),
    "legend.frameon": False,
    "legend.fontsize": 9,
}


LONGEST = 40
"""Characters of a name in a plot; of a longer one the middle is left out."""


def _figure(title: str, x: str, y: str, size: tuple[float, float] = (4.6, 3.0)) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _label(name: object) -> str:
    """A name as it is drawn: one line that leaves room for the plot; and in a legend, which leaves out those with _."""
    text = " ".join("".join(one if one.isprintable() else " " for one in str(name)).split())
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
    return f"\u200b{text}" if text.startswith("_") or not text else text


def _svg(figure: Any) -> str:
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the reader's fonts are others
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def curves(title: str, series: Mapping[str, Curve], y: str = "") -> str:
    """Lines over steps; a single point is a dot."""
    with plt.rc_context(STYLE):
        figure, axes = _figure(title, "step", y)
        for (name, (steps, values)), colour in zip(series.items(), _colours(len(series))):
            axes.plot(
                steps, values, label=_label(name), color=colour, marker="o" if len(steps) == 1 else None, linewidth=1.6
            )
        if 1 < len(series) <= len(SERIES):
            axes.legend()
        return _svg(figure)


def _colours(count: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(count)]


def calibration(margins: np.ndarray) -> str:
    """How often the chosen response wins where the model says that it wins with a probability.

    Args:
        margins: [pairs] score of chosen minus score of rejected; the model's probability is its logistic function.
    """
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    edges = np.linspace(0.5, 1, 6)
    bins = np.clip(np.digitize(sure, edges) - 1, 0, 4)
    used = [i for i in range(5) if (bins == i).any()]
    with plt.rc_context(STYLE):
        figure, axes = _figure("Calibration on held-out pairs", "probability of the model's choice", "how often right")
        axes.plot([0.5, 1], [0.5, 1], color=GRID)
        probability, right = ([np.mean(of[bins == i]) for i in used] for of in (sure, margins > 0))
        axes.plot(probability, right, marker="o", color=SERIES[0])
        for i, x, y in zip(used, probability, right):
            axes.annotate(str(np.sum(bins == i)), (x, y), textcoords="offset points", xytext=(4, 6), fontsize=8)
        axes.set(xlim=(0.48, 1.02), ylim=(-0.03, 1.08))
        return _svg(figure)


def roc(scores: np.ndarray, toxic: np.ndarray) -> str:
    """True against false positives over all thresholds.

    Args:
        scores: [texts], low where a text is toxic.
        toxic: [texts] booleans.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    false, true, _ = roc_curve(toxic, -scores)
    with plt.rc_context(STYLE):
        title = f"ROC on held-out texts, area {roc_auc_score(toxic, -scores):.3f}"
        figure, axes = _figure(title, "harmless texts flagged", "toxic texts flagged")
        axes.plot([0, 1], [0, 1], color=GRID)
        axes.plot(false, true, color=SERIES[0])
        return _svg(figure)


def histogram(title: str, groups: Mapping[str, np.ndarray], x: str, threshold: float | None = None) -> str:
    """Distributions of scores, and the threshold between them."""
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=24)
    with plt.rc_context(STYLE):
        figure, axes = _figure(title, x, "texts")
        for (name, scores), colour in zip(groups.items(), SERIES):
            axes.hist(scores, bins=edges, alpha=0.6, label=name, color=colour)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle="--", label="threshold")
        axes.legend()
        return _svg(figure)


def bars(title: str, figures: Mapping[str, float], x: str) -> str:
    """One bar a run, with its number."""
    with plt.rc_context(STYLE):
        figure, axes = _figure(title, x, "", (4.6, 0.9 + 0.32 * len(figures)))
        places = np.arange(len(figures))[::-1]
        drawn = axes.barh(places, list(figures.values()), color=SERIES[0], height=0.6)
        axes.bar_label(drawn, fmt="%.3g", padding=3, fontsize=8)
        axes.set_yticks(places, list(map(_label, figures)))
        axes.margins(x=0.18)
        axes.grid(False)
        return _svg(figure)


def parallel(columns: Mapping[str, Sequence[Any]], metric: str, values: Sequence[float], best: int) -> str:
    """Parallel coordinates of a sweep: a line a trial, an axis a key, the metric last; the best trial stands out."""
    axes_of = {**columns, metric: values}
    places, ticks = {}, {}
    for name, column in axes_of.items():
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in column)
        scale = (
            np.array(column, dtype=float) if numbers else np.unique([str(v) for v in column], return_inverse=True)[1]
        )
        spread = numbers and scale.min() > 0 and scale.max() / scale.min() > 20
        scale = np.log(scale) if spread else scale.astype(float)
        span = scale.max() - scale.min()
        places[name] = (scale - scale.min()) / span if span else np.full(len(scale), 0.5)
        ticks[name] = {
            float(place): f"{value:.3g}" if numbers else _label(value) for place, value in zip(places[name], column)
        }
    with plt.rc_context(STYLE):
        figure, axes = _figure("", "", "", (max(7.5, 1.8 * len(axes_of)), 3.2))
        points = np.stack(list(places.values()), axis=1)
        for i in [*(i for i in range(len(points)) if i != best), best]:
            strong = i == best
            axes.plot(
                points[i], color=SERIES[0 if strong else 1], linewidth=2.4 if strong else 1, alpha=1 if strong else 0.6
            )
        for x, marks in enumerate(ticks.values()):
            axes.axvline(x, color=INK, linewidth=0.6)
            shown = [min(marks), *([max(marks)] if len(marks) > 1 else [])]
            shown += [place for place in marks if len(marks) <= 5 and min(abs(place - other) for other in shown) > 0.07]
            for place in shown:
                axes.annotate(marks[place], (x, place), textcoords="offset points", xytext=(4, 2), fontsize=8)
        axes.set_xticks(range(len(axes_of)), list(map(_label, axes_of)))
        axes.set_yticks([])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        return _svg(figure)
