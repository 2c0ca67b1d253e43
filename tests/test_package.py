"""The package as a whole."""

import importlib
import json
import pkgutil

import aira
import aira.models.tiny as tiny
from aira.environment import differences, environment


def test_every_module_can_be_imported():
    """Catches a module that nothing else imports and that no longer works."""
    names = [module.name for module in pkgutil.walk_packages(aira.__path__, "aira.")]
    assert len(names) > 20
    for name in names:
        importlib.import_module(name)


def test_the_shipped_tokenizers_are_those_of_the_sample(tmp_path):
    """Catches a sample that was changed without training its tokenizers again."""
    for name in ("causal", "encoder"):
        tiny.build(tmp_path / name, encoder=name == "encoder")
        found = json.loads((tiny.PACKAGE / "tiny" / name / "tokenizer.json").read_text(encoding="utf-8"))
        assert json.loads((tmp_path / name / "tokenizer.json").read_text(encoding="utf-8")) == found


def test_environments_that_differ():
    """Catches a resume in another environment that goes unnoticed, and one in the same that is warned of."""
    now = environment()
    assert differences(now, now) == []
    then = {**now, "threads": now["threads"] + 1, "versions": {**now["versions"], "torch": "0"}}
    said = differences(then, now)
    assert len(said) == 2 and "threads" in said[0] and "torch was 0" in said[1]
