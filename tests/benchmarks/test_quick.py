"""The fine-tuning benchmark runs, and its contenders compute the same losses."""

import subprocess
import sys

import pytest

from tests.end_to_end.command import ENVIRONMENT, ROOT


@pytest.mark.slow
def test_contenders_agree(tmp_path):
    """Catches a benchmark that compares different work: other rows, another mask, another normaliser."""
    command = [sys.executable, str(ROOT / "benchmarks/sft.py"), "--quick", "--steps", "3", "--repeat", "1"]
    done = subprocess.run(
        [*command, "--dtype", "float32"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith(("| trl", "| aira"))]
    assert [row[0].strip() for row in rows] == ["trl", "trl-best", "aira"]
    assert all(float(row[-1]) < 1e-3 for row in rows)
