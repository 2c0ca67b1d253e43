"""The values of a composed configuration: what no single override shows, and what a user should know of it."""

from typing import Any

from aira.config.bounds import ABOVE_0, BELOW_1, NO_FP16, check_choice, check_number
from aira.config.conf import chosen_by, keys_in, options, role_of
from aira.config.record import flat
from aira.errors import AiraError, nearest


def _is_column(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name for name in names)


OF_MODELS = {"lr", "epochs", "exact_match", "max_length"}
"""What some models have of their own, where others take it from the method or the data."""


def check_values(values: dict[str, Any]) -> None:
    """What no single key shows: choices, ranges, and parts that do not go together."""
    known = dict(flat(values))
    for key, value in known.items():
        check_choice(key, value)
        check_number(key, value)
    betas = known.get("optimizer.betas", [0, 0])
    if len(betas) != 2 or not all(beta in BELOW_1 for beta in betas):
        raise AiraError(f"optimizer.betas={betas}: they are two, each {BELOW_1}.")
    columns = known.get("data.columns") or {}
    if not isinstance(columns, dict) or not all(_is_column(column) for column in columns.values()):
        raise AiraError(
            f"data.columns={columns}: it is a mapping to a column or a list of them, such as '{{prompt: question}}'; a "
            "number needs quotes."
        )
    labels = known.get("data.labels") or {}
    if not isinstance(labels, dict) or not all(
        cls is None or (type(cls) is int and cls in (0, 1)) for cls in labels.values()
    ):
        raise AiraError(
            f"data.labels={labels}: 1 is toxic, 0 not, null leaves out, such as '{{OFF: 1, NOT: 0, UNSURE: null}}'."
        )
    sharded = isinstance(known.get("trainer.strategy"), dict)
    if known.get("trainer.precision") == "16-mixed" and (sharded or known["trainer.accelerator"] == "cpu"):
        raise AiraError(f"trainer.precision=16-mixed: {NO_FP16[sharded]}")
    if known.get("export") == "best" and not (
        "checkpoint" in values["callbacks"] and known["trainer.limit_val_batches"]
    ):
        raise AiraError(
            "export=best takes checkpoints/best.ckpt, which is written after a validation: it needs "
            "callbacks.checkpoint, and trainer.limit_val_batches above 0."
        )
    method, model = values.get("method"), values.get("model")
    if not method or not model:
        return
    for group in ("model", "data"):
        base = keys_in(f"{group}/_base")
        name = values[group].get("name")
        for key in base - values[group].keys():
            raise AiraError(f"{group}={name}: its file has no {key}. Begin it with a line `defaults: [_base]`.")
        for key in values[group].keys() - base - OF_MODELS:
            raise AiraError(f"{group}={name}: nothing reads its key {key}. {nearest(key, base)}")
    if model["role"] not in method["role"]:
        fitting = [name for name in options("model") if role_of(name) in method["role"]]
        raise AiraError(
            f"method={method['name']} needs a {' or '.join(method['role'])} model and model={model['name']} is an "
            f"{model['role']}. These fit: {', '.join(fitting)}."
        )
    _check_method(method)
    if model["compile"] and model["attn_implementation"] != "sdpa":
        raise AiraError(
            "model.compile=true needs model.attn_implementation=sdpa: the loop over trees does not compile."
        )


def check_recipe(recipe: str, values: dict[str, Any]) -> None:
    """A published model is of one language and one method; all else that its recipe sets may be set otherwise."""
    own, language, method = chosen_by(recipe), values["language"]["code"], values["method"]["name"]
    instead = f"Your own run needs no recipe: model={own['model']} method={method} language={language}."
    if own["language"] != language:
        there = [name for name in options("experiment") if chosen_by(name)["language"] == language]
        raise AiraError(
            f"experiment={recipe} language={language}: the model was published for language={own['language']} alone. "
            f"Published for {language} are {', '.join(there)}. {instead}"
        )
    if own["method"] != method:
        raise AiraError(f"experiment={recipe} method={method}: the model was made by method={own['method']}. {instead}")


def _check_method(method: dict[str, Any]) -> None:
    """Arguments of the losses that no single key shows."""
    smoothing, loss = method.get("label_smoothing", 0), method.get("loss")
    if loss == "exo_pair" and smoothing == 0:
        raise AiraError("method.loss=exo_pair needs method.label_smoothing above 0 (1e-3 is usual): it takes its log.")
    if smoothing and loss in ("hinge", "ipo", "apo_zero", "apo_down", "orpo"):
        raise AiraError(f"method.loss={loss} has no label smoothing; method.label_smoothing={smoothing} must be 0.")
    if loss in ("simpo", "orpo") and method["reference"]:
        raise AiraError(f"method.loss={loss} has no reference; method.reference must be null.")
    weights = method.get("class_weights")
    pair = isinstance(weights, list) and len(weights) == 2 and all(weight in ABOVE_0 for weight in weights)
    if not (pair or weights in (None, "balanced")):
        raise AiraError(f"method.class_weights={weights}: valid are null, balanced, and [harmless, toxic] above 0.")
    if weights and method["objective"] == "pairwise":
        raise AiraError("method.class_weights are for method.objective=classification; pairs hold one of each class.")


def notices(values: dict[str, Any]) -> list[str]:
    """What a user should know about a valid configuration before it runs."""
    model, language = values["model"], values["language"]["code"]
    said = []
    fresh = model.get("config") and model["path"] == model["checkpoints"]["default"]
    if fresh and values.get("method", {}).get("name") == "dpo":
        said.append(
            f"model={model['name']} starts from random weights, and DPO is for a model that has learnt to answer: "
            "model.path=<run> takes that of an earlier method=sft run."
        )
    pretrained = not model.get("config") and model["path"] == model.get("checkpoints", {}).get("default")
    if pretrained and language != "en" and language not in model["checkpoints"]:
        said.append(
            f"model={model['name']} has no checkpoint of its own for language={language}: "
            f"it starts from {model['path']}. Data, questions and messages are in {language}."
        )
    return said
