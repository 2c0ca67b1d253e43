"""The folders of configuration files: the user's own, and Aira's `conf/`."""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from aira.errors import AiraError, nearest

PACKAGE = Path(__file__).resolve().parent.parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
"""Aira's own folder: in the installed package, or next to it in a clone."""

CONFIG_DIR = "AIRA_CONFIG_DIR"
"""The environment variable that passes the folder of --config-dir to child processes."""


def conf_dirs() -> list[Path]:
    """The folders in which a file is looked for, in this order: --config-dir, ./conf, Aira's own."""
    own = [Path(os.environ[CONFIG_DIR])] if os.environ.get(CONFIG_DIR) else []
    here = Path("conf").resolve()
    return list(dict.fromkeys([*own, *([here] if here.is_dir() else []), CONF]))


class _UsersFolders(SearchPathPlugin):
    """Has Hydra search the user's folders first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it composes."""
        for folder in reversed(conf_dirs()[:-1]):
            search_path.prepend("user", f"file://{folder}")


def register_user_folders() -> None:
    """Have Hydra search the user's folders from now on."""
    Plugins.instance().register(_UsersFolders)


def conf_file(name: str) -> Path:
    """The file of a command or an option, such as `train` or `model/gpt2-tiny`.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in conf_dirs():
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise FileNotFoundError(f"{name}.yaml is in none of {', '.join(map(str, conf_dirs()))}")


def check_own_file(group: str, option: str) -> None:
    """Check what Hydra takes for granted of an option's file, where it is the user's own.

    Raises:
        AiraError: it has no keys, or it begins with an option that does not exist.
        yaml.YAMLError: it is not YAML.
    """
    file = conf_file(f"{group}/{option}")
    if file.is_relative_to(CONF):
        return
    with file.open(encoding="utf-8") as stream:  # whose name an error has
        content = yaml.safe_load(stream)
    start = "Begin it with what it is made from, such as `defaults: [_base]`, and its `name:`."
    if not content or not isinstance(content, dict):
        raise AiraError(f"{file} has no keys. {start}")
    above = content.get("defaults", [])
    if not isinstance(above, list):
        raise AiraError(f"{file}: defaults={above} is no list. {start}")
    files = [other.stem for folder in conf_dirs() for other in (folder / group).glob("*.yaml")]
    for name in above:
        if isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and name not in (*files, "_self_"):
            raise AiraError(f"{file}: defaults: there is no {group} {name}. {nearest(name, files)}")


def replacing_files() -> list[Path]:
    """The user's files that replace Aira's of the same name."""
    return [
        file
        for folder in conf_dirs()[:-1]
        for file in sorted(folder.rglob("*.yaml"))
        if (CONF / file.relative_to(folder)).is_file()
    ]


def options(group: str) -> list[str]:
    """The options of a configuration group, such as `model`."""
    return sorted(
        {file.stem for folder in conf_dirs() for file in (folder / group).glob("*.yaml") if file.stem[:1] != "_"}
    )


def ids_of(group: str) -> list[str]:
    """The hub ids in the files of a group."""
    texts = (conf_file(f"{group}/{option}").read_text(encoding="utf-8") for option in options(group))
    return sorted({found for text in texts for found in re.findall(r"(?<![\w/.:-])\w[\w.-]*/\w[\w.-]*(?![\w/])", text)})


def groups() -> list[str]:
    """The configuration groups: the folders of conf/."""
    return sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())


def groups_of(config_name: str) -> list[str]:
    """The groups that a command chooses from."""
    primary: Any = OmegaConf.load(conf_file(config_name))
    entries = [entry for entry in primary.get("defaults", []) if entry != "_self_"]
    return [str(name).removeprefix("optional ") for entry in entries for name in entry]


def recipe_choices(recipe: str) -> dict[str, str]:
    """The options of other groups that a recipe, a file in conf/experiment, chooses."""
    experiment: Any = OmegaConf.load(conf_file(f"experiment/{recipe}"))
    pairs = [pair for entry in experiment["defaults"] if not isinstance(entry, str) for pair in entry.items()]
    return {group.removeprefix("override /"): option for group, option in pairs}


def keys_in(name: str) -> set[str]:
    """The top-level keys of a file, such as `model/_base`."""
    return {str(key) for key in OmegaConf.load(conf_file(name))}


def method_keys(method: str) -> set[str]:
    """The keys that are a method's own, and not those of every method."""
    return keys_in(f"method/{method}") - keys_in("method/_base") - {"defaults"}


def architecture_of(model: str) -> str:
    """`causal` or `encoder`, by the file of a model."""
    config: Any = OmegaConf.load(conf_file(f"model/{model}"))
    return str(config.get("architecture", "causal"))
