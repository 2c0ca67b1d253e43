"""Help on keys and groups, from comments in conf/ and types: `aira train --help model`, and docs/reference.md."""

import re
from collections.abc import Iterator
from pathlib import Path

from aira.config.check import declared_type
from aira.config.conf import conf_file, groups, groups_of, options
from aira.config.schema import COMMANDS
from aira.config.types import describe_type
from aira.errors import AiraError, nearest


def keys_of(file: Path, prefix: str) -> Iterator[tuple[str, str, str]]:
    """The keys of a file with their defaults and comments; Hydra's own, and mappings without one, are left out."""
    path: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)([\w.]+): ?(.*)$", line)
        if not match:
            continue
        indent, name, rest = match.groups()
        path = [*path[: len(indent) // 2], name]
        value, _, comment = rest.partition("# ") if rest.startswith("# ") else rest.partition(" # ")
        if (
            path[0] not in ("defaults", "hydra")
            and name not in ("_target_", "_partial_")
            and (value.strip() or comment)
        ):
            yield ".".join([*prefix.split(), *path]), value.strip(), comment.strip()


def about(file: Path) -> str:
    """The first comment of a file, which says what it is for."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ") and "@package" not in line), "")


def describe(config_name: str, name: str) -> str:
    """Help on the options and keys of a group, or on the keys of a command that begin with a name.

    Args:
        config_name: of the command.
        name: such as `model`, `method=dpo` for a single option, `optimizer` or `data.batch_size`.

    Raises:
        AiraError: the command has no such group or key.
    """
    lines: list[str] = []
    name, _, only = name.partition("=")
    named_group = name if name in groups_of(config_name) and name in groups() else ""
    if named_group and not only:
        lines += [
            f"{name}=",
            *(f"  {option:24} {about(conf_file(f'{name}/{option}'))}" for option in options(name)),
            "",
        ]
    group = named_group or name.split(".")[0]
    files = [("", conf_file(config_name))]
    if group in groups() and group not in ("experiment", "language"):
        base = [] if group in ("callbacks", "logger") else ["_base"]
        shown = (
            [only] if only in options(group) else options(group) if group in ("method", "callbacks", "logger") else []
        )
        files += [(option, conf_file(f"{group}/{option}")) for option in (*base, *shown)]
    comments: dict[str, str] = {}
    for option, file in files:
        whole = not option or "@package _global_" in file.read_text(encoding="utf-8")
        for key, default, comment in keys_of(file, "" if whole else group):
            comment = comment or comments.get(key, "")
            comments[key] = comment
            if f"{key}.".startswith(f"{name}.") and not key.startswith("sweep.spaces."):
                annotation, facts = declared_type(COMMANDS[config_name], key.split("."), {group: {"name": option}})
                of = f" (of {group}={option})" if option in options(group) else ""
                if not facts:
                    lines += [
                        f"{key}={default}{of}",
                        *(f"  {one}" for one in (comment, describe_type(annotation)) if one),
                    ]
    if not lines:
        known = [*groups_of(config_name), *(key for key, *_ in keys_of(conf_file(config_name), ""))]
        raise AiraError(f"--help {name}: there is no such group or key. {nearest(name, known)}")
    return "\n".join(lines)
