"""Which metrics runs can be compared by: not those whose meaning depends on settings in which the runs differ."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

HELD_OUT = (
    *("method.name", "language.code", "data_key", "data.path", "data.split", "data.revision", "data.columns"),
    *("data.labels", "data.exclude", "data.validation_split", "data.validation_fraction", "data.max_length"),
)
"""Settings that determine on which examples, and on how much of each, a metric is measured."""

MEANING = (
    (r"/(loss|perplexity|logps/.*)$", ("tokenizer", "method.loss_on", "model.template", "model.prompt_bos")),
    (
        r"/loss$",
        (
            *("method.loss", "method.beta", "method.label_smoothing", "method.gamma", "method.sft_weight"),
            *("method.reference", "method.objective", "method.class_weights", "method.center_rewards_coefficient"),
        ),
    ),
    (r"/rewards/(chosen|rejected|margins)$", ("method.loss", "method.beta", "method.reference")),
    (r"/(rewards/margins_by_beta|rewards/accuracies|kl)$", ("method.reference",)),
    (r"/(margin|\w+_reward)$", ("method.center_rewards_coefficient", "method.label_smoothing", "method.objective")),
    (r"/(threshold|accuracy|f1|\w+/(precision|recall|f1))$", ("method.threshold_by", "method.objective")),
)
"""Further keys that change the meaning of metrics, by a pattern of the metrics' names."""

UNRANKED = re.compile(r"(^train/|/(threshold|lr|grad_norm|chosen|rejected|kl|\w+_reward)$)")
"""Metrics for which neither less nor more is better: on training rows, or a state rather than a quality."""


def confounders(metric: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which runs differ and that change what a metric means, so that it cannot rank them.

    Args:
        metric: as it is logged, such as `val/loss`.
        runs: for each run its settings by dotted keys, or the groups and keys that were chosen for it, and if known the
            hashes `tokenizer` and `data_key`.
    """
    if not metric.startswith(("val/", "train/")):
        return []
    keys = [*HELD_OUT, *(key for pattern, more in MEANING if re.search(pattern, metric) for key in more)]
    if not all("tokenizer" in run for run in runs):
        keys = ["model.path" if key == "tokenizer" else key for key in keys]
    return [key for key in dict.fromkeys(keys) if len({_setting(run, key) for run in runs}) > 1]


def hashes(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The hashes of a run's tokenizer and rows, as in environment.json, for `confounders`."""
    return {key: environment[key] for key in ("tokenizer", "data_key") if key in environment}


def _setting(run: Mapping[str, Any], key: str) -> str:
    """A setting as JSON, or the option of its group if only that is known."""
    group = run.get(key.split(".")[0])
    return json.dumps(run.get(key, group if isinstance(group, str) else None), sort_keys=True, default=str)
