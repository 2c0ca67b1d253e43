"""Which metrics runs can be compared by: not by one whose meaning their settings change."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

HELD_OUT = (
    *("method.name", "language.code", "data_key", "data.path", "data.split", "data.revision", "data.columns"),
    *("data.labels", "data.exclude", "data.validation_split", "data.validation_fraction", "data.max_length"),
)
"""What says on which examples, and on how much of them, a metric is measured."""

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
"""Of which metrics, by their names, which further keys change the meaning."""

UNRANKED = re.compile(r"(^train/|/(threshold|lr|grad_norm|chosen|rejected|kl|\w+_reward)$)")
"""Metrics of which neither less nor more is better: of the training rows, or a state rather than a quality."""


def blurred_by(metric: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that change what a metric means from run to run, so that it ranks nothing.

    Args:
        metric: as it is logged, such as `val/loss`.
        runs: of each its settings by dotted keys, or the groups and keys that were chosen for it, and where they are
            known the hashes `tokenizer` and `data_key`.
    """
    if not metric.startswith(("val/", "train/")):
        return []
    keys = [*HELD_OUT, *(key for pattern, more in MEANING if re.search(pattern, metric) for key in more)]
    if not all("tokenizer" in run for run in runs):
        keys = ["model.path" if key == "tokenizer" else key for key in keys]
    return [key for key in dict.fromkeys(keys) if len({_setting(run, key) for run in runs}) > 1]


def hashes(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What a run wrote down in environment.json of its tokenizer and of its rows, for `blurred_by`."""
    return {key: environment[key] for key in ("tokenizer", "data_key") if key in environment}


def _setting(run: Mapping[str, Any], key: str) -> str:
    """A setting; of a group whose option is all that is known, that."""
    group = run.get(key.split(".")[0])
    return json.dumps(run.get(key, group if isinstance(group, str) else None), sort_keys=True, default=str)
