"""Write docs/reference.md from the comments in conf/: python docs/reference.py"""

import re
from collections.abc import Iterator
from pathlib import Path

CONF = Path(__file__).parent.parent / "conf"
LAST = ("experiment", "sweep")  # their keys are those of other groups
COMMANDS = ("train", "evaluate", "chat", "pipeline", "rejection_sampling", "report", "push")


def keys(file: Path, prefix: str) -> Iterator[tuple[str, str, str]]:
    """The keys of a file with their values and comments; Hydra's own and those that open a mapping are left out."""
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


def table(file: Path, known: dict[str, str], prefix: str = "") -> list[str]:
    """Keys as Markdown; one that has no comment here has that of the file that it takes the key from."""
    rows = []
    for key, value, comment in keys(file, prefix):
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
        first = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in options}
        said = {
            name: next(line for line in text if line.startswith("# ") and "@package" not in line)
            for name, text in first.items()
        }
        lines += [*(f"- `{name}`: {text.removeprefix('# ')}" for name, text in said.items()), ""]
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
