"""What a key or a group is, by its comment in conf/ and its type: `aira train --help model`, and docs/reference.md."""

import re
from collections.abc import Iterator
from pathlib import Path

from aira.config.check import declared
from aira.config.conf import conf_file, groups, options, own_groups
from aira.config.schema import COMMANDS
from aira.config.types import rule
from aira.errors import AiraError, nearest


def keys_of(file: Path, prefix: str) -> Iterator[tuple[str, str, str]]:
    """The keys of a file with their defaults and comments; Hydra's own and those that open a mapping are left out."""
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
    """What a file is for, as its first comment says."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# ") and "@package" not in line)


def described(config_name: str, name: str) -> str:
    """The options of a group with what each is, and its keys, or those keys of a command that begin with a name.

    Args:
        config_name: of the command.
        name: `model`, `method=dpo` for what one option has, `optimizer` or `data.batch_size`.

    Raises:
        AiraError: the command has no such group or key.
    """
    lines: list[str] = []
    name, _, only = name.partition("=")
    chosen = name if name in own_groups(config_name) and name in groups() else ""
    if chosen and not only:
        lines += [
            f"{name}=",
            *(f"  {option:24} {about(conf_file(f'{name}/{option}'))}" for option in options(name)),
            "",
        ]
    group = chosen or name.split(".")[0]
    files = [("", conf_file(config_name))]
    if group in groups() and group not in ("experiment", "language"):
        base = [] if group in ("callbacks", "logger") else ["_base"]
        own = [only] if only in options(group) else options(group) if group in ("method", "callbacks", "logger") else []
        files += [(option, conf_file(f"{group}/{option}")) for option in (*base, *own)]
    comments: dict[str, str] = {}
    for option, file in files:
        whole = not option or "@package _global_" in file.read_text(encoding="utf-8")
        for key, default, comment in keys_of(file, "" if whole else group):
            comment = comment or comments.get(key, "")
            comments[key] = comment
            if f"{key}.".startswith(f"{name}.") and not key.startswith("sweep.spaces."):
                annotation, facts = declared(COMMANDS[config_name], key.split("."), {group: {"name": option}})
                of = f" (of {group}={option})" if option in options(group) else ""
                if not facts:
                    lines += [f"{key}={default}{of}", *(f"  {one}" for one in (comment, rule(annotation)) if one)]
    if not lines:
        known = [*own_groups(config_name), *(key for key, *_ in keys_of(conf_file(config_name), ""))]
        raise AiraError(f"--help {name}: there is no such group or key. {nearest(name, known)}")
    return "\n".join(lines)
