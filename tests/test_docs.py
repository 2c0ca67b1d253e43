"""The commands of the README and the docs, and that those compose which can't be run here: no key in them is gone."""

import os
import re
import shlex

import pytest

from aira.__main__ import COMMANDS
from aira.config.compose import compose_config
from aira.config.conf import CONF
from aira.config.overrides import parse_override

ROOT = CONF.parent
FILES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NAME = "|".join(COMMANDS)
RUN = re.compile(rf"(?:^|\s)(?:aira |(?=train\.py|evaluate\.py)|-m aira\.commands\.)({NAME})(?:\.py)?(?:\s|$)")
"""One of Aira's commands, as it is typed, from a clone, or behind torchrun."""
OPTIONS = ("--help", "--json", "--cfg", "job", "hydra", "-m")


def commands():
    """Every line of a bash block that runs one of Aira's commands, once."""
    seen = set()
    for file in FILES:
        for block in re.findall(r"```bash\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split(" && "):
                    part = part.split(" #")[0].strip()
                    if RUN.search(part) and part not in seen:
                        seen.add(part)
                        yield pytest.param(part, id=f"{file.name}: {part.strip()}")


NOT_RUN = ("aira demo", "submitit", "nnodes")
"""The demo serves until it is stopped, and others need a cluster, or two machines."""


@pytest.mark.parametrize("command", [one for one in commands() if any(word in one.values[0] for word in NOT_RUN)])
def test_a_documented_command_composes(command, monkeypatch):
    """Catches a documented key that was renamed; tests/end_to_end/test_docs.py runs the others."""
    monkeypatch.setenv("AIRA_DATA", "data")
    command = os.path.expandvars(re.sub(r"\$\(ls [^)]*\)", "x", command))
    found = RUN.search(command)
    name = {"demo": "chat"}.get(found[1], found[1])
    words = shlex.split(command[found.end() :], comments=True)
    given = [re.sub(r"<[^>]*>|…", "x", word) for word in words if word not in OPTIONS]
    own, shared = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    for config, overrides in ((name, own), ("train", shared)):
        if "hydra/launcher" in " ".join(overrides) or (config == "push" and not overrides):
            continue
        first = [  # of a multirun
            override.split(",")[0] if parse_override(override).is_sweep_override() else override
            for override in overrides
        ]
        compose_config(config, first)


def test_there_are_commands():
    assert len(list(commands())) > 40
