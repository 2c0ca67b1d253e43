"""Write docs/reference.md from the comments in conf/: python docs/reference.py"""

import re
from pathlib import Path

from aira.config.conf import CONF
from aira.config.help import about, keys_of

LAST = ("experiment", "sweep")  # their keys are those of other groups
COMMANDS = ("train", "evaluate", "chat", "pipeline", "rejection_sampling", "report", "push")


def table(file: Path, known: dict[str, str], prefix: str = "") -> list[str]:
    """Keys as Markdown; one that has no comment here has that of the file that it takes the key from."""
    rows = []
    for key, value, comment in keys_of(file, prefix):
        key_itself = re.sub(r"^sweep\.spaces\.\w+\.", "", key)
        comment = comment or known.get(key_itself, "")
        known.setdefault(key, comment)
        rows.append([f"`{key}`", f"`{value}`" if value else "", comment])
    lines = [
        " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") if cell[:1] != "`" else cell for cell in row)
        for row in rows
    ]
    return ["| key | default | what |", "|---|---|---|", *(f"| {line} |" for line in lines), ""] if rows else []


def reference() -> str:
    """All of docs/reference.md."""
    lines = [
        "# Configuration keys",
        "",
        "Written from `conf/` by `python docs/reference.py`; every key is settable as `key=value`.",
        "",
    ]
    known: dict[str, str] = {}
    for name in COMMANDS:
        lines += [f"## `aira {name}`", "", *table(CONF / f"{name}.yaml", known)]
    for group in sorted((folder for folder in CONF.iterdir() if folder.is_dir()), key=lambda f: (f.name in LAST, f)):
        lines += [f"## Group `{group.name}`", ""]
        options = sorted(file for file in group.glob("*.yaml") if not file.stem.startswith("_"))
        lines += [*(f"- `{file.stem}`: {about(file)}" for file in options), ""]
        base = group / "_base.yaml"
        shown = [base] if base.exists() else []
        shown += options if group.name in ("method", "callbacks", "logger") else []
        for file in shown:
            whole = "@package _global_" in file.read_text(encoding="utf-8")
            found = table(file, known, "" if whole else group.name)
            lines += [*([f"`{file.stem}`:", ""] if file != base and found else []), *found]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "reference.md").write_text(reference(), encoding="utf-8")
