"""A configuration as plain data, and as a run writes it down.

Outside this package, the commands and the entry functions nothing sees an OmegaConf type.
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
from aira.files import read_text, write_whole


def plain(cfg: Any) -> Any:
    """The configuration, or a part of it, resolved into dicts, lists and scalars."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested dicts, inner nodes included, with their values."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")


def recorded(cfg: Any) -> dict[str, Any]:
    """The configuration as it is written down: resolved, but for variables of the environment, which may be secrets."""
    OmegaConf.register_new_resolver("oc.env", lambda name, *_: f"${name}", replace=True)
    try:
        found: dict[str, Any] = plain(cfg)
        return found
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)


def write_config(run: Path, values: dict[str, Any]) -> None:
    """Write down the configuration of a run, as `recorded` has it."""
    write_whole(run / ".hydra" / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))


def read_config(run: Path) -> dict[str, Any]:
    """The configuration that a run has written down, as plain data: nothing in it is resolved.

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
        found: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
        json.dumps(found)
        if not isinstance(found, dict) or not found:
            raise ValueError("no keys")
        return found
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise AiraError(f"{file} is not the configuration of a run: {reason_of(error)}") from error
