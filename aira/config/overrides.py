"""One override of the command line: it names a key or an option that exists, and its value is of the right kind."""

import re
import shlex
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from aira.config.check import check_value
from aira.config.conf import options, own_groups, own_keys
from aira.config.record import flat
from aira.config.schema import COMMANDS
from aira.errors import AiraError, nearest
from aira.files import typed

OPEN = ("hydra.", "model.config.", "model.checkpoints.")
"""Where a key that is not in conf/ may be added with `+`."""

PARTS = ("callbacks", "logger")
"""Groups whose parts a run can do without: `~callbacks.emissions`, `logger=[csv,wandb]`."""

UNNAMED = ("hydra", "method.lr", "model.lr", "model.epochs")
"""Keys that are not proposed for a misspelt one."""

ELSEWHERE = {
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
    "resume_from_checkpoint": "ckpt_path",
    "report_to": "logger",
    **dict.fromkeys(("lora_r", "lora_rank"), "model.lora.r"),
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lang": "language",
    **dict.fromkeys(("max_tokens", "max_length"), "max_new_tokens"),
    **dict.fromkeys(("num_generations", "num_return_sequences"), "n"),
    **dict.fromkeys(("repo_id", "hub_model_id"), "repo"),
}
"""What TRL, Transformers, Lightning and others call keys that have another name here."""

SWITCHES = {
    "bf16": "trainer.precision=bf16-mixed",
    "fp16": "trainer.precision=16-mixed",
    **dict.fromkeys(("use_peft", "use_lora", "lora"), "model.lora.r=8"),
    **dict.fromkeys(("cpu", "use_cpu", "no_cuda"), "trainer=cpu"),
    "wandb": "logger=wandb",
}
"""Options without a value of other trainers."""


def parse_override(text: str) -> Override:
    """One override of the command line."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise AiraError(
            f"{text}: this is not of the form key=value. "
            "A value with a space or any of = , ( ) [ ] { } needs quotes in quotes: \"key='value'\"."
        ) from error


def check_option(override: Override, config_name: str) -> None:
    """The option of a group exists, and the command has the group."""
    group, text = override.key_or_group, override.input_line
    if group.startswith("hydra/"):  # such as hydra/sweeper=optuna: Hydra knows its own
        return
    own = own_groups(config_name)
    if group not in own:
        has = f"It has: {', '.join(name for name in own if '/' not in name)}." if own else "It has no groups."
        raise AiraError(f"{text}: this command (conf/{config_name}.yaml) has no {group} to choose. {has}")
    if override.is_delete() or override.is_add():
        chosen = override.value() if override.is_add() else options(group)[0]
        raise AiraError(f"{text}: a run has one {group}. Choose it without + or ~, as {group}={chosen}.")
    _check_single(override)
    value = override.value()
    if value is None or (isinstance(value, list) and group not in PARTS):
        raise AiraError(f"{text}: name one option. aira {config_name} --help {group} lists them.")
    for option in value if isinstance(value, list) else [value]:
        if str(option).removesuffix(".yaml") not in options(group):
            raise AiraError(f"{group}={option}: there is no such {group}. {nearest(str(option), options(group))}")


def _check_single(override: Override) -> None:
    """It is one value, not those of a sweep, which are taken apart before they come here."""
    if override.is_sweep_override():
        raise AiraError(f"{override.input_line}: several values need --multirun; in one value, quote the comma.")


def _named(key: str) -> bool:
    return not key.startswith(UNNAMED) and not key.endswith("._target_")


def _here(name: str, names: Iterable[str]) -> str:
    """What a name of another trainer is called in this command; the name itself where it is none."""
    theirs = get_close_matches(name.split(".")[-1], ELSEWHERE, n=1, cutoff=0.9)
    found = ELSEWHERE[theirs[0]] if theirs else name
    return found if name not in names and found in names else name


def in_place_of(option: str, value: str | None, known: dict[str, Any], config_name: str) -> str:
    """What is written in place of an option such as `--learning_rate 1e-4`.

    Args:
        value: None where it has none.
        known: the command's keys, with their defaults.

    Raises:
        AiraError: there is no such setting; the message has the nearest.
    """
    name, own = option.lstrip("-").replace("-", "_"), own_groups(config_name)
    own_of_methods = [f"method.{key}" for method in options("method") for key in own_keys(method)]
    names = [key for key in known if _named(key)] + own + own_of_methods * ("method" in own)
    if value is None and SWITCHES.get(name, "").partition("=")[0] in names:
        return SWITCHES[name]
    key = _here(name, names)
    same = [one for one in names if one.split(".")[-1] == key]
    key = same[0] if key not in names and len(set(same)) == 1 else key
    if key not in names:
        raise AiraError(f"{option}: there is no such setting. {nearest(key, names)}")
    if key in own and value is not None and value not in options(key):
        if f"{key}.path" not in known:
            raise AiraError(f"{option} {value}: there is no such {key}. {nearest(value, options(key))}")
        key = f"{key}.path"
    default = known.get(key) if key not in own else None
    if isinstance(default, dict) and default:
        raise AiraError(f"{option}: {key} is one of several: {', '.join(f'{key}.{part}' for part in default)}.")
    if isinstance(default, dict):
        such = shlex.quote(f"{key}={{name: {value or 1}}}")
        raise AiraError(f"{option}: {key} is a mapping of names to values, such as {such}.")
    if value is None:
        value = "true" if isinstance(default, bool) else options(key)[0] if key in own else str(default)
    bare = f"[{value}]" if isinstance(default, list) else value
    return f"{key}={bare}" if re.fullmatch(r"\[?[\w./:+-]+]?", bare, re.ASCII) else typed(key, value)


def check_key(override: Override, defaults: dict[str, Any], choices: Mapping[str, str], config_name: str) -> None:
    """The key exists, and its value is one that it may have.

    Args:
        defaults: what is composed without the override.
        choices: the options of the groups.
    """
    key, text = override.key_or_group, str(override.input_line)
    known = dict(flat(defaults))
    if key not in known:
        if override.is_add() or override.is_force_add():
            if key.startswith(OPEN):
                return
            text += " adds a key that nothing reads"
        readers = [name for name in options("method") if key.removeprefix("method.") in own_keys(name)]
        chosen = choices.get("method")
        if chosen and readers and chosen not in readers:
            raise AiraError(
                f"{text}: method={chosen} does not read it. method.{key.removeprefix('method.')} is for "
                f"{' and '.join(f'method={name}' for name in readers)}."
            )
        names = [name for name in known if _named(name)] + own_groups(config_name)
        lightning = " Other arguments of Lightning's Trainer are not taken." if key.startswith("trainer.") else ""
        raise AiraError(f"{text}: there is no key or group '{key}'. {nearest(_here(key, names), names)}{lightning}")
    if key.startswith("hydra."):
        return
    if override.is_delete():
        if key.count(".") == 1 and key.startswith(PARTS):
            return
        raise AiraError(f"{text}: something reads {key}, so it cannot be left out. {key}={known[key]} is the default.")
    _check_single(override)
    check_value(COMMANDS[config_name], key, override.value(), defaults)
