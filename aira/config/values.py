"""Checks across keys: parts of a configuration that cannot be combined, and notices for the user."""

from aira.config.conf import architecture_of, options, recipe_choices
from aira.config.schema import DPO, Evaluate, Model, Toxicity, Train
from aira.errors import AiraError

NO_FP16 = (
    "a CPU has no such autocast. Set trainer.precision=bf16-mixed, or 32-true.",
    "trainer=fsdp does not scale losses, which float16 needs. Set trainer.precision=bf16-mixed, or 32-true.",
)
"""Why float16 is not available: on a CPU, and with sharded weights."""


def check_run(settings: Train) -> None:
    """Check that the parts of a training run can be combined.

    Raises:
        AiraError: some cannot.
    """
    trainer, method, model = settings.trainer, settings.method, settings.model
    if model.architecture == "auto" and model.path == "none":
        raise AiraError(
            "model=auto: model.path has no value (a hub id, or a folder). Such as: aira train model=auto "
            "model.path=Qwen/Qwen3-0.6B-Base"
        )
    if trainer.precision == "16-mixed" and (trainer.sharded or trainer.accelerator == "cpu"):
        raise AiraError(f"trainer.precision=16-mixed: {NO_FP16[trainer.sharded]}")
    if trainer.accelerator == "cpu" and isinstance(trainer.devices, list):
        raise AiraError(
            f"trainer.devices={trainer.devices}: a list names GPUs. On a CPU it is a number of processes, such as "
            f"trainer=ddp-cpu trainer.devices={len(trainer.devices)}."
        )
    if settings.export == "best" and not (settings.callbacks.checkpoint and trainer.limit_val_batches):
        raise AiraError(
            "export=best takes checkpoints/best.ckpt, which is written after a validation: it needs "
            "callbacks.checkpoint, and trainer.limit_val_batches above 0."
        )
    if model.architecture not in (*method.architectures, "auto"):
        fitting = [name for name in options("model") if architecture_of(name) in method.architectures]
        raise AiraError(
            f"method={method.name} needs a {' or '.join(method.architectures)} model and model={model.name} is an "
            f"{model.architecture}. These fit: {', '.join(fitting[:8])}{' and others' * (len(fitting) > 8)}: "
            "aira train --help model."
        )
    if isinstance(method, DPO):
        _check_pairs(method)
    if isinstance(method, Toxicity) and method.class_weights and method.objective == "pairwise":
        raise AiraError("method.class_weights are for method.objective=classification; pairs hold one of each class.")
    if model.compile and model.attn_implementation != "sdpa":
        raise AiraError(
            "model.compile=true needs model.attn_implementation=sdpa: the loop over trees does not compile."
        )


def check_recipe(recipe: str, settings: Train) -> None:
    """Check that a recipe's language and method are those of its published model; all else may be overridden."""
    published, language, method = recipe_choices(recipe), settings.language.code, settings.method.name
    instead = f"Your own run needs no recipe: model={published['model']} method={method} language={language}."
    if published["language"] != language:
        available = [name for name in options("experiment") if recipe_choices(name)["language"] == language]
        raise AiraError(
            f"experiment={recipe} language={language}: the model was published only for language="
            f"{published['language']}. "
            f"Published for {language} are {', '.join(available)}. {instead}"
        )
    if published["method"] != method:
        raise AiraError(
            f"experiment={recipe} method={method}: the model was made by method={published['method']}. {instead}"
        )


def _check_pairs(method: DPO) -> None:
    """Check that the loss takes the other arguments of the method."""
    smoothing, loss = method.label_smoothing, method.loss
    if loss == "exo_pair" and smoothing == 0:
        raise AiraError("method.loss=exo_pair needs method.label_smoothing above 0 (1e-3 is usual): it takes its log.")
    if smoothing and loss in ("hinge", "ipo", "apo_zero", "apo_down", "orpo"):
        raise AiraError(f"method.loss={loss} has no label smoothing; method.label_smoothing={smoothing} must be 0.")
    if loss in ("simpo", "orpo") and method.reference:
        raise AiraError(f"method.loss={loss} has no reference; method.reference must be null.")


def notices(settings: Train | Evaluate) -> list[str]:
    """Notices for the user about a valid configuration, before it runs."""
    model, language = settings.model, settings.language.code
    if not isinstance(model, Model):
        return []
    default = model.path == model.checkpoints.get("default")
    if model.config and default and isinstance(settings, Train) and settings.method.name == "dpo":
        return [
            f"model={model.name} starts from random weights, and DPO is for a model that has learnt to answer: "
            "model.path=<run> takes that of an earlier method=sft run."
        ]
    if not model.config and default and language != "en" and language not in model.checkpoints:
        return [
            f"model={model.name} has no checkpoint of its own for language={language}: it starts from {model.path}. "
            f"Data, questions and messages are in {language}."
        ]
    return []
