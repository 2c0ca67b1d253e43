"""The published sets, a user's columns, and real data; test_rows.py holds files to what is read of them."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from datasets import load_dataset

from aira.config.compose import compose_config
from aira.config.record import to_dict
from aira.data import sources
from aira.data.schemas import BadRow, conversation, ignored_columns, mapped_columns, pick
from aira.data.sources import read
from aira.errors import AiraError
from tests.data.conftest import HUB, conversations

ROWS = [{"prompt": f"Pergunta {i}: é você?", "completion": f"Sou eu, nº {i}."} for i in range(6)]


def fails(path, **arguments):
    with pytest.raises(AiraError) as caught:
        read(str(path), **arguments)
    return str(caught.value)


# The published sets

COLUMNS = {
    "instruct-aira-dataset": {"prompt", "completion"},
    "instruct-aira-dataset-v2": {"conversation_id", "conversations"},
    "instruct-aira-dataset-v3": {"conversation_id", "conversations"},
    "reward-aira-dataset": {"instruction", "chosen_response", "rejected_response"},
    "harmless-aira-dataset": {"instruction", "chosen_response", "rejected_response"},
    "harmful-text": {"harmless", "harmful"},
}
EXPECTED = {"english": ("What is the capital of France?", 6), "portuguese": ("Qual é a capital da França?", 7)}


@pytest.mark.parametrize("name", COLUMNS)
def test_hub_folder(name, cache):
    """Catches a folder in the hub's layout whose splits or columns are not those of its card."""
    source = read(str(HUB / name), cache_dir=str(cache))
    assert set(source.splits) == {"english", "portuguese"} | ({"spanish"} if name == "instruct-aira-dataset" else set())
    for split, (_, count) in EXPECTED.items():
        assert set(source.split(split).column_names) == COLUMNS[name] and len(source.split(split)) == count


@pytest.mark.parametrize("language, split", [("en", "english"), ("pt", "portuguese")])
@pytest.mark.parametrize("data", ["aira", "aira-v2", "aira-v3"])
def test_hub_folder_trains(module, data, language, split):
    """Catches data=aira… that names a split or column which the published set does not have."""
    name = "instruct-aira-dataset" + data.removeprefix("aira")
    overrides = [f"data={data}", f"language={language}", f"data.path='{HUB / name}'"]
    values = to_dict(compose_config("train", overrides))["data"]
    settings = {key: values[key] for key in ("split", "validation_split", "validation_fraction", "columns")}
    made = module(values["path"], **settings)
    question, count = EXPECTED[split]
    found = sorted(conversations(made), key=lambda messages: messages[0]["content"] != question)
    assert len(made.train) + len(made.validation) == len(found) == count and not made.notices
    assert found[0][0] == {"role": "user", "content": question}
    assert found[0][1]["role"] == "assistant" and "Paris" in found[0][1]["content"]
    assert {len(messages) for messages in found} == ({2} if data == "aira" else {2, 4})


def test_fixtures_equal_their_source(tmp_path):
    """Catches a fixture edited by hand, or a source edited without writing the fixtures anew."""
    spec = importlib.util.spec_from_file_location("make_hub", HUB.parent / "make_hub.py")
    make_hub = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_hub)
    make_hub.write(tmp_path / "hub")
    names = sorted(file.relative_to(HUB) for file in HUB.rglob("*") if file.is_file())
    assert names == sorted(file.relative_to(tmp_path / "hub") for file in (tmp_path / "hub").rglob("*.*"))
    for name in names:
        if name.suffix == ".parquet":
            written, kept = (
                load_dataset("parquet", data_files=str(root / name), split="train", cache_dir=str(tmp_path / "cache"))
                for root in (tmp_path / "hub", HUB)
            )
            assert written.features == kept.features and written.to_list() == kept.to_list()
        else:
            assert (tmp_path / "hub" / name).read_bytes() == (HUB / name).read_bytes()


# A user's files


def test_folder_with_a_file_a_split(write, module):
    """Catches a validation file that is trained on, or a training file that part is held out of."""
    write("train.jsonl", ROWS[:4])
    made = module(os.path.dirname(write("validation.jsonl", ROWS[4:])))
    assert [talk[0]["content"] for talk in conversations(made)] == [row["prompt"] for row in ROWS]
    assert (len(made.train), len(made.validation)) == (4, 2)


def test_key_follows_the_content(write, cache):
    """Catches tokenized rows of an edited file taken from the cache of the file before."""
    before = read(write("a.jsonl", ROWS), cache_dir=str(cache))
    same = read(write("b.jsonl", ROWS), cache_dir=str(cache))
    after = read(write("a.jsonl", [*ROWS[:-1], ROWS[0]]), cache_dir=str(cache))
    assert before.key == same.key != after.key
    assert after.split("train")[-1] == ROWS[0]


def test_key_of_the_hub_follows_the_content(write, tmp_path, monkeypatch):
    """Catches a key that another download of the same rows changes, or that other rows do not."""

    def key(rows, name):
        found = load_dataset("json", data_files=write(f"{name}.jsonl", rows), cache_dir=str(tmp_path / name))
        monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: found)
        return read("somebody/rows").key

    assert key(ROWS, "a") == key(ROWS, "b") != key([*ROWS[:-1], ROWS[0]], "a")


def test_read_only_folder(tmp_path, module):
    """Catches a file written beside the user's data."""
    folder = shutil.copytree(HUB / "instruct-aira-dataset", tmp_path / "locked")
    before = sorted(folder.rglob("*"))
    for part in [folder, *before]:
        part.chmod(0o555 if part.is_dir() else 0o444)
    try:
        made = module(folder, split="english")
        assert len(made.train) + len(made.validation) == 6
        assert sorted(folder.rglob("*")) == before
    finally:
        for part in [folder, *before]:
            part.chmod(0o755)


@pytest.mark.parametrize("path", ["missing.jsonl", "./missing", "/missing/folder", "a/b/c", "pkg://aira.data/missing"])
def test_no_such_file(path):
    """Catches a misspelt path that is looked for on the hub."""
    assert "there is no such file or folder" in fails(path)


def test_package_is_not_installed():
    """Catches a message that does not say what to install."""
    assert "pip install --no-deps no-such-package" in fails("pkg://no_such_package/folder")


def test_hub_out_of_reach():
    """Catches a message that leaves somebody without a network alone."""
    message = fails("nobody/no-such-data-set")
    assert "nobody/no-such-data-set" in message and "data.path=" in message and "data=sample" in message
    assert "Traceback" not in message


def test_missing_split(module):
    """Catches a message that does not list the splits there are."""
    with pytest.raises(AiraError, match=r"no split 'train'.*english, portuguese, spanish.*data\.split="):
        module(HUB / "instruct-aira-dataset")


# Columns


def test_wrong_columns(write, module):
    """Catches a message that does not say which columns there are and which are needed."""
    path = write("a.jsonl", [{"question": "a", "answer": "b"}] * 3)
    with pytest.raises(AiraError) as caught:
        module(path)
    assert "question, answer" in str(caught.value)
    assert "{prompt, completion} or {conversations}" in str(caught.value) and "data.columns=" in str(caught.value)
    with pytest.raises(AiraError, match=r"completion is mapped to answr, .* has the columns question, answer"):
        module(path, columns={"prompt": "question", "completion": "answr"})
    with pytest.raises(AiraError, match=r"instruction data has no promt\. Did you mean 'prompt'"):
        module(path, columns={"promt": "question", "completion": "answer"})


@pytest.mark.parametrize(
    "row, typed",
    [
        ({"question": "a", "answer": "b"}, "{prompt: question, completion: answer}"),
        ({"Output": "b", "Input": "a"}, "{prompt: Input, completion: Output}"),
        ({"id": 3, "messages": [{"role": "user", "content": "a"}] * 2}, "{conversations: messages}"),
        ({"foo bar": "a", "it's": "b"}, None),
        ({"said": "a", "completion": "b"}, "{prompt: said}"),
        ({"only": "a"}, ""),
    ],
)
def test_a_hint_on_columns_can_be_typed(write, module, row, typed):
    """Catches a command in a message that names no column of the data, or that Hydra reads otherwise."""
    path = write("a.jsonl", [row] * 3)
    with pytest.raises(AiraError) as caught:
        module(path)
    said = str(caught.value)
    assert "…" not in said and "<" not in said
    if typed == "":
        assert "Map them" not in said
        return
    (override,) = shlex.split(said.partition("Map them, for example ")[2].removesuffix("."))
    assert typed is None or override == f"data.columns={typed}"
    columns = to_dict(compose_config("train", [override]))["data"]["columns"]
    assert set(columns.values()) <= set(row)


LAYOUTS = [
    (
        "instruction",
        ["prompt", "completion", "conversations"],
        None,
        ["prompt, completion; ignored: conversations."],
    ),
    ("instruction", ["prompt", "completion", "messages"], None, ["prompt, completion; ignored: messages."]),
    ("instruction", ["prompt", "conversations"], None, []),
    ("instruction", ["prompt", "completion", "id"], None, []),
    (
        "instruction",
        ["prompt", "completion", "messages"],
        {"conversations": "messages"},
        ["messages; ignored: prompt, completion."],
    ),
    ("preference", ["prompt", "chosen", "rejected"], None, []),
    (
        "preference",
        ["prompt", "chosen", "rejected", "conversations"],
        None,
        ["prompt, chosen, rejected; ignored: conversations."],
    ),
    ("labelled", ["text", "label", "harmless", "harmful"], None, ["text, label; ignored: harmless, harmful."]),
    ("labelled", ["text", "label", "messages"], None, []),
]


@pytest.mark.parametrize("kind, available, columns, said", LAYOUTS)
def test_columns_of_two_layouts(kind, available, columns, said):
    """Catches columns that are read in place of others without a word, or of those that the user maps."""
    notices = ignored_columns(kind, available, columns, "rows.jsonl")
    assert notices == [f"rows.jsonl: read as {one} data.columns selects others." for one in said]
    mapping = mapped_columns(kind, available, columns, "rows.jsonl")
    assert not said or said[0].startswith(", ".join(mapping.values()))


def test_ignored_columns_are_reported_once(write, module):
    """Catches a line for each split, or none."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"prompt": f"q{i}", "completion": "b", "conversations": talk} for i in range(4)]
    write("train.jsonl", rows)
    folder = Path(write("validation.jsonl", rows)).parent
    assert sum("ignored: conversations" in line for line in module(folder).notices) == 1


def test_mapping_prefers_what_is_there():
    """Catches a mapping that ignores the user's names, or a dotted path taken for a missing column."""
    found = mapped_columns("instruction", ["q", "answers"], {"prompt": "q", "completion": "answers.0.text"}, "x")
    assert found == {"prompt": "q", "completion": "answers.0.text"}
    assert mapped_columns("instruction", ["id", "conversations"], None, "x") == {"conversations": "conversations"}


def test_pick():
    """Catches wrong joining, a dotted column name taken for a path, and an empty list that raises IndexError."""
    row = {"a": "x", "b": "", "c": "z", "d.e": "dotted", "answers": [{"text": "first"}, {"text": "second"}], "none": []}
    assert pick(row, ["a", "b", "c"]) == "x\n\nz"
    assert pick(row, "d.e") == "dotted"
    assert pick({**row, "year": 1969}, ["a", "year"]) == "x\n\n1969"
    assert pick(row, "answers.1.text") == "second"
    with pytest.raises(BadRow, match=r"empty none\.0\.text"):
        pick(row, "none.0.text")
    assert pick({**row, "share": 5.5, "known": True}, ["a", "share", "known"]) == "x\n\n5.5\n\ntrue"
    with pytest.raises(BadRow, match="answers is not text"):
        pick(row, ["a", "answers"])


@pytest.mark.parametrize("path", ["answers.x", "answers.0.word", "plain.0", "absent"])
def test_pick_of_a_wrong_path(write, module, path):
    """Catches a wrong path into a column that ends in a traceback."""
    rows = [{"prompt": "a", "answers": [{"text": "b"}], "plain": "c"}] * 3
    with pytest.raises(AiraError, match=rf"there is no {path}|has the columns"):
        module(write("a.jsonl", rows), columns={"completion": path})


@pytest.mark.parametrize("names", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_conversations_of_both_dialects(write, module, names):
    """Catches turns in the from/value form that are not read, and a last turn without an answer that is kept."""
    role, content, user, assistant = names
    turns = [(user, "Olá?"), (assistant, "Olá!"), (user, "E agora?"), (assistant, "Nada."), (user, "Ainda?")]
    rows = [{"conversations": [{role: who, content: text} for who, text in turns]}] * 3
    expected = [("user", "Olá?"), ("assistant", "Olá!"), ("user", "E agora?"), ("assistant", "Nada.")]
    for found in conversations(module(write("a.jsonl", rows))):
        assert [(message["role"], message["content"]) for message in found] == expected


@pytest.mark.parametrize(
    "turns, reason",
    [
        (None, "empty conversations"),
        ([], "empty conversations"),
        ("", "empty conversations"),
        ("text", "text, not a list of turns as JSON"),
        ([{"role": "tool", "content": "a"}], "unknown role 'tool'"),
        ([{"role": "user", "content": "a"}], "no turn of the assistant"),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}], "an empty turn"),
        ([{"role": "user", "content": "  "}, {"role": "assistant", "content": "b"}], "an empty turn"),
        ([{"role": "user", "content": 0}, {"role": "assistant", "content": "b"}], "a turn is not text but int"),
        ([{"role": "user", "content": False}, {"role": "assistant", "content": "b"}], "a turn is not text but bool"),
        ([{"role": "user", "content": []}, {"role": "assistant", "content": "b"}], "a turn is not text but list"),
        ([{"role": "user", "content": "\u200b"}, {"role": "assistant", "content": "b"}], "an empty turn"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "\u2060 \x7f"}], "an empty turn"),
        ([{"role": ["user"], "content": "a"}], "unknown role"),
        ({"role": "user", "content": "a"}, "conversations is not a list of turns but dict"),
        (5, "conversations is not a list of turns but int"),
        (" ", "empty conversations"),
        ([{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}], "not text"),
        (["a", "b"], "a turn is not a mapping"),
        ([{"role": "assistant", "content": "a"}], "the assistant speaks first"),
        ([{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}], "the assistant speaks first"),
    ],
)
def test_unusable_conversations(turns, reason):
    """Catches a conversation that is trained on though something of it is missing."""
    with pytest.raises(BadRow, match=reason):
        conversation(turns)


def test_unusable_rows_are_dropped_and_counted(write, module):
    """Catches empty or odd rows that are trained on, or dropped without telling which."""
    rows = [*ROWS[:2], {"prompt": "a", "completion": " "}, ROWS[2], {"prompt": None, "completion": "b"}, ROWS[3]]
    made = module(write("a.jsonl", [*rows, {"prompt": "c", "completion": ""}]))
    assert len(conversations(made)) == 4
    assert "dropped 2 of 7 rows: empty completion (first: row 3)." in made.notices[0]
    assert "dropped 1 of 7 rows: empty prompt (first: row 5)." in made.notices[1]


def test_unknown_roles_are_dropped_and_counted(write, module):
    """Catches a tool's turn that is trained on as if the user had said it."""
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"conversations": turns} for turns in (good, [{"role": "tool", "content": "c"}, *good], good)]
    made = module(write("a.jsonl", rows))
    assert len(conversations(made)) == 2
    assert "dropped 1 of 3 rows: unknown role 'tool' (first: row 2)." in made.notices[0]


def test_columns_that_do_not_fit(write, module):
    """Catches names that look right since what they begin or end with is not seen, and a split that is not named."""
    for header, shown in {
        "prompt, completion": "prompt, ' completion'",
        "\u200bprompt,completion": "'\\u200bprompt', completion",
        "prompt,completion\u00a0": "prompt, 'completion\\xa0'",
    }.items():
        with pytest.raises(
            AiraError, match=rf"\(train\) has the columns {re.escape(shown)}, and instruction data needs"
        ):
            module(write("a.csv", f"{header}\na,b\n"))
    with pytest.raises(AiraError, match="c18, c19 and 280 more, and instruction data needs"):
        module(write("wide.jsonl", [{f"c{i}": "x" for i in range(300)}]))
    write("b/train.jsonl", ROWS)
    path = os.path.dirname(write("b/validation.jsonl", [{"question": "a", "answer": "b"}]))
    with pytest.raises(AiraError, match=r"b \(validation\) has the columns question, answer, and"):
        module(path)


def test_joined_columns_that_are_blank(write, module):
    """Catches a row that is dropped since a part of its prompt is of spaces, which an empty part does not do."""
    rows = [{"a": f"q{i}", "b": blank, "completion": "x"} for i, blank in enumerate(["", None, " ", "\n\t", "z"])]
    made = module(write("a.jsonl", rows), columns={"prompt": ["a", "b"]})
    assert sorted(talk[0]["content"] for talk in conversations(made)) == ["q0", "q1", "q2", "q3", "q4\n\nz"]
    assert not made.notices


def test_no_usable_row(write, module):
    """Catches a run on nothing."""
    path = write("a.jsonl", [{"prompt": "a", "completion": ""}] * 3)
    with pytest.raises(AiraError, match=r"No row of .* can be used\. .*empty completion"):
        module(path)


def test_one_usable_row(write, module):
    """Catches a training split that is empty since its only row is held out."""
    with pytest.raises(AiraError, match="one usable row"):
        module(write("a.jsonl", ROWS[:1]))


def test_max_examples_of_the_training_split(write, module):
    """Catches a limit that cuts the validation split as well, or not the training split."""
    write("train.jsonl", ROWS[:4])
    made = module(os.path.dirname(write("validation.jsonl", ROWS[3:])), max_examples=2)
    assert (len(made.train), len(made.validation)) == (2, 3)


# Real data, by column mapping


def real(data_folder, name):
    if not (data_folder / name).exists():
        pytest.skip(f"AIRA_DATA holds no {name}")
    return data_folder / name


def jsonl(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_alpaca(data_folder, module):
    """Catches an input that is not joined to its instruction."""
    file = real(data_folder, "alpaca_en_demo.jsonl")
    made = module(file, columns={"prompt": ["instruction", "input"], "completion": "output"}, max_examples=50)
    expected = [row["instruction"] + ("\n\n" + row["input"] if row["input"] else "") for row in jsonl(file)[:50]]
    assert sorted(row[0]["content"] for row in conversations(made)) == sorted(expected)
    assert any("\n\n" in prompt for prompt in expected)


def test_faquad(data_folder, module):
    """Catches a path into a list of answers that takes another answer, or a context that is lost."""
    file = real(data_folder, "faquad.jsonl")
    columns = {"prompt": ["context", "question"], "completion": "answers.0.text"}
    made = module(file, columns=columns, max_examples=40, max_length=1024)
    expected = {row["context"] + "\n\n" + row["question"]: row["answers"][0]["text"] for row in jsonl(file)[:40]}
    found = {user["content"]: assistant["content"] for user, assistant in conversations(made)}
    assert len(found) > 20 and found.items() <= expected.items()


def test_pira(data_folder, module):
    """Catches a CSV file with line breaks in its cells and an index without a name."""
    file = real(data_folder, "pira_validation.csv")
    columns = {"prompt": "question_pt_origin", "completion": "answer_pt_origin"}
    made = module(file, columns=columns, max_examples=60)
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[:60]
    expected = [(row["question_pt_origin"], row["answer_pt_origin"]) for row in rows]
    assert sorted((user["content"], answer["content"]) for user, answer in conversations(made)) == sorted(expected)


def test_dolly(data_folder, module):
    """Catches one mapped and one plain column that are not found together."""
    file = real(data_folder, "dolly_hhrlhf_train_small.jsonl")
    made = module(file, columns={"completion": "response"}, max_examples=50, max_length=1024)
    expected = [(row["prompt"], row["response"]) for row in jsonl(file)[:50]]
    found = [(user["content"], answer["content"]) for user, answer in conversations(made)]
    assert len(found) >= 45 and set(found) <= set(expected)
