"""Checks across keys: parts of a configuration that cannot be combined, and notices for the user."""

import re
from collections.abc import Callable, Collection
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from aira.config.conf import architecture_of, ids_of, options, recipe_choices
from aira.config.schema import DPO, Answering, Evaluate, Model, Toxicity, Train
from aira.errors import AiraError
from aira.files import install_command, locate

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
    if settings.callbacks.early_stopping and not trainer.limit_val_batches:
        raise AiraError("callbacks=early_stopping goes by validations: it needs trainer.limit_val_batches above 0.")
    if settings.callbacks.ema and settings.callbacks.swa:
        raise AiraError("callbacks=ema and callbacks=swa are two averages of the weights: choose one.")
    if (settings.callbacks.ema or settings.callbacks.swa) and trainer.sharded:
        raise AiraError("callbacks=ema and callbacks=swa need whole weights, and those of trainer=fsdp are sharded.")
    if model.architecture not in (*method.architectures, "auto"):
        fitting = [name for name in options("model") if architecture_of(name) in method.architectures]
        raise AiraError(
            f"method={method.name} needs a {' or '.join(method.architectures)} model and model={model.name} is an "
            f"{model.architecture}. These fit: {', '.join(fitting[:8])}{' and others' * (len(fitting) > 8)}: "
            "aira train --help model."
        )
    _check_optimizer(settings)
    if isinstance(method, DPO):
        _check_pairs(method)
    if isinstance(method, Toxicity) and method.class_weights and method.objective == "pairwise":
        raise AiraError("method.class_weights are for method.objective=classification; pairs hold one of each class.")
    if model.load_in_4bit:
        _check_4bit(settings)
    if model.compile and model.attn_implementation != "sdpa":
        raise AiraError(
            "model.compile=true needs model.attn_implementation=sdpa: the loop over trees does not compile."
        )


def _check_4bit(settings: Train) -> None:
    """Check that weights of 4 bits can be held, and that something else is trained."""
    if not settings.model.lora.r:
        raise AiraError("model.load_in_4bit=true freezes weights: it needs adapters to train, such as model.lora.r=16.")
    if settings.trainer.sharded:
        raise AiraError("model.load_in_4bit=true: trainer=fsdp shards no 4-bit weights. Choose another trainer.")
    _need_bitsandbytes("model.load_in_4bit=true")


def _need_bitsandbytes(setting: str) -> None:
    if not find_spec("bitsandbytes"):
        raise AiraError(f"{setting} needs bitsandbytes. Run `{install_command('quant')}`.")


def _check_optimizer(settings: Train) -> None:
    """Check that optimizer and schedule fit to each other and to the trainer, and that their library is there."""
    name, schedule, peak = settings.optimizer.name, settings.schedule, settings.optimizer.lr
    if name != "adamw" and settings.trainer.sharded:
        raise AiraError(f"optimizer.name={name}: with trainer=fsdp, which shards weights, only adamw is supported.")
    if name == "adamw-8bit":
        _need_bitsandbytes("optimizer.name=adamw-8bit")
    if not schedule.min_lr:
        return
    if schedule.name not in (with_end := ("cosine_with_min_lr", "polynomial", "wsd")):
        raise AiraError(
            f"schedule.min_lr={schedule.min_lr}: schedule.name={schedule.name} has none. Choose {', '.join(with_end)}, "
            "or leave it out."
        )
    if schedule.min_lr >= peak:
        raise AiraError(f"schedule.min_lr={schedule.min_lr} must be below the peak, optimizer.lr={peak}.")


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


def check_evaluation(settings: Evaluate, given: Collection[str] = ()) -> None:
    """Check that the parts of an evaluation can be combined.

    Args:
        given: the keys that the command line sets.

    Raises:
        AiraError: some cannot.
    """
    check_device(settings.device)
    named = [key for key in given if key in ("model", "model.path")]
    if settings.compare:
        of_models = [*named, *(key for key in given if key == "models" or key.split(".")[0] == "eval")]
        if of_models:
            raise AiraError(
                f"compare= is of two evaluations that are there, and {of_models[0]}= is for a new one: leave one out."
            )
        if len(settings.compare) != 2:
            raise AiraError(f"compare=[{','.join(settings.compare)}]: name two folders of evaluations.")
    if settings.models and named:
        raise AiraError(
            f"models= and {named[0]}= both name what is evaluated: give one of them, such as models= alone."
        )
    suite = settings.eval
    if not suite.tasks and suite.name != "sample":
        raise AiraError(f"eval.tasks=[]: eval={suite.name} has no task. Name some, or choose eval=sample.")
    for key in ("num_fewshot", "not_averaged"):
        unknown = [task for task in getattr(suite, key) if task not in suite.tasks] if f"eval.{key}" in given else []
        if unknown:
            raise AiraError(f"eval.{key}: {unknown[0]} is none of eval.tasks=[{','.join(suite.tasks)}].")


def check_answering(settings: Answering) -> None:
    """Check that the parts of a chat, or of a sampling, can be combined.

    Raises:
        AiraError: some cannot.
    """
    check_device(settings.device)
    check_sampling(settings.n, settings.temperature)
    guard = settings.guard
    if guard.threshold is not None and guard.threshold_logit is not None:
        raise AiraError("guard.threshold and guard.threshold_logit are one limit in two units: set one of them.")
    if settings.toxicity_model == "none":
        check_guard(settings)


def check_device(device: str) -> None:
    """Check that a device has the name of one; whether it is there, torch knows.

    Raises:
        AiraError: it has not.
    """
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", device):
        raise AiraError(f"device={device}: it is auto, cpu, or a GPU: cuda, or cuda:1 for the second one.")


def check_guard(settings: Answering) -> None:
    """Check that a chat without a toxicity model has no settings of one.

    Raises:
        AiraError: it has.
    """
    unread = [key for key, value in settings.guard if value is not None and (key, value) != ("reads", "answer")]
    if unread:
        raise AiraError(
            f"guard.{unread[0]} is for a toxicity model, and there is none: name one with toxicity_model=, train one "
            "(aira train method=toxicity), or leave it out."
        )


def check_sampling(n: int, temperature: float) -> None:
    """Check that candidates are sampled in a way in which they can differ.

    Raises:
        AiraError: several candidates would all be the same, or scores would overflow.
    """
    if 0 < temperature < LEAST_TEMPERATURE:
        raise AiraError(f"temperature={temperature}: below {LEAST_TEMPERATURE} scores overflow. 0 is greedy, with n=1.")
    if n > 1 and temperature == 0:
        raise AiraError(f"n={n} candidates would all be the same with temperature=0. Set n=1, or a temperature.")


LEAST_TEMPERATURE = 1e-6
"""Logits that are divided by less overflow."""

Condition = Callable[[Train], bool]

ONE_SOURCE = ("path", "split", "validation_split", "revision", "columns", "max_examples")
"""Keys of `data` that an entry of data.mix has for itself."""

READ_IF: tuple[tuple[str, Condition, str], ...] = (
    ("method.gamma", lambda run: getattr(run.method, "loss", "simpo") == "simpo", "method.loss=simpo"),
    ("data.labels", lambda run: run.method.kind == "labelled", "labelled data, as of method=toxicity"),
    ("data.revision", lambda run: bool(run.data.mix) or not _is_local(run.data.path), "a data set on the hub"),
    *(
        (f"data.{key}", lambda run: not run.data.mix, "a run without data.mix, whose entries have their own")
        for key in ONE_SOURCE
    ),
    ("data.mix_by", lambda run: len(run.data.mix) > 1, "several entries of data.mix"),
    ("model.revision", lambda run: not _is_local(run.model.path), "a model on the hub"),
    ("model.trust_remote_code", lambda run: not run.model.path.startswith("pkg://"), "a model with code of its own"),
    ("model.lora.alpha", lambda run: run.model.lora.r > 0, "model.lora.r above 0"),
    ("model.lora.dropout", lambda run: run.model.lora.r > 0, "model.lora.r above 0"),
    ("model.lora.target_modules", lambda run: run.model.lora.r > 0, "model.lora.r above 0"),
    ("model.template", lambda run: run.model.architecture != "encoder", "a causal model"),
    (
        "model.prompt_bos",
        lambda run: run.model.architecture != "encoder" and run.model.template == "aira",
        "a causal model with model.template=aira",
    ),
    ("trainer.max_epochs", lambda run: run.trainer.max_steps < 0, "a run without trainer.max_steps"),
    (
        "trainer.val_check_interval",
        lambda run: bool(run.trainer.limit_val_batches),
        "trainer.limit_val_batches above 0",
    ),
    ("callbacks.samples", lambda run: run.method.head == "lm", "a language model"),
    ("callbacks.scores", lambda run: run.method.head == "score", "a scorer"),
    ("callbacks.checkpoint.monitor", lambda run: bool(run.trainer.limit_val_batches), "a run with validation"),
    ("callbacks.checkpoint.mode", lambda run: bool(run.trainer.limit_val_batches), "a run with validation"),
)
"""Keys that are read only in some runs: the condition, and in words what they are for."""


def _is_local(path: str) -> bool:
    """Whether a path is of this machine, and not a hub id."""
    return path.startswith("pkg://") or Path(locate(path)).expanduser().exists()


def _misspelt(key: str, path: str, group: str) -> list[str]:
    """A notice where a hub id differs by a letter from one that is known; else none."""
    known = ids_of(group) if not _is_local(path) else []
    near = get_close_matches(path, known, n=1, cutoff=0.9) if path not in known else []
    same = [
        one for one in near if re.findall(r"\d+", one) == re.findall(r"\d+", path) and abs(len(one) - len(path)) < 2
    ]
    return [f"{key}={path} is asked for on the hub. Is {one} meant?" for one in same]


def warmup_notice(settings: Train, steps: int) -> list[str]:
    """A notice where a run of so many steps ends before its learning rate is at its peak; else none."""
    if not 1 < steps <= settings.schedule.warmup:
        return []
    return [
        f"schedule.warmup={settings.schedule.warmup} steps, and the run has {steps}: the learning rate only rises. A "
        "fraction, such as schedule.warmup=0.03, is one of all steps."
    ]


def notices(settings: Train | Evaluate, given: Collection[str] = ()) -> list[str]:
    """Notices for the user about a valid configuration, before it runs.

    Args:
        given: the keys that the command line sets.
    """
    lines = []
    if isinstance(settings, Train):
        for prefix, is_read, of in READ_IF:
            keys = [key for key in given if f"{key}.".startswith(f"{prefix}.")]
            lines += [f"{key} changes nothing here: it is for {of}." for key in keys if not is_read(settings)]
        if settings.optimizer.lr == 0:
            lines.append("optimizer.lr=0: no weight changes, so the figures are those of the model as it is.")
        lines += warmup_notice(settings, settings.trainer.max_steps)
        lines += _misspelt("data.path", settings.data.path, "data") if not settings.data.mix else []
    elif "model.revision" in given and _is_local(settings.model.path):
        lines.append("model.revision changes nothing here: it is for a model on the hub.")
    return lines + _misspelt("model.path", settings.model.path, "model") + _start_notices(settings)


def _start_notices(settings: Train | Evaluate) -> list[str]:
    """Notices about the checkpoint that a run starts from."""
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
