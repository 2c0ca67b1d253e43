"""What all tests share: no network, a cache of their own, the real data where it is."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "AIRA_CACHE" not in os.environ:
    os.environ["AIRA_CACHE"] = tempfile.mkdtemp(prefix="aira-cache-")
    atexit.register(shutil.rmtree, os.environ["AIRA_CACHE"], ignore_errors=True)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the cores

import pytest

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("AIRA_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def data_folder():
    """The folder of real data sets: AIRA_DATA, by default ../shared/data."""
    if not DATA.is_dir():
        pytest.skip("AIRA_DATA is not set and ../shared/data does not exist")
    return DATA


@pytest.fixture(autouse=True)
def sigpipe():
    """A help text ends its process behind `| head`; here that would end whatever test writes to a closed pipe later."""
    before = signal.getsignal(signal.SIGPIPE)
    yield
    if signal.getsignal(signal.SIGPIPE) != before:
        signal.signal(signal.SIGPIPE, before)


def pytest_collection_finish():
    """Keep what is there for the whole time out of garbage collection, which Lightning and others ask for often."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Say how many tests were skipped, and how many of them for want of data."""
    skipped = terminalreporter.stats.get("skipped", [])
    wanting = [report for report in skipped if "AIRA_DATA" in str(report.longrepr)]
    terminalreporter.write_line(f"{len(skipped)} skipped, {len(wanting)} of them for want of AIRA_DATA")
