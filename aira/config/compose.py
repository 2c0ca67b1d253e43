"""Composition of a configuration, without importing torch.

An error on a wrong name or value comes within a second, and names the nearest valid one.
"""

import contextlib
import copy
import functools
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from aira.config.check import S, validate
from aira.config.conf import CONF, check_own_file, conf_dirs, conf_file, groups, options, register_user_folders
from aira.config.overrides import check_key, check_option, parse_override
from aira.config.record import flatten, read_config, to_dict
from aira.config.schema import COMMANDS, Answering, Evaluate, Train
from aira.config.values import check_answering, check_evaluation, check_recipe, check_run
from aira.errors import AiraError, reason_of
from aira.files import install_command


def build(settings: dict[str, Any], key: str, kinds: tuple[type, ...] = (object,), /, **objects: Any) -> Any:
    """Call the class or function that `_target_` names with all other settings, and with objects.

    Args:
        key: of the settings, for error messages.
        kinds: the classes of which it is to be one.

    Raises:
        AiraError: there is no such class or function, it does not take these arguments, or it is of another kind.
    """
    target, partial = settings["_target_"], check_target(settings, key, kinds)
    try:
        inspect.signature(partial.func).bind(*partial.args, **partial.keywords, **objects)
    except (TypeError, ValueError) as error:  # a function in C may have no signature
        raise AiraError(f"{key}: {target}: {error}. The other keys are its arguments, by name.") from error
    try:
        built = partial(**objects)
    except ImportError as error:
        raise AiraError(f"{key}: {target}: {reason_of(error)}") from error
    if not isinstance(built, kinds):
        raise _other_kind(key, target, kinds)
    return built


def check_target(settings: dict[str, Any], key: str, kinds: tuple[type, ...]) -> functools.partial[Any]:
    """The class or function that `_target_` names, with the other settings as arguments, not called yet.

    Args:
        key, kinds: as of `build`; what a function gives is known only once it is called.

    Raises:
        AiraError: there is no such class or function, or the class is of another kind.
    """
    target = settings["_target_"]
    try:
        partial: functools.partial[Any] = instantiate(settings, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise AiraError(
            f"{key}: {target} cannot be imported: {reason_of(error.__cause__ or error)} Is its module in the current "
            "folder, or on PYTHONPATH?"
        ) from error
    if isinstance(partial.func, type) and not issubclass(partial.func, kinds):
        raise _other_kind(key, target, kinds)
    return partial


def _other_kind(key: str, target: str, kinds: tuple[type, ...]) -> AiraError:
    wanted = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
    return AiraError(f"{key}: {target} is no {wanted}, which is wanted there.")


def chosen_model(overrides: list[str]) -> list[str]:
    """The model group that `model.path` alone stands for: that of the run which it is of, else `model=auto`.

    Returns:
        One override; none where a group is named, or no path is.
    """
    parsed = {one.key_or_group: one for one in map(parse_override, overrides)}
    path = parsed.get("model.path")
    if path is None or path.is_sweep_override() or {"model", "experiment"} & parsed.keys():
        return []
    located = str(path.value())
    if located.startswith("pkg://aira."):  # the tokenizers of the tiny models
        return []
    folder = Path(located)
    run = folder.parent if folder.name == "export" else folder
    name = "auto"
    if (run / ".hydra").is_dir():
        with contextlib.suppress(AiraError, LookupError, TypeError):
            name = str(read_config(run)["model"]["name"])
    return [f"model={name if name in options('model') else 'auto'}"]


def compose_config(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose `conf/<config_name>.yaml` as the command line does, for use from Python.

    Raises:
        AiraError: a group, option, key or value is wrong; the message names the nearest valid one.
    """
    register_user_folders()
    if config_name == "train":
        overrides = [*overrides, *chosen_model(overrides)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parsed = [parse_override(override) for override in overrides]
        is_group = [override.key_or_group in groups() or "hydra/" in override.key_or_group for override in parsed]
        for override, group in zip(parsed, is_group, strict=True):
            if group:
                check_option(override, config_name)
        try:
            for override, group in zip(parsed, is_group, strict=True):
                for option in _chosen(override) if group and "/" not in override.key_or_group else ():
                    check_own_file(override.key_or_group, option)
            group_overrides = [text for text, group in zip(overrides, is_group, strict=True) if group]
            compose_defaults = _cached_defaults if conf_dirs() == [CONF] else _defaults  # a user's files may change
            default_values, choices, defaults = compose_defaults(config_name, tuple(group_overrides))
            for override, group in zip(parsed, is_group, strict=True):
                if not group:
                    check_key(override, default_values, choices, config_name)
            cfg = compose(config_name, overrides) if group_overrides != overrides else copy.deepcopy(defaults)
            _check_missing(cfg, config_name)
            values = to_dict(cfg)
            recipe = choices.get("experiment")
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
                mark = error.problem_mark
                raise AiraError(
                    f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}."
                ) from error
            raise AiraError(_compose_error(error, overrides, locals().get("cfg"))) from error
    settings = validate(COMMANDS[config_name], values, default_values)
    if isinstance(settings, Train):
        if recipe:
            check_recipe(recipe, settings)
        check_run(settings)
    elif isinstance(settings, Evaluate):
        check_evaluation(settings, [override.key_or_group for override in parsed])
    elif isinstance(settings, Answering):
        check_answering(settings)
    return cfg


def _chosen(override: Override) -> list[str]:
    """The options that an override of a group names."""
    value = override.value()
    return [str(option).removesuffix(".yaml") for option in (value if isinstance(value, list) else [value])]


def _defaults(config_name: str, group_overrides: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str], DictConfig]:
    """What a command composes with only its groups chosen, as plain data; each group's option; and the composed one."""
    defaults = compose(config_name, list(group_overrides), return_hydra_config=True)
    values, choices = _defaults_dict(defaults), dict(defaults.hydra.runtime.choices)
    with open_dict(defaults):
        del defaults["hydra"]
    return values, choices, defaults


_cached_defaults = functools.cache(_defaults)  # a search checks many trials in one process


def _check_missing(cfg: DictConfig, config_name: str) -> None:
    """Require a value for every key; the error on one without a default, `???`, quotes the key's comment."""
    errors, examples = [], []
    for key in [key for key, value in flatten(OmegaConf.to_container(cfg)) if value == "???"]:
        group, _, last = key.partition(".")
        lines = ""
        with contextlib.suppress(FileNotFoundError):  # a group of the user's own
            lines = conf_file(f"{group}/_base" if last else config_name).read_text(encoding="utf-8")
        match = re.search(rf"^ *{key.split('.')[-1]}: \?\?\? # (.*)", lines, re.MULTILINE)
        what, _, example = (match[1] if match else "").partition(", such as ")
        errors.append(f"{key} has no value{f' ({what})' if what else ''}.")
        examples += [example] * bool(example)
    if errors:
        example = f"Such as: aira {config_name} {' '.join(examples)}" if len(examples) == len(errors) else ""
        raise AiraError(" ".join([*errors, example or "Set it in its file, or on the command line."]))


def defaults_of(config_name: str) -> dict[str, Any]:
    """The keys of a command with their defaults, as in conf/."""
    register_user_folders()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return dict(flatten(OmegaConf.to_container(compose(config_name), resolve=False)))


def _defaults_dict(defaults: DictConfig) -> dict[str, Any]:
    """The configuration without overrides of keys; unresolved if it lacks a path that the user may set."""
    without_hydra = OmegaConf.masked_copy(defaults, [str(key) for key in defaults if key != "hydra"])
    try:
        values = OmegaConf.to_container(without_hydra, resolve=True)
    except OmegaConfBaseException:
        values = OmegaConf.to_container(without_hydra, resolve=False)
    hydra = OmegaConf.to_container(defaults.hydra, resolve=False)
    return {**values, "hydra": hydra}  # type: ignore[dict-item]


def compose_settings(schema: type[S], overrides: list[str]) -> S:
    """The typed settings of a command; see `compose_config`."""
    name = next(name for name, each in COMMANDS.items() if each is schema)
    return typed_settings(compose_config(name, overrides), schema)


def typed_settings(cfg: DictConfig, schema: type[S]) -> S:
    """A composed configuration as typed settings."""
    return validate(schema, to_dict(cfg))


def composed_value(config_name: str, overrides: list[str], key: str) -> str:
    """The value of one of Hydra's keys, such as `hydra.run.dir`.

    Raises:
        AiraError: it cannot be resolved.
    """
    register_user_folders()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return str(OmegaConf.select(compose(config_name, overrides, return_hydra_config=True), key))
        except (HydraException, OmegaConfBaseException) as error:
            raise AiraError(f"{key}: {reason_of(error)}") from error


def _compose_error(error: Exception, overrides: list[str], cfg: DictConfig | None) -> str:
    """The message for an error of composition, such as a data set without the kind of data or the language."""
    if mapping := re.match(r"Could not override '([\w.]+)'", reason_of(error)):
        text = next((text for text in overrides if text.startswith(f"{mapping[1]}=")), mapping[1])
        return f"{text}: {mapping[1]} has no such entry yet. ++ adds it: {shlex.quote(f'++{text}')}."
    if cfg is not None and "sources" in str(error):
        sources: Any = OmegaConf.to_container(cfg.data.sources, resolve=False)
        kind, language = cfg.method.kind, cfg.language.code
        has = [f"{name} ({', '.join(by_language)})" for name, by_language in sources.items()]
        return (
            f"data={cfg.data.name} has no {kind} data for language={language}, which method={cfg.method.name} needs. "
            f"It has: {'; '.join(has)}. Choose another data group, or give a file with data.path=."
        )
    if "hydra/launcher" in str(error) or "hydra/sweeper" in str(error):
        return f"{reason_of(error)}: {install_command('cluster')} brings joblib and submitit_slurm."
    cause: BaseException | None = error
    while cause is not None and not str(cause).strip():
        cause = cause.__cause__
    return reason_of(cause or error)
