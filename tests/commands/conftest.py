"""Exports of each role, and folders of runs."""

from tests.chat.conftest import exports
from tests.reports.conftest import make

__all__ = ["exports", "make"]
