"""The odd and the wrong inputs that tests hold to a verdict each, by kind.

`python tests/test_inputs.py` writes the table of docs/reliability.md from the tests' own.
"""

from pathlib import Path
from typing import NamedTuple

from tests.callbacks.test_checkpoint import CHANGES
from tests.chat.test_gate import REQUESTS
from tests.commands.test_chat import FILES
from tests.config.test_config import NOT_TOGETHER, UNREAD
from tests.data.test_control import HIDDEN, SAID
from tests.data.test_layout import FOLDERS, REFUSED_FOLDERS
from tests.data.test_layouts import INSTRUCTIONS, PAIRS, REAL, TEXTS
from tests.data.test_layouts import REFUSED as REFUSED_LAYOUTS
from tests.data.test_pairs_and_labels import HINTS, NAMES, SAME, UNLABELLED
from tests.data.test_rows import READ, REFUSED
from tests.data.test_sources import LAYOUTS, NOT_RECOGNIZED
from tests.data.test_templates import ADAPTED, TEMPLATES
from tests.evaluation.test_no_number import PARTS, ROWS
from tests.models.test_damaged import DAMAGE, USED
from tests.reports.test_page import ODD, STRANGE
from tests.test_files import MISTYPED, PATHS
from tests.test_parts import FOREIGN

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- inputs -->\n", "<!-- /inputs -->\n"


class Kind(NamedTuple):
    kind: str
    verdict: str
    inputs: dict | list
    test: str


KINDS = (
    Kind("files that are odd and right", "every cell and row is read as it stands", READ, "data/test_rows.py"),
    Kind("files that are damaged or no table", "refused, with file and line", REFUSED, "data/test_rows.py"),
    Kind(
        "folders of files",
        "read as the splits that they name; what is left out is said",
        FOLDERS,
        "data/test_layout.py",
    ),
    Kind("folders that say no split, or two", "refused, with the names", REFUSED_FOLDERS, "data/test_layout.py"),
    Kind("names of classes", "read by the names, or refused", NAMES, "data/test_pairs_and_labels.py"),
    Kind("labels that nobody knows", "refused, with a command", HINTS, "data/test_pairs_and_labels.py"),
    Kind("columns under their usual names", "recognized, and said as what", LAYOUTS, "data/test_sources.py"),
    Kind("columns that may mean something else", "refused, with a command", NOT_RECOGNIZED, "data/test_sources.py"),
    Kind(
        "layouts of instructions, pairs and texts",
        "every row is what it says",
        INSTRUCTIONS | PAIRS | TEXTS,
        "data/test_layouts.py",
    ),
    Kind("layouts that cannot be read", "refused, with a way on", REFUSED_LAYOUTS, "data/test_layouts.py"),
    Kind("public files as they are", "trains with `data.path=` alone", REAL, "data/test_layouts.py"),
    Kind(
        "chat templates that rewrite, add, move or refuse",
        "trains on what generation sees",
        TEMPLATES,
        "data/test_templates.py",
    ),
    Kind("turns that a template has no place for", "written elsewhere, and said", ADAPTED, "data/test_templates.py"),
    Kind("cells without a label", "the row is dropped and counted", UNLABELLED, "data/test_pairs_and_labels.py"),
    Kind(
        "one prompt in two forms", "one prompt: never on both sides of a split", SAME, "data/test_pairs_and_labels.py"
    ),
    Kind("control tokens in a text", "plain text to the model, and counted", SAID + HIDDEN, "data/test_control.py"),
    Kind("models that are damaged or foreign", "refused, with the folder", DAMAGE | USED, "models/test_damaged.py"),
    Kind("files of questions for a chat", "answered, or refused with the row", FILES, "commands/test_chat.py"),
    Kind("requests to the demo", "answered where host and origin are its own", REQUESTS, "chat/test_gate.py"),
    Kind(
        "a run that is resumed with other settings",
        "reported and recorded, or refused",
        CHANGES,
        "callbacks/test_checkpoint.py",
    ),
    Kind("damaged files of a run's folder", "skipped, with a notice", STRANGE, "reports/test_page.py"),
    Kind("odd values in a run's files", "left out, or shown as they stand", ODD, "reports/test_page.py"),
    Kind("damaged parts and rows", "refused, with the file", PARTS | ROWS, "evaluation/test_no_number.py"),
    Kind("settings that change nothing", "a notice, or none where they do", UNREAD, "config/test_config.py"),
    Kind("settings that contradict each other", "refused, with the keys", NOT_TOGETHER, "config/test_config.py"),
    Kind("parts that are no callback or logger", "refused, with the key", FOREIGN, "test_parts.py"),
    Kind("paths that are mistyped", "refused, with the nearest one", MISTYPED, "test_files.py"),
    Kind("names of files and folders", "the same behind shell and Hydra", PATHS, "test_files.py"),
)


def table() -> str:
    rows = [
        f"| {one.kind} | {len(one.inputs)} | {one.verdict} | {_examples(one.inputs)} | `tests/{one.test}` |"
        for one in KINDS
    ]
    total = f"| all | {sum(len(one.inputs) for one in KINDS)} | | | |"
    return "\n".join(
        ["| input | number | what becomes of it | such as | test |", "|---|---|---|---|---|", *rows, total, ""]
    )


def _examples(inputs: dict | list) -> str:
    return ", ".join(list(inputs)[:: max(1, len(inputs) // 3)][:3]) if isinstance(inputs, dict) else ""


def test_the_page_has_the_inputs_of_the_tests():
    """Catches a table of inputs that is not the tests' own, and tests that are taken out."""
    assert table() == PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert sum(len(one.inputs) for one in KINDS) >= 300


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")
