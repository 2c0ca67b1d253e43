"""What the tests on data share: the tiny tokenizer, files with rows, a cache of each test's own."""

import json
from pathlib import Path

import pytest

from aira.data.module import DataModule
from aira.models.loading import load_tokenizer

HUB = Path(__file__).parent.parent / "fixtures" / "hub"
TINY = "pkg://aira.models/tiny/causal"


@pytest.fixture(scope="session")
def tokenizer():
    """The tiny tokenizer with the Aira template."""
    return load_tokenizer(TINY)[0]


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def write(tmp_path):
    """Write a file: text and bytes as they are, a list of rows as JSON lines."""

    def to(name, content):
        file = tmp_path / "files" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    return to


@pytest.fixture
def module(tokenizer, cache):
    """Make a DataModule of instructions."""

    def make(path, **settings):
        return DataModule(tokenizer, kind="instruction", path=str(path), cache_dir=str(cache), **settings)

    return make


def conversations(data):
    """Every usable conversation of a DataModule, training split first."""
    found = [data.examples(split, split.index) for split in (data.train, data.validation)]
    return [example.conversations[0] for examples in found for example in examples]
