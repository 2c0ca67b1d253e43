"""One override of the command line: it names a key or an option that exists, and its value is of the right kind."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from aira.config.bounds import ANY, COUNT, COUNT_OR_0, FACTS, TEXTS, check_choice, range_of
from aira.config.conf import options, own_groups, own_keys
from aira.config.record import flat
from aira.errors import AiraError, nearest

OPEN = ("hydra.", "model.config.", "model.checkpoints.")
"""Where a key that is not in conf/ may be added with `+`."""

PARTS = ("callbacks", "logger")
"""Groups whose parts a run can do without: `~callbacks.emissions`, `logger=[csv,wandb]`."""

UNNAMED = ("hydra", "method.lr", "model.lr", "model.epochs")
"""Keys that are not proposed for a misspelt one."""

ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "num_train_epochs": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "per_device_train_batch_size": "data.batch_size",
    "gpus": "trainer.devices",
    "gradient_accumulation_steps": "data.batch_size",  # which is that of a whole step; data.tokens_per_row divides it
    "trainer.accumulate_grad_batches": "data.batch_size",
}
"""What TRL, Transformers and others call keys that have another name here."""


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
        raise AiraError(f"{text}: a run has one {group}. Choose it without + or ~, as {group}=<name>.")
    _check_single(override)
    value = override.value()
    if value is None or (isinstance(value, list) and group not in PARTS):
        raise AiraError(f"{text}: name one option. {nearest('', options(group))}")
    for option in value if isinstance(value, list) else [value]:
        if str(option).removesuffix(".yaml") not in options(group):
            raise AiraError(f"{group}={option}: there is no such {group}. {nearest(str(option), options(group))}")


def _check_single(override: Override) -> None:
    """It is one value, not those of a sweep, which are taken apart before they come here."""
    if override.is_sweep_override():
        raise AiraError(f"{override.input_line}: several values need --multirun; in one value, quote the comma.")


def check_key(override: Override, defaults: DictConfig, config_name: str) -> None:
    """The key exists, and the value is of the default's type."""
    key, text = override.key_or_group, str(override.input_line)
    known = dict(flat(OmegaConf.to_container(defaults, resolve=False)))
    if key not in known:
        if override.is_add() or override.is_force_add():
            if key.startswith(OPEN):
                return
            text += " adds a key that nothing reads"
        readers = [name for name in options("method") if key.removeprefix("method.") in own_keys(name)]
        chosen = defaults.hydra.runtime.choices.get("method")
        if chosen and readers and chosen not in readers:
            raise AiraError(
                f"{text}: method={chosen} does not read it. method.{key.removeprefix('method.')} is for "
                f"{' and '.join(f'method={name}' for name in readers)}."
            )
        names = [name for name in known if not name.startswith(UNNAMED)] + own_groups(config_name)
        raise AiraError(f"{text}: there is no key or group '{key}'. {nearest(ELSEWHERE.get(key, key), names)}")
    if key.startswith("hydra."):
        return
    if override.is_delete():
        if key.count(".") == 1 and key.startswith(PARTS):
            return
        raise AiraError(f"{text}: something reads {key}, so it cannot be left out. Set it: {key}=<value>.")
    _check_single(override)
    for part in dict(flat({key: override.value()})):
        fact = next((fact for fact in FACTS if f"{part}.".startswith(f"{fact}.") or part.endswith(f".{fact}")), None)
        if fact:
            raise AiraError(f"{text}: {part} is a fact of the code, and not a setting: {FACTS[fact]}.")
    try:
        default = OmegaConf.select(defaults, key, throw_on_missing=False)
    except InterpolationKeyError:  # data without a path of its own for the method: here it gets one
        default = known[key]
    wrong = _type_expected(key, override.value(), default)
    if wrong:
        raise AiraError(f"{text}: {key} is {wrong}.")
    check_choice(key, override.value())


def _type_expected(key: str, value: Any, default: Any) -> str | None:
    """What a value should be, by the default, where it is something else."""
    if (isinstance(value, str) and "${" in value) or (value is None and (default is None or key == "model.dropout")):
        return None
    text = isinstance(value, (str, QuotedString))
    if default is None:
        allowed = range_of(key)
        if allowed and value not in allowed:
            return f"null, or {allowed}"
        return None if key not in TEXTS or (text and value) else "null, or text (a number needs quotes)"
    if key == "trainer.devices":
        several = isinstance(value, list) and value and all(part in COUNT_OR_0 for part in value)
        fits = value == "auto" or value in COUNT or (several and len(set(value)) == len(value))
        return None if fits else "a number from 1 on, or auto, or a list of GPUs such as [0,1]"
    if isinstance(default, DictConfig):
        parts = ", ".join(f"{key}.{part}" for part in map(str, default))
        return None if isinstance(value, dict) else f"one of several: {parts}" if parts else "a mapping: {name: value}"
    if isinstance(default, ListConfig):
        such = f"a list, such as [{','.join(map(str, default))}]" if len(default) else "a list of text"
        kind = (int, float) if key == "optimizer.betas" else (str, QuotedString)
        fits = isinstance(value, list) and all(isinstance(part, kind) and part != "" for part in value)
        return None if fits else such
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        whole = isinstance(default, int) and key != "trainer.val_check_interval"
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        allowed = range_of(key) or ANY
        if fits and value not in allowed:
            return str(allowed)
        return None if fits else f"{'a whole' if whole else 'a'} number, such as {default}"
    if text and not str(value):
        return f"text, such as {default}, and this is empty"
    return None if text else f"text, such as {default} (a number needs quotes)"
