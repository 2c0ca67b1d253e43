"""`aira chat`: one message, a file, a conversation."""

import io
import json
import subprocess
import sys

import pytest

from aira.commands.chat import _rows, answer_file, main
from aira.errors import AiraError
from aira.files import acquire_lock
from tests.end_to_end.command import ENVIRONMENT, ROOT

SHORT = ["max_new_tokens=8", "temperature=1.0"]


def command(monkeypatch, *arguments, typed=""):
    monkeypatch.setattr(sys, "argv", ["chat", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    main()


def test_one_message(exports):
    """The real command: JSON alone on stdout, and the newest run of each purpose."""
    arguments = [f"output_dir={exports.parent}", "prompt=Who, (really) are {you} = '?", "--json", *SHORT, "seed=3"]
    done = subprocess.run(
        [sys.executable, "-m", "aira", "chat", *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert len(reply["candidates"]) == 2 and all(-1e3 < one["reward"] < 1e3 for one in reply["candidates"])
    assert all(f"{purpose}: {exports}/" in done.stderr for purpose in ("chat_model", "reward_model", "toxicity_model"))


def test_a_file(exports, tmp_path, monkeypatch, capsys):
    """Catches rows that are answered twice, lost, or differently after a kill, and answers of two kinds in one file."""
    rows = [{"prompt": f"What is {i} + {i}?"} for i in range(4)]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows.append({"messages": [*talk, {"role": "user", "content": "Who are you?"}]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"output_dir={exports.parent}", f"input={tmp_path}/in.jsonl", f"output={tmp_path}/out.jsonl", *SHORT]
    command(monkeypatch, *given)
    whole = (tmp_path / "out.jsonl").read_text()
    assert [json.loads(line)["messages"][-1]["content"] for line in whole.splitlines()][4] == "Who are you?"
    (tmp_path / "out.jsonl").write_text(whole[: len(whole) // 2])  # killed within a row
    command(monkeypatch, *given)
    assert (tmp_path / "out.jsonl").read_text() == whole
    for other in ("toxicity_model=none", "reward_model=none", "temperature=0.5", "max_new_tokens=9", "seed=4"):
        with pytest.raises(SystemExit):
            command(monkeypatch, *given, other)
        assert "answered by another model, or with other settings" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == whole
    (tmp_path / "in.jsonl").write_text('{"prompt": "Another?"}\n')
    with pytest.raises(SystemExit):
        command(monkeypatch, *given)


def test_a_conversation(exports, monkeypatch, capsys):
    """Catches a history that is not read, and commands that are taken for messages."""
    typed = "/why\nWho are you?\n/why\nAnd then?\n/reset\nWho are you?\n/lang xx\n/quit\nnever\n"
    command(monkeypatch, f"output_dir={exports.parent}", "toxicity_model=none", *SHORT, typed=typed)
    out, err = capsys.readouterr()
    nothing, first, why, second, third = [text.lstrip("> ") for text in out.split("\n> ")[:5]]
    assert nothing == "Nothing was answered yet." and first == third != second
    assert sorted(line.split()[0] for line in why.splitlines()) == ["chosen", "reward", "unchosen"]
    assert "there is no such language" in err


def test_typed_bytes_that_are_no_text(exports, monkeypatch, capsys):
    """Catches a conversation that ends in a traceback, by a key of another encoding."""
    monkeypatch.setattr(sys, "argv", ["chat", f"output_dir={exports.parent}", "toxicity_model=none", *SHORT])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Ol\xe1\nWho?\n/quit\n"), encoding="utf-8"))
    main()
    out, err = capsys.readouterr()
    assert err.count("half of a character") == 1 and len(out.split("> ")) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["chat_modle=x"], "Did you mean 'chat_model'?"),
        (["chat_model=./missing"], "there is no such file or folder"),
        (["output_dir={missing}"], "Train one (aira train language=en)"),
        (["language=pt"], "has a chat model in language=pt"),
        (["input=x.jsonl"], "belong together"),
        (["--json"], "is for one message"),
        (["prompt=", "reward_model=none"], "is empty"),
        (["input={bad}", "output=out.jsonl"], "row 2"),
        (["n=0"], "at least 1"),
        (["guard.reads=all"], "valid are answer, exchange"),
        (["demo.port=8000"], "demo.port=8000 is for `aira demo`"),
        (["data.split=test"], "data.split=test is for `aira demo`"),
        (["guard.threshold=0.4", "toxicity_model=none"], "guard.threshold is for a toxicity model"),
    ],
)
def test_errors(exports, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Hi"}\n{"question": "Hi"}\n')
    places = {"missing": tmp_path / "none", "bad": tmp_path / "bad.jsonl"}
    given = [f"output_dir={exports.parent}"] * ("output_dir" not in arguments[0])
    given += [text.format(**places) for text in arguments]
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, *given)
    assert ended.value.code == 2 and message in capsys.readouterr().err


ROW = {"messages": [{"role": "user", "content": "Hi"}], "text": "Hello", "candidates": []}


@pytest.mark.parametrize(
    "there, told",
    [
        ('{"mine": 1}', "holds no answers"),
        ("no end of line", "holds no answers"),
        ('{"mine": 1}\n', "is no answer"),
        ("a,b\n1,2\n", "is no answer"),
        ('[{"messages": []}]\n', "is no answer"),
        (json.dumps({"messages": ROW["messages"]}) + "\n", "is no answer"),  # data to train on
        (json.dumps(ROW).replace("Hi", "Ho") + "\n", "answers another conversation"),
        (json.dumps(ROW) + "\n{}", "holds no answers"),
        ("\0\xff" * 9, "holds no answers"),
        (None, "is no file"),
    ],
)
def test_a_file_that_is_there_is_kept(tmp_path, monkeypatch, capsys, there, told):
    """Catches a user's file that is cut off or added to. No model is read before."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hi"}\n')
    output = tmp_path / "out"
    output.mkdir() if there is None else output.write_text(there)
    with pytest.raises(SystemExit):
        command(monkeypatch, f"input={tmp_path}/in.jsonl", f"output={output}", f"output_dir={tmp_path}/none")
    assert told in capsys.readouterr().err
    assert there is None or output.read_text() == there


def test_the_input_is_not_the_output(tmp_path, monkeypatch, capsys):
    """Catches questions that are written over by their answers, also by another name."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hi"}\n')
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    for output in ("in.jsonl", "link.jsonl", "x/../in.jsonl"):
        with pytest.raises(SystemExit):
            command(monkeypatch, f"input={tmp_path}/in.jsonl", f"output={tmp_path}/{output}")
        assert "is the input itself" in capsys.readouterr().err


def test_two_chats_write_one_file(tmp_path):
    """Catches answers of two processes in one file."""
    held = acquire_lock(tmp_path / ".out.jsonl.lock", tmp_path)
    with pytest.raises(AiraError, match="Another process writes into"):
        answer_file(None, [], tmp_path / "out.jsonl", 0)
    held.release()
    answer_file(None, [], tmp_path / "out.jsonl", 0)


FILES = [
    (b'\xef\xbb\xbf{"prompt": "Ol\xc3\xa1"}\n', "Olá"),  # with a byte order mark, as editors write it
    (b'{"prompt": "a"}', "a"),
    (b'{"prompt": "\\ud83d\\ude00"}\n', "😀"),
    (b'{"prompt": "\\ud83d"}\n', "row 1"),  # half of a character
    (b'{"prompt": "Ol\xe1"}\n', "text in UTF-8"),
    (b"", "row 1"),
    (b'{"prompt": "a"}\n\n{"prompt": "b"}\n', "row 2"),
    (b'{"prompt": ["a"]}\n', "row 1"),
    (b'{"prompt": " "}\n', "row 1"),
    (b'{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}\n', "row 1: it has both a prompt and messages"),
    (b'{"prompt": null, "messages": [{"role": "user", "content": "b"}]}\n', "b"),
    (b'{"messages": "Hi"}\n', "row 1"),
    (b'{"messages": [{"role": ["user"], "content": "Hi"}]}\n', "row 1"),
    (b'{"messages": [{"role": "x", "content": "Hi"}, {"role": "user", "content": "Hi"}]}\n', "row 1"),
    (b'{"messages": [{"role": "assistant", "content": "Hi"}]}\n', "row 1"),
    (b"[" * 100_000, "row 1"),
]


@pytest.mark.parametrize("content, found", FILES)
def test_rows_of_a_file(tmp_path, content, found):
    """Catches a mark that is read as text, and a traceback where the file or a row is of another kind."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(content)
    if found.startswith(("row", "text in")):
        with pytest.raises(AiraError, match=found):
            list(_rows(file))
    else:
        assert next(_rows(file))[-1]["content"] == found
