"""The lines that must not be wrong: each is broken in a copy of the tree, and a test that names it has to turn red.

`python tests/test_mutations.py` writes the table of docs/testing.md from the list below.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("aira", "conf", "tests", "train.py", "evaluate.py", "pyproject.toml")


class Mutation(NamedTuple):
    bug: str
    file: str
    line: str  # stands once in the file
    broken: str
    test: str


MUTATIONS = (
    Mutation(
        "a sign in a loss",
        "aira/methods/preference.py",
        "return -(1 - label_smoothing) * logsigmoid(difference)",
        "return -(1 - label_smoothing) * logsigmoid(-difference)",
        "tests/methods/test_preference.py",
    ),
    Mutation(
        "positions that are off by one",
        "aira/data/trees.py",
        "positions.append(torch.arange(len(laid_out) - (to - at), len(laid_out)))",
        "positions.append(1 + torch.arange(len(laid_out) - (to - at), len(laid_out)))",
        "tests/models/test_packed.py",
    ),
    Mutation(
        "a branch that does not see its prefix",
        "aira/data/trees.py",
        "together[owner[:, None], owner[None, :]]",
        "(owner[:, None] == owner[None, :])",
        "tests/models/test_packed.py",
    ),
    Mutation(
        "a score that is read before the end token",
        "aira/data/trees.py",
        "end.append(int(place[-1]))",
        "end.append(int(place[-2]))",
        "tests/models/test_forward.py",
    ),
    Mutation(
        "a loss that is averaged by rows",
        "aira/methods/base.py",
        "scale = self.trainer.world_size / count",
        "scale = self.trainer.world_size / len(batch.rows)",
        "tests/methods/test_base.py::test_the_row_budget_changes_nothing",
    ),
    Mutation(
        "a statistic of the batch that counts padding rows",
        "aira/methods/base.py",
        "_add(sums, self(self.row_statistics, row), i < batch.real_rows)",
        "_add(sums, self(self.row_statistics, row), True)",
        "tests/methods/test_statistics.py::test_processes_make_no_difference",
    ),
    Mutation(
        "casts that are kept where gradients are reduced layer by layer",
        "aira/methods/base.py",
        "            shard(self, self.model, self.shards, self.trainer.precision)\n",
        '            shard(self, self.model, self.shards, "32-true")\n'
        "            self.casts = lambda: torch.autocast('cpu', torch.bfloat16, cache_enabled=True)\n",
        "tests/methods/test_combinations.py::test_rows_and_processes_make_no_difference[fsdp]",
    ),
    Mutation(
        "a plan that resumes at another step",
        "aira/data/plan.py",
        "at = (number - first) * self.batch_size",
        "at = (number - max(first, self.start)) * self.batch_size",
        "tests/data/test_plan.py",
    ),
    Mutation(
        "classes that change places in the loss",
        "aira/methods/toxicity.py",
        "1 - labels.to(scores.dtype)",
        "labels.to(scores.dtype)",
        "tests/methods/test_toxicity.py",
    ),
    Mutation(
        "a label that is read as the other one",
        "aira/data/labels.py",
        '("0", "false", "harmless", "non-toxic", "not-toxic", "non-hateful"), HARMLESS',
        '("0", "false", "harmless", "non-toxic", "not-toxic", "non-hateful"), TOXIC',
        "tests/data/test_pairs_and_labels.py",
    ),
    Mutation(
        "a turn that is trained on another history than generation sees",
        "aira/data/tokenize.py",
        "if all(whole.startswith(turn.text) for turn in turns):",
        "if True:",
        "tests/data/test_templates.py",
    ),
    Mutation(
        "a pair that is judged the other way round",
        "aira/data/schemas.py",
        'if named[0] == first else ("second", "first")',
        'if named[0] != first else ("second", "first")',
        "tests/data/test_layouts.py",
    ),
    Mutation(
        "a reference that is taken for another model's",
        "aira/methods/reference.py",
        'f"{model} {precision}',
        'f"{precision}',
        "tests/methods/test_dpo.py::test_the_reference_is_computed_once",
    ),
    Mutation(
        "a model that is taken for one of another configuration",
        "aira/models/weights.py",
        "network.config._attn_implementation, settings]",
        "network.config._attn_implementation]",
        "tests/models/test_loading.py::test_what_a_model_is_told_by",
    ),
    Mutation(
        "a guard that drops what is harmless",
        "aira/chat/pipeline.py",
        "one.harmless < limit",
        "one.harmless > limit",
        "tests/chat/test_pipeline.py",
    ),
    Mutation(
        "a metric that is averaged over ranks and not added up",
        "aira/methods/base.py",
        'reduce(values, reduce_op="sum")',
        'reduce(values, reduce_op="mean")',
        "tests/end_to_end/test_processes.py::test_processes_make_no_difference",
    ),
    Mutation(
        "an export of another type",
        "aira/models/export.py",
        "    model.save_pretrained(part)",
        "    model.bfloat16().save_pretrained(part)",
        "tests/models/test_forward.py",
    ),
    Mutation(
        "truncation on the side that the harness does not cut",
        "aira/evaluation/harness.py",
        "[-(self.max_length + 1) :]",
        "[: self.max_length + 1]",
        "tests/evaluation/test_harness.py",
    ),
)


def _cell(code: str) -> str:
    return "; ".join(line.strip() for line in code.strip().split("\n"))


def table() -> str:
    rows = [f"| {m.bug} | `{m.file}` | `{_cell(m.line)}` | `{_cell(m.broken)}` | `{m.test}` |" for m in MUTATIONS]
    rows = [row.replace(") | (", ") \\| (") for row in rows]
    return "\n".join(["| bug | file | line | broken | test |", "|---|---|---|---|---|", *rows])


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.bug.replace(" ", "-"))
def test_a_broken_line_is_noticed(tmp_path, mutation):
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    file = tmp_path / mutation.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutation.line) == 1
    file.write_text(text.replace(mutation.line, mutation.broken), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutation.test]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and re.search(r"\d+ failed|\d+ error", done.stdout), done.stdout[-2000:]
    assert str(ROOT / "aira") not in done.stdout  # it was the copy that ran


def test_the_table_is_of_this_list():
    assert table() in (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    page = ROOT / "docs" / "testing.md"
    before, after = page.read_text(encoding="utf-8").split("| bug |")[0], table()
    page.write_text(before + after + "\n", encoding="utf-8")
