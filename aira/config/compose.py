"""Composing a configuration; no torch is imported here.

A wrong name or value is answered within a second, with the nearest valid one.
"""

import contextlib
import inspect
import re
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from aira.config.check import S, checked
from aira.config.conf import CONF, conf_file, groups, options, search_in_users_folders
from aira.config.overrides import check_key, check_option, parse_override
from aira.config.record import flat, plain, read_config
from aira.config.schema import COMMANDS, Train
from aira.config.values import check_recipe, check_run
from aira.errors import AiraError, reason_of


def build(settings: dict[str, Any], key: str, **objects: Any) -> Any:
    """Call the class or function that `_target_` names with all other settings, and with objects.

    Args:
        key: of the settings, for errors.

    Raises:
        AiraError: there is no such class or function, or its arguments are others.
    """
    target = settings["_target_"]
    try:
        partial = instantiate(settings, _partial_=True, _convert_="all")
    except InstantiationException as error:
        raise AiraError(
            f"{key}: {target} cannot be imported: {reason_of(error.__cause__ or error)} Is its module in the folder "
            "where you give the command, or on PYTHONPATH?"
        ) from error
    try:
        inspect.signature(partial.func).bind(*partial.args, **partial.keywords, **objects)
    except TypeError as error:
        raise AiraError(f"{key}: {target}: {error}. The keys beside it are its arguments, by name.") from error
    return partial(**objects)


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
    search_in_users_folders()
    if config_name == "train":
        overrides = [*overrides, *chosen_model(overrides)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        parsed = [parse_override(override) for override in overrides]
        is_group = [override.key_or_group in groups() or "hydra/" in override.key_or_group for override in parsed]
        for override, group in zip(parsed, is_group, strict=True):
            if group:
                check_option(override, config_name)
        try:
            chosen = [text for text, group in zip(overrides, is_group, strict=True) if group]
            defaults = compose(config_name, chosen, return_hydra_config=True)
            defaulted = _plain_defaults(defaults)
            for override, group in zip(parsed, is_group, strict=True):
                if not group:
                    check_key(override, defaulted, defaults.hydra.runtime.choices, config_name)
            cfg = compose(config_name, overrides)
            _check_set(cfg, config_name)
            values = plain(cfg)
            recipe = defaults.hydra.runtime.choices.get("experiment")
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
                where = error.problem_mark
                raise AiraError(
                    f"{where.name}, line {where.line + 1}, column {where.column + 1}: {error.problem}."
                ) from error
            raise AiraError(_source_missing(error, locals().get("cfg"))) from error
    settings = checked(COMMANDS[config_name], values, defaulted)
    if isinstance(settings, Train):
        if recipe:
            check_recipe(recipe, settings)
        check_run(settings)
    return cfg


def _check_set(cfg: DictConfig, config_name: str) -> None:
    """Every key has a value: what has none by default, `???`, is told with the comment that stands beside it."""
    told, examples = [], []
    for key in [key for key, value in flat(OmegaConf.to_container(cfg)) if value == "???"]:
        group, _, last = key.partition(".")
        lines = ""
        with contextlib.suppress(FileNotFoundError):  # a group of the user's own
            lines = conf_file(f"{group}/_base" if last else config_name).read_text(encoding="utf-8")
        found = re.search(rf"^ *{key.split('.')[-1]}: \?\?\? # (.*)", lines, re.MULTILINE)
        what, _, example = (found[1] if found else "").partition(", such as ")
        told.append(f"{key} has no value{f' ({what})' if what else ''}.")
        examples += [example] * bool(example)
    if told:
        such = f"Such as: aira {config_name} {' '.join(examples)}" if len(examples) == len(told) else ""
        raise AiraError(" ".join([*told, such or "Set it in its file, or on the command line."]))


def defaults_of(config_name: str) -> dict[str, Any]:
    """The keys of a command with their defaults, as they stand in conf/."""
    search_in_users_folders()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return dict(flat(OmegaConf.to_container(compose(config_name), resolve=False)))


def _plain_defaults(defaults: DictConfig) -> dict[str, Any]:
    """The configuration without what the user has set; unresolved where a path is missing that the user may set."""
    own = OmegaConf.masked_copy(defaults, [str(key) for key in defaults if key != "hydra"])
    try:
        values = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException:
        values = OmegaConf.to_container(own, resolve=False)
    hydra = OmegaConf.to_container(defaults.hydra, resolve=False)
    return {**values, "hydra": hydra}  # type: ignore[dict-item]


def compose_settings(schema: type[S], overrides: list[str]) -> S:
    """The typed settings of a command, as `compose_config`."""
    name = next(name for name, each in COMMANDS.items() if each is schema)
    return validated(compose_config(name, overrides), schema)


def validated(cfg: DictConfig, schema: type[S]) -> S:
    """A composed configuration as typed settings."""
    return checked(schema, plain(cfg))


def composed_value(config_name: str, overrides: list[str], key: str) -> str:
    """What a key of Hydra's, such as `hydra.run.dir`, comes to.

    Raises:
        AiraError: it comes to nothing.
    """
    search_in_users_folders()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return str(OmegaConf.select(compose(config_name, overrides, return_hydra_config=True), key))
        except (HydraException, OmegaConfBaseException) as error:
            raise AiraError(f"{key}: {reason_of(error)}") from error


def _source_missing(error: Exception, cfg: DictConfig | None) -> str:
    """Say it plainly where the data group has nothing for the method's kind of data in the language."""
    if cfg is not None and "sources" in str(error):
        sources: Any = OmegaConf.to_container(cfg.data.sources, resolve=False)
        kind, language = cfg.method.kind, cfg.language.code
        has = [f"{name} ({', '.join(by_language)})" for name, by_language in sources.items()]
        return (
            f"data={cfg.data.name} has no {kind} data for language={language}, which method={cfg.method.name} needs. "
            f"It has: {'; '.join(has)}. Choose another data group, or give a file with data.path=."
        )
    if "hydra/launcher" in str(error) or "hydra/sweeper" in str(error):
        return f"{reason_of(error)}: pip install -e '.[cluster]' brings joblib and submitit_slurm."
    cause: BaseException | None = error
    while cause is not None and not str(cause).strip():
        cause = cause.__cause__
    return reason_of(cause or error)
