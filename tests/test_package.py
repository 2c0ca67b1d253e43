"""The package as a whole."""

import ast
import importlib
import json
import pkgutil
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

import aira
import aira.files
import aira.models.tiny as tiny
from aira.environment import differences, environment
from aira.files import install_command


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


ROOT = Path(aira.__file__).parents[1]
PRIVATE = {
    "hydra._internal.utils.get_args_parser": "hydra-core",
    "_attn_implementation": "transformers",
    "_fingerprint": "datasets",
    "_load_from_state_dict": "torch",
    "_log_artifact": "wandb",
    "_precompute_ref_logps": "trl",
    "_to_model": "wandb-workspaces",
    "_total_energy": "codecarbon",
    "torch._subclasses.fake_tensor.FakeTensorMode": "torch",
}
"""Names that other libraries call private, and the distribution whose next releases may lack them."""
STANDARD = ("_replace",)
"""Names of NamedTuple, which are public."""


def private_names(file):
    """The private names of others that a file reads; what is read from `self` is taken for its own."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) != "self":
            found = [node.attr]
        elif isinstance(node, ast.Import):
            found = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{name.name}" for name in node.names]
        yield from (name for name in found if re.search(r"(^|\.)_(?!_)", name) and name not in STANDARD)


def test_a_private_name_has_an_upper_bound():
    """Catches a library's private name, which any of its releases may change, without a bound on its releases."""
    files = [file for part in ("aira", "benchmarks") for file in (ROOT / part).rglob("*.py")]
    found = {name for file in [*files, ROOT / "train.py", ROOT / "evaluate.py"] for name in private_names(file)}
    assert found == PRIVATE.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = [Requirement(text) for part in parts for text in part]
    assert set(PRIVATE.values()) <= {one.name for one in needed if "<" in str(one.specifier)}


def test_environments_that_differ():
    """Catches a resume in another environment that goes unnoticed, and one in the same that is warned of."""
    now = environment()
    assert differences(now, now) == []
    then = {**now, "threads": now["threads"] + 1, "versions": {**now["versions"], "torch": "0"}}
    said = differences(then, now)
    assert len(said) == 2 and "threads" in said[0] and "torch was 0" in said[1]


def test_how_an_extra_is_installed(tmp_path, monkeypatch):
    """Catches advice that names a clone where there is none, and one that is not formed in the one place."""
    assert install_command("sweep") == "pip install -e '.[sweep]'", "in a clone"
    monkeypatch.setattr(aira.files, "__file__", str(tmp_path / "site-packages" / "aira" / "files.py"))
    assert install_command("sweep") == "pip install 'aira[sweep]'"
    written = [*(ROOT / "aira").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]
    of_a_clone = re.compile(r"pip install (-e|'?aira\[)|docs/reference\.md")
    named = [file.name for file in written if of_a_clone.search(re.sub(r'""".*?"""', "", file.read_text(), flags=re.S))]
    assert named == ["files.py"]
