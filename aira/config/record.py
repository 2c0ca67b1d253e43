"""A configuration as a dict, and as a run writes it.

Only this package, the commands and the entry functions handle OmegaConf types.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env

from aira.errors import AiraError, reason_of
from aira.files import read_text, write_atomically


def to_dict(cfg: Any) -> Any:
    """The configuration, or a part of it, resolved to dicts, lists and scalars."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested dicts with their values, inner nodes included."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")


def to_dict_without_env(cfg: Any) -> dict[str, Any]:
    """The configuration as a run writes it: resolved, except for environment variables, which may be secrets."""
    OmegaConf.register_new_resolver("oc.env", lambda name, *_: f"${name}", replace=True)
    try:
        config: dict[str, Any] = to_dict(cfg)
        return config
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Write the configuration of a run, as from `to_dict_without_env`, to its folder."""
    write_atomically(run / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))


def read_config(run: Path) -> dict[str, Any]:
    """The configuration that a run has written, as a dict; nothing in it is resolved.

    Raises:
        AiraError: there is none, or it cannot be read.
    """
    file = run / ".hydra" / "config.yaml"
    text = read_text(file, run)
    try:
        depth = 0
        for event in yaml.parse(text or ""):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > 50:
                raise ValueError("YAML's aliases, or over 50 levels, which a run does not write")
        config: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
        json.dumps(config)
        if not isinstance(config, dict) or not config:
            raise ValueError("no keys")
        return config
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise AiraError(f"{file} is not the configuration of a run: {reason_of(error)}") from error
