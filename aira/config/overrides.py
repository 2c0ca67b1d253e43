"""Checks of an override of the command line: its key or option exists, and its value has the right type."""

import re
import shlex
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from aira.config.check import check_value, declared_type
from aira.config.conf import groups_of, method_keys, options
from aira.config.record import flatten
from aira.config.schema import COMMANDS, PairLoss
from aira.config.types import unwrap_type
from aira.errors import AiraError, nearest
from aira.files import quoted_override

OPEN = ("hydra.", "model.config.", "model.checkpoints.")
"""Prefixes of keys that may be added with `+` though they are not in conf/."""

PARTS = ("callbacks", "logger")
"""Groups whose parts can be removed or listed: `~callbacks.emissions`, `logger=[csv,wandb]`."""

NOT_SUGGESTED = ("hydra", "method.lr", "model.lr", "model.epochs")
"""Prefixes of keys that are not suggested."""

ALIASES = {
    **dict.fromkeys(("learning_rate", "lr"), "optimizer.lr"),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs"), "trainer.max_epochs"),
    # the batch size is that of a whole step; data.tokens_per_row divides it
    **dict.fromkeys(("per_device_train_batch_size", "train_batch_size", "bs", "batch"), "data.batch_size"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches"), "data.batch_size"),
    **dict.fromkeys(("gpus", "num_gpus", "n_gpu", "nproc_per_node"), "trainer.devices"),
    **dict.fromkeys(("model_name_or_path", "model_name", "pretrained", "base_model"), "model.path"),
    **dict.fromkeys(("dataset", "dataset_name", "train_file", "data_path"), "data.path"),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "block_size", "model_max_length"), "data.max_length"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "schedule.warmup"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler"), "schedule.name"),
    **dict.fromkeys(("gradient_clip_val", "grad_clip", "clip_grad_norm"), "optimizer.max_grad_norm"),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), "optimizer.betas"),
    "adam_epsilon": "optimizer.eps",
    "max_train_samples": "data.max_examples",
    "dataloader_num_workers": "data.num_workers",
    **dict.fromkeys(("dataset_num_proc", "preprocessing_num_workers"), "data.num_proc"),
    "logging_steps": "trainer.log_every_n_steps",
    "eval_steps": "trainer.val_check_interval",
    "save_steps": "callbacks.checkpoint.every_n_train_steps",
    **dict.fromkeys(("resume_from_checkpoint", "resume"), "ckpt_path"),
    "report_to": "logger",
    **dict.fromkeys(("lora_r", "lora_rank"), "model.lora.r"),
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lang": "language",
    **dict.fromkeys(("max_tokens", "max_length"), "max_new_tokens"),
    **dict.fromkeys(("num_generations", "num_return_sequences"), "n"),
    **dict.fromkeys(("repo_id", "hub_model_id"), "repo"),
}
"""Names of TRL, Transformers, Lightning and others for keys that have another name here."""

OPTIONS = {
    **{f"method={loss}": f"method=dpo method.loss={loss}" for loss in get_args(PairLoss)},
    "method=reward_model": "method=reward",
    **dict.fromkeys(("trainer=cuda", "trainer=auto"), "trainer=gpu"),
    **dict.fromkeys(("trainer=deepspeed", "trainer=zero"), "trainer=fsdp"),
    "logger=null": "logger=none",
    "logger=[]": "logger=none",
    "sweep=null": "sweep=none",
}
"""Options that have another name here, or are a key's value."""

SWITCHES = {
    "bf16": "trainer.precision=bf16-mixed",
    "fp16": "trainer.precision=16-mixed",
    **dict.fromkeys(("load_in_4bit", "quantization_bit", "use_4bit", "qlora"), "model.load_in_4bit=true"),
    **dict.fromkeys(("use_peft", "use_lora", "lora"), "model.lora.r=8"),
    **dict.fromkeys(("cpu", "use_cpu", "no_cuda"), "trainer=cpu"),
    "wandb": "logger=wandb",
    **dict.fromkeys(("resume", "resume_from_checkpoint"), "ckpt_path=last"),
}
"""Options of other trainers that have no value."""


def parse_override(text: str) -> Override:
    """Parse one override of the command line.

    Raises:
        AiraError: it is not in Hydra's grammar; the message has the override with its value in quotes.
    """
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, _, value = text.partition("=")
        quoted = re.fullmatch(r"[+~]*[\w.@/]+", key) and value and not re.match(r"['\"\[{]", value)
        example = quoted_override(key, value) if quoted else "\"key='value'\""
        raise AiraError(
            f"{text}: this is not of the form key=value. A value with a space, one of = , ( ) [ ] {{ }} or another "
            f"special character needs quotes in quotes: {example}."
        ) from error


def check_option(override: Override, config_name: str) -> None:
    """Check that an option of a group exists, and that the command has the group."""
    group, text = override.key_or_group, override.input_line
    if group.startswith("hydra/"):  # such as hydra/sweeper=optuna, which Hydra checks
        return
    names = groups_of(config_name)
    if group not in names:
        has = f"It has: {', '.join(name for name in names if '/' not in name)}." if names else "It has no groups."
        raise AiraError(f"{text}: this command (conf/{config_name}.yaml) has no {group} to choose. {has}")
    if override.is_delete() or override.is_add():
        option = override.value() if override.is_add() else options(group)[0]
        raise AiraError(f"{text}: a run has one {group}. Choose it without + or ~, as {group}={option}.")
    _check_single(override)
    value = override.value()
    if not value or (isinstance(value, list) and group not in PARTS):
        instead = f" {OPTIONS[text]} has none." if text in OPTIONS else ""
        raise AiraError(f"{text}: name one option. aira {config_name} --help {group} lists them.{instead}")
    for option in value if isinstance(value, list) else [value]:
        if str(option).removesuffix(".yaml") not in options(group):
            raise no_option(group, str(option), config_name)


def no_option(group: str, option: str, config_name: str) -> AiraError:
    """The error on an option that a group does not have, with what to use instead."""
    instead = OPTIONS.get(f"{group}={option}")
    suggestion = nearest(option, options(group), f"aira {config_name} --help {group}")
    return AiraError(f"{group}={option}: there is no such {group}. {f'It is {instead}.' if instead else suggestion}")


def _check_single(override: Override) -> None:
    """Check that it is a single value; the values of a sweep are split before."""
    if override.is_sweep_override():
        raise AiraError(f"{override.input_line}: several values need --multirun; in one value, quote the comma.")


def _can_be_suggested(key: str) -> bool:
    return not key.startswith(NOT_SUGGESTED) and not key.endswith("._target_")


def _translate_name(name: str, names: Iterable[str]) -> str:
    """The key for a name of another trainer; the name itself if there is none in this command."""
    aliases = get_close_matches(name.split(".")[-1], ALIASES, n=1, cutoff=0.9)
    key = ALIASES[aliases[0]] if aliases else name
    return key if name not in names and key in names else name


def translate_option(option: str, value: str | None, known: dict[str, Any], config_name: str) -> str:
    """The override to use in place of an option such as `--learning_rate 1e-4`.

    Args:
        value: None if the option has none.
        known: the command's keys, with their defaults.

    Raises:
        AiraError: there is no such setting; the message names the nearest one.
    """
    name, command_groups = option.lstrip("-").replace("-", "_"), groups_of(config_name)
    of_methods = [f"method.{key}" for method in options("method") for key in method_keys(method)]
    names = [key for key in known if _can_be_suggested(key)] + command_groups
    names += of_methods * ("method" in command_groups)
    if value is None and SWITCHES.get(name, "").partition("=")[0] in names:
        return SWITCHES[name]
    key = _translate_name(name, names)
    same = [other for other in names if other.split(".")[-1] == key]
    key = same[0] if key not in names and len(set(same)) == 1 else key
    if key not in names:
        keys = f"aira {config_name} --cfg job" if config_name in ("train", "evaluate") else f"aira {config_name} --help"
        raise AiraError(f"{option}: there is no such setting. {nearest(key, names, keys)}")
    if key in command_groups and value is not None and value not in options(key):
        if f"{key}.path" not in known:
            raise no_option(key, value, config_name)
        key = f"{key}.path"
    default = known.get(key) if key not in command_groups else None
    if isinstance(default, dict) and default:
        raise AiraError(f"{option}: {key} is one of several: {', '.join(f'{key}.{part}' for part in default)}.")
    if isinstance(default, dict):
        example = shlex.quote(f"++{key}={{name: {value or 1}}}")
        raise AiraError(f"{option}: {key} is a mapping of names to values, such as {example}.")
    if value is None and not isinstance(default, bool):
        raise AiraError(f"{option} needs a value: {key}=<value>. aira {config_name} --help {key} has what it may be.")
    value = "true" if value is None else value
    bare = f"[{value}]" if isinstance(default, list) else value
    return f"{key}={bare}" if re.fullmatch(r"\[?[\w./:+-]+]?", bare, re.ASCII) else quoted_override(key, value)


def _check_entry(override: Override, known: dict[str, Any], defaults: dict[str, Any], config_name: str) -> None:
    """Refuse a new entry of a mapping that is set as a key; the message sets it in the mapping."""
    key, text = override.key_or_group, str(override.input_line)
    parts = key.split(".")
    for length in range(1, len(parts)):
        mapping, entry = ".".join(parts[:length]), ".".join(parts[length:])
        annotation, facts = declared_type(COMMANDS[config_name], parts[:length], defaults)
        kind = unwrap_type(annotation)[0]
        values = get_args(kind)[1] if get_origin(kind) is dict else dict
        is_flat = get_origin(values) is not dict and not hasattr(values, "model_fields") and values is not dict
        if (
            is_flat
            and not key.startswith(OPEN)
            and not facts
            and mapping in known
            and ("." in entry or key not in known)
        ):
            value = text.partition("=")[2]
            value = value if re.fullmatch(r"[\w.:/+-]+|['\"\[{].*", value) else f"'{value}'"
            example = f'"++{mapping}={{{entry}: {value}}}"'
            raise AiraError(f"{text}: {mapping} is a mapping, and {entry} an entry of it: {example}.")


def check_key(override: Override, defaults: dict[str, Any], choices: Mapping[str, str], config_name: str) -> None:
    """Check that the key exists, and that its value is valid.

    Args:
        defaults: the configuration without overrides of keys.
        choices: the chosen options of the groups.
    """
    key, text = override.key_or_group, str(override.input_line)
    known = dict(flatten(defaults))
    _check_entry(override, known, defaults, config_name)
    if key not in known:
        if override.is_add() or override.is_force_add():
            if key.startswith(OPEN):
                return
            text += " adds a key that nothing reads"
        readers = [name for name in options("method") if key.removeprefix("method.") in method_keys(name)]
        method = choices.get("method")
        if method and readers and method not in readers:
            raise AiraError(
                f"{text}: method={method} does not read it. method.{key.removeprefix('method.')} is for "
                f"{' and '.join(f'method={name}' for name in readers)}."
            )
        names = [name for name in known if _can_be_suggested(name)] + groups_of(config_name)
        more = " Other arguments of Lightning's Trainer are not taken." if key.startswith("trainer.") else ""
        more = f" A new one is added by a plus sign: +{text}." if key.startswith(OPEN) else more
        keys = f"aira {config_name} --help" if key.count(".") == 0 else f"aira {config_name} --help {key.split('.')[0]}"
        raise AiraError(
            f"{text}: there is no key or group '{key}'. {nearest(_translate_name(key, names), names, keys)}{more}"
        )
    if key.startswith("hydra."):
        return
    if override.is_delete():
        if key.count(".") == 1 and key.startswith(PARTS):
            return
        raise AiraError(f"{text}: something reads {key}, so it cannot be left out. {key}={known[key]} is the default.")
    _check_single(override)
    check_value(COMMANDS[config_name], key, override.value(), defaults)
