"""The benchmarks run, and their contenders compute the same."""

import subprocess
import sys

import pytest

from tests.end_to_end.command import ENVIRONMENT, ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, contenders",
    [
        ("sft", ["trl", "trl-best", "aira"]),
        ("dpo", ["trl", "trl-cached", "trl-best", "aira"]),
        ("reward", ["trl", "trl-best", "aira"]),
    ],
)
def test_contenders_agree(tmp_path, name, contenders):
    """Catches a benchmark that compares different work: other rows, another mask, another normaliser."""
    command = [sys.executable, str(ROOT / f"benchmarks/{name}.py"), "--quick", "--steps", "3", "--repeat", "1"]
    done = subprocess.run(
        [*command, "--dtype", "float32"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith(("| trl", "| aira"))]
    assert [row[0].strip() for row in rows] == contenders
    assert all(float(cell) < 1e-3 for row in rows for cell in row[-2:])


@pytest.mark.slow
def test_log_likelihoods_agree(tmp_path, data_folder):
    """Catches requests that are computed from other tokens, or answered in another order."""
    command = [sys.executable, str(ROOT / "benchmarks/evaluation.py"), "--quick", "--limit", "2", "--repeat", "1"]
    done = subprocess.run(
        [*command, "--batch-sizes", "4"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if "harness-4" in line]
    assert [row[0].strip() for row in rows] == ["arc_challenge", "truthfulqa_mc2", "toxigen"]
    assert all(float(row[7]) < 5e-4 for row in rows)  # a millionth of sums near -450, in float32


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["kill.py", "--kills", "2"], ["startup.py", "--rows", "2000"]], ids=str)
def test_the_others_run(tmp_path, arguments):
    """Catches a benchmark that no longer fits the code; that of kills fails where a run ends otherwise."""
    name, *rest = arguments
    command = [sys.executable, str(ROOT / "benchmarks" / name), *rest]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) >= 3


@pytest.mark.slow
def test_rerankers_agree(tmp_path):
    """Catches candidates that are scored with another prompt, or in another order."""
    command = [sys.executable, str(ROOT / "benchmarks/rerank.py"), "--quick", "--prompts", "2", "--repeat", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith(("| dialogue", "| short"))]
    assert [row[1].strip() for row in rows] == ["transformers", "transformers-batch", "aira"] * 2
    assert all(float(row[-1]) < 1e-4 for row in rows)
