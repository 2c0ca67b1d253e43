"""Data as people have it: a layout is recognized by its columns, and its rows are what they say; or a message helps."""

import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aira.data.module import DataModule
from aira.errors import AiraError
from aira.models.loading import load_tokenizer
from tests.data.conftest import TINY


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def said(*turns):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]


def csv(*rows):
    return "".join(",".join(f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in row) + "\n" for row in rows)


def parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def qa(prompt, answer, system=None):
    first = [("system", system)] if system else []
    return [*first, ("user", prompt), ("assistant", answer)]


TALK = [turn("user", "q{}"), turn("assistant", "a{}")]
CALL = '{"name": "sum", "arguments": {"a": 1}}'
TOOL = {"name": "sum", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {"type": "int"}}}}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
CALLED = {"name": "sum", "arguments": {"a": 1}}
CALLS = [("user", "q{}"), ("assistant", ""), ("tool", "1"), ("assistant", "a{}")]

INSTRUCTIONS = {
    # name: a row, in which {} is its number, and the turns that it has
    "prompt, completion": ({"prompt": "q{}", "completion": "a{}"}, qa("q{}", "a{}")),
    "prompt, response": ({"prompt": "q{}", "response": "a{}", "id": "{}"}, qa("q{}", "a{}")),
    "prompt, completion as turns": ({"prompt": TALK[:1], "completion": TALK[1:]}, qa("q{}", "a{}")),
    "question, answer": ({"question": "q{}", "answer": "a{}"}, qa("q{}", "a{}")),
    "query, response": ({"query": "q{}", "response": "a{}"}, qa("q{}", "a{}")),
    "instruction, output": ({"instruction": "q{}", "output": "a{}"}, qa("q{}", "a{}")),
    "instruction, input, output": (
        {"instruction": "q{}", "input": "i{}", "output": "a{}", "text": "all"},
        qa("q{}\n\ni{}", "a{}"),
    ),
    "an empty input": ({"instruction": "q{}", "input": "", "output": "a{}"}, qa("q{}", "a{}")),
    "instruction, context, response": (
        {"instruction": "q{}", "context": "c{}", "response": "a{}", "category": "x"},
        qa("q{}\n\nc{}", "a{}"),
    ),
    "input, output": ({"Input": "q{}", "Output": "a{}"}, qa("q{}", "a{}")),
    "system_prompt, question, response": (
        {"system_prompt": "s", "question": "q{}", "response": "a{}"},
        qa("q{}", "a{}", "s"),
    ),
    "history": (
        {"instruction": "q{}", "input": "", "output": "a{}", "system": "s", "history": [["h", "b"]]},
        [("system", "s"), ("user", "h"), ("assistant", "b"), *qa("q{}", "a{}")],
    ),
    "messages": ({"messages": TALK}, qa("q{}", "a{}")),
    "conversations of ShareGPT": ({"id": "{}", "conversations": said("q{}", "a{}")}, qa("q{}", "a{}")),
    "a system column": ({"system": "s", "conversations": said("q{}", "a{}")}, qa("q{}", "a{}", "s")),
    "a system turn": (
        {"conversations": [{"from": "system", "value": "s"}, *said("q{}", "a{}")]},
        qa("q{}", "a{}", "s"),
    ),
    "a developer's turn": ({"messages": [turn("developer", "s"), *TALK]}, qa("q{}", "a{}", "s")),
    "parts of a turn": (
        {"messages": [turn(one["role"], [{"type": "text", "text": one["content"]}]) for one in TALK]},
        qa("q{}", "a{}"),
    ),
    "turns as JSON": ({"messages": json.dumps(TALK)}, qa("q{}", "a{}")),
    "turns as Python prints them": ({"messages": str(TALK)}, qa("q{}", "a{}")),
    "a transcript as prompt": (
        {"prompt": "\n\nHuman: q{}\n\nAssistant: b\n\nHuman: r\n\nAssistant:", "completion": " a{}"},
        [("user", "q{}"), ("assistant", "b"), ("user", "r"), ("assistant", " a{}")],
    ),
    "reasoning": (
        {"messages": [TALK[0], turn("assistant", "a{}", reasoning_content="t{}")]},
        qa("q{}", "a{}"),
    ),
    "weights": ({"messages": [*TALK, turn("user", "r"), turn("assistant", "b", weight=0)]}, None),
    "tools of OpenAI": (
        {
            "messages": [
                turn("user", "q{}"),
                {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
                turn("tool", "1", tool_call_id="c1"),
                turn("assistant", "a{}"),
            ],
            "tools": [{"type": "function", "function": TOOL}],
        },
        CALLS,
    ),
    "tools of glaive": (
        {
            "conversations": [
                {"from": "human", "value": "q{}"},
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a{}"},
            ],
            "tools": json.dumps([TOOL]),
        },
        CALLS,
    ),
    "a tool's answer in a row without tools": ({"messages": [TALK[0], turn("tool", "1"), TALK[1]]}, None),
}

PAIRS = {
    # name: a row, and its prompt; the chosen answer is good{}, the rejected one bad{}
    "prompt, chosen, rejected": ({"prompt": "q{}", "chosen": "good{}", "rejected": "bad{}"}, [("user", "q{}")]),
    "question, chosen, rejected": ({"question": "q{}", "chosen": "good{}", "rejected": "bad{}"}, [("user", "q{}")]),
    "instruction, input": (
        {"instruction": "q{}", "input": "i", "chosen": "good{}", "rejected": "bad{}"},
        [("user", "q{}\n\ni")],
    ),
    "system": (
        {"system": "s", "question": "q{}", "chosen": "good{}", "rejected": "bad{}"},
        [("system", "s"), ("user", "q{}")],
    ),
    "chosen and rejected as dialogues": (
        {
            "prompt": "q{}",
            "chosen": [turn("user", "q{}"), turn("assistant", "good{}")],
            "rejected": [turn("user", "q{}"), turn("assistant", "bad{}")],
        },
        [("user", "q{}")],
    ),
    "no prompt": (
        {
            "chosen": [turn("user", "q{}"), turn("assistant", "good{}")],
            "rejected": [turn("user", "q{}"), turn("assistant", "bad{}")],
        },
        [("user", "q{}")],
    ),
    "transcripts": (
        {"chosen": "\n\nHuman: q{}\n\nAssistant: good{}", "rejected": "\n\nHuman: q{}\n\nAssistant: bad{}"},
        [("user", "q{}")],
    ),
    "a transcript as prompt": (
        {"prompt": "\n\nHuman: q{}\n\nAssistant:", "chosen": "good{}", "rejected": "bad{}"},
        [("user", "q{}")],
    ),
    "ShareGPT": (
        {
            "conversations": said("q{}"),
            "chosen": {"from": "gpt", "value": "good{}"},
            "rejected": {"from": "gpt", "value": "bad{}"},
        },
        [("user", "q{}")],
    ),
    "the Aira set": (
        {"instruction": "q{}", "chosen_response": "good{}", "rejected_response": "bad{}"},
        [("user", "q{}")],
    ),
    "WebGPT": (
        {"question": "q{}", "answer_0": "bad{}", "answer_1": "good{}", "score_0": -1, "score_1": 1},
        [("user", "q{}")],
    ),
    "the better of 1 and 2": (
        {"input": "q{}", "output_1": "bad{}", "output_2": "good{}", "label": 2},
        [("user", "q{}")],
    ),
    "the better of a and b": (
        {"prompt": "q{}", "response_a": "good{}", "response_b": "bad{}", "winner": "model_a"},
        [("user", "q{}")],
    ),
    "the better of 0 and 1": (
        {"prompt": "q{}", "response_0": "good{}", "response_1": "bad{}", "better_response_id": 0},
        [("user", "q{}")],
    ),
}

FORMS = ("parquet", "jsonl", "json")
"""The layouts take turns in these, which tests/data/test_rows.py compares."""

TEXTS = {
    # name: a harmless and a toxic row, of which the text is t{}
    "text, label": ({"text": "t{}", "label": 0}, {"text": "t{}", "label": 1}),
    "comment_text, toxic": ({"comment_text": "t{}", "toxic": 0, "threat": 0}, {"comment_text": "t{}", "toxic": 1}),
    "tweet, is_offensive": ({"id": "x", "tweet": "t{}", "is_offensive": False}, {"tweet": "t{}", "is_offensive": True}),
    "words": ({"text": "t{}", "label": "non-toxic"}, {"text": "t{}", "label": "Toxic"}),
    "probabilities": ({"text": "t{}", "toxicity": 0.2}, {"text": "t{}", "toxicity": 0.9}),
}


def numbered(value, number):
    if isinstance(value, str):
        return value.replace("{}", str(number))
    if isinstance(value, dict):
        return {key: numbered(part, number) for key, part in value.items()}
    return [numbered(part, number) for part in value] if isinstance(value, list) else value


def examples(tmp_path, kind, path, head="lm"):
    data = DataModule(
        load_tokenizer(TINY, head=head)[0],
        kind=kind,
        head=head,
        path=str(path),
        loss_on="completion" if kind == "instruction" else "response",
        cache_dir=str(tmp_path / "cache"),
    )
    return data, [one for split in (data.train, data.validation) for one in data.examples(split, split.index)]


@pytest.fixture
def write(tmp_path):
    def to(row, form):
        rows = [numbered(row, i) for i in range(4)]
        file = tmp_path / f"rows.{form}"
        if form == "parquet":
            file.write_bytes(parquet(rows))
        elif form == "json":
            file.write_text(json.dumps({"data": rows}))
        else:
            file.write_text("".join(json.dumps(one) + "\n" for one in rows))
        return file

    return to


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions(tmp_path, write, name):
    """Catches a layout that is refused, turned round or read in part."""
    (row, expected), form = INSTRUCTIONS[name], FORMS[list(INSTRUCTIONS).index(name) % 3]
    data, found = examples(tmp_path, "instruction", write(row, form))
    assert len(found) == 4 and "read as" in data.layouts[0]
    if expected:
        turns = sorted([(one["role"], one["content"]) for one in example.conversations[0]] for example in found)
        assert turns == sorted([(role, text.replace("{}", str(i))) for role, text in expected] for i in range(4))
    for example in found:
        if "tools" in row:
            assert example.tools == [{"type": "function", "function": TOOL}]
            assert [call["function"] for one in example.conversations[0] for call in one.get("tool_calls", [])] == [
                CALLED
            ]


def test_what_turns_say_of_themselves(tmp_path, write):
    """Catches reasoning that is lost, and a weight of 0 that is trained on."""
    _, found = examples(tmp_path, "instruction", write(INSTRUCTIONS["reasoning"][0], "jsonl"))
    assert {one.conversations[0][1]["reasoning_content"] for one in found} == {f"t{i}" for i in range(4)}
    data, found = examples(tmp_path, "instruction", write(INSTRUCTIONS["weights"][0], "jsonl"))
    assert all(
        [one.get("train", True) for one in example.conversations[0]] == [True, True, True, False] for example in found
    )
    example = data.train.encoded[int(data.train.index[0])]
    tokens = [token for token, scored in zip(example["branches"][0], example["scored"][0]) if scored]
    assert data.tokenizer.decode(tokens).startswith("a") and len(tokens) <= 3
    wrong = {"messages": [TALK[0], turn("assistant", "a{}", weight=2)]}
    with pytest.raises(AiraError, match="weight of a turn is neither 0 nor 1"):
        examples(tmp_path, "instruction", write(wrong, "json"))


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(tmp_path, write, name):
    """Catches a pair that is turned round, and a prompt that is lost."""
    (row, prompt), form = PAIRS[name], FORMS[list(PAIRS).index(name) % 3]
    _, found = examples(tmp_path, "preference", write(row, form))
    assert len(found) == 4
    for example in found:
        (*before, chosen), (*same, rejected) = example.conversations
        number = chosen["content"].removeprefix("good")
        assert rejected["content"] == f"bad{number}" and before == same
        assert [(one["role"], one["content"]) for one in before] == [
            (role, text.replace("{}", number)) for role, text in prompt
        ]


@pytest.mark.parametrize("harmless, toxic", TEXTS.values(), ids=TEXTS)
def test_labelled_texts(tmp_path, harmless, toxic):
    """Catches a label that is read the other way round, and a probability that is rounded."""
    rows = [numbered(harmless if i % 2 else toxic, i) for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**harmless, **toxic, **row}) + "\n" for row in rows))
    _, found = examples(tmp_path, "labelled", tmp_path / "rows.jsonl", "score")
    name = next(name for name in ("label", "toxic", "is_offensive", "toxicity") if name in harmless)
    for example in found:
        number = int(example.conversations[0][0]["content"].removeprefix("t"))
        assert (example.labels[0] >= 0.5) == (number % 2 == 0)
        if name == "toxicity":
            assert example.labels[0] == (0.2 if number % 2 else 0.9)


def test_documents(tmp_path):
    """Catches documents that are mixed, and tokens of a long one that are predicted twice or never."""
    texts = ["One short text.", "A long text, " * 200, "Another."]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data, found = examples(tmp_path, "instruction", tmp_path / "rows.jsonl")
    table = data.train.encoded
    for row, text in enumerate(texts):
        chunks = [one for one in table if one["row"] == row]
        ids = [*data.tokenizer(text)["input_ids"], data.tokenizer.eos_token_id]
        again = chunks[0]["branches"][0][:1]
        for one in chunks:
            ((*tokens,),), (mask,) = one["branches"], one["scored"]
            assert tokens[0] == again[-1] and mask == [False, *[True] * (len(tokens) - 1)] and len(tokens) <= 600
            again += tokens[1:]
        assert again == ids
    assert any("chunks of at most data.max_length tokens, from 3 texts" in line for line in data.notices)
    assert len(found) == len(table) > 3 and data.layouts[0].endswith("every token of which is scored: text.")


REFUSED = {
    # kind, content of a CSV or JSONL file, and what the message says
    "no header": ("labelled", "a.csv", csv((15923, "OFF"), (27014, "NOT")), "If the first line of the file is data"),
    "prompts alone": ("instruction", "a.jsonl", {"prompt": "q"}, "completion: ?"),
    "answers in a list": (
        "instruction",
        "a.jsonl",
        {"question": "q", "answers": [{"text": "a", "start": 1}]},
        "{prompt: question, completion: answers.0.text}",
    ),
    "names in another language": (
        "instruction",
        "a.jsonl",
        {"id": "1", "question_pt_origin": "q", "answer_pt_origin": "a"},
        "{prompt: question_pt_origin, completion: answer_pt_origin}",
    ),
    "a question with choices": (
        "instruction",
        "a.jsonl",
        {"question": "q", "choices": ["a", "b"], "answer": 1},
        "is not whole without them",
    ),
    "pairs for sft": (
        "instruction",
        "a.jsonl",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        "method=dpo and method=reward train on such pairs",
    ),
    "answers for dpo": ("preference", "a.jsonl", {"prompt": "q", "completion": "a", "label": True}, "are no pairs"),
    "several answers a side": (
        "preference",
        "a.jsonl",
        {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"]},
        "is a list of texts; a path in data.columns",
    ),
    "better is neither": (
        "preference",
        "a.jsonl",
        {"prompt": "q", "output_1": "a", "output_2": "b", "label": 0},
        "better says neither 1 nor 2",
    ),
    "an image": (
        "instruction",
        "a.jsonl",
        {"messages": [turn("user", [{"type": "image_url"}]), turn("assistant", "a")]},
        "a part of a turn is not text but 'image_url'",
    ),
    "a class by number": ("labelled", "a.jsonl", {"tweet": "t", "class": 2}, "{text: tweet, label: class}"),
    "a margin the other way": (
        "preference",
        "a.jsonl",
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1},
        "margin is not between 0 and 1000",
    ),
    "a huge margin": (
        "preference",
        "a.jsonl",
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e30},
        "margin is not between 0 and 1000",
    ),
    "two system prompts": (
        "instruction",
        "a.jsonl",
        {"system": "s", "messages": [turn("system", "z"), *TALK]},
        "two different system prompts",
    ),
}


@pytest.mark.parametrize("kind, name, content, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_told(tmp_path, kind, name, content, message):
    """Catches a layout that is guessed, and a message that does not help."""
    if isinstance(content, dict):
        content = "".join(json.dumps(numbered(content, i)) + "\n" for i in range(3))
    (tmp_path / name).write_text(content)
    with pytest.raises(AiraError) as caught:
        examples(tmp_path, kind, tmp_path / name, "score" if kind == "labelled" else "lm")
    assert message in str(caught.value)


def test_rows_that_repeat_or_contradict(tmp_path):
    """Catches copies of a row, pairs in both directions and texts of both classes that nobody is told of."""
    pairs = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    rows = [*pairs, pairs[0], pairs[0], {"prompt": "q1", "chosen": "b", "rejected": "a"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, _ = examples(tmp_path, "preference", tmp_path / "pairs.jsonl")
    assert any("2 of 7 rows are repetitions of another (first: row 1)" in line for line in data.notices)
    assert any("1 pairs occur with either response as the better one (first: row 2)" in line for line in data.notices)
    texts = [{"text": f"t{i}", "label": i % 2} for i in range(6)]
    rows = [*texts, {"text": "t3", "label": 0}, texts[1]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, _ = examples(tmp_path, "labelled", tmp_path / "texts.jsonl", "score")
    assert any("1 of 8 rows are repetitions" in line for line in data.notices)
    assert any("1 texts have more than one label (first: row 4)" in line for line in data.notices)


def test_turns_after_the_last_answer(tmp_path):
    """Catches turns that are left out without a word."""
    rows = [{"messages": numbered([*TALK, turn("user", "more")] if i else TALK, i)} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, found = examples(tmp_path, "instruction", tmp_path / "rows.jsonl")
    assert {len(one.conversations[0]) for one in found} == {2}
    assert any("in 3 of 4 rows turns follow the last answer" in line for line in data.notices)


def test_a_list_as_an_answer(tmp_path):
    """Catches the text of a list that a table has made of several answers, which is trained on without a word."""
    rows = [{"prompt": f"q{i}", "completion": str(["one", "two"]) if i else "one"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data, _ = examples(tmp_path, "instruction", tmp_path / "rows.jsonl")
    assert any(
        "in 3 of 4 rows completion is a list as Python prints it (first: row 2)" in line for line in data.notices
    )


REAL = {  # kind and number of usable rows at least, of the first 200
    "alpaca_en_demo.jsonl": ("instruction", 195),
    "alpaca_eval_text_davinci_003.json": ("instruction", 195),
    "dolly_hhrlhf_train_small.jsonl": ("instruction", 195),
    "fastchat_dummy_conversation.json": ("instruction", 200),
    "fll_assistant_pt_openai_chat.jsonl": ("instruction", 200),
    "glaive_toolcall_en_demo.json": ("instruction", 190),
    "stock_toolcall_openai.jsonl": ("instruction", 80),
    "toy_chat_fine_tuning.jsonl": ("instruction", 4),
    "gsm8k_test.jsonl": ("instruction", 200),
    "kto_en_demo.json": ("instruction", 195),
    "safety_tuned_llamas_sample.jsonl": ("instruction", 195),
    "dpo_en_demo.jsonl": ("preference", 110),
    "hh_rlhf_harmless_base_test.jsonl": ("preference", 195),
    "hh_rlhf_helpful_online_test.jsonl.gz": ("preference", 180),
    "ultrafeedback_binarized_eval_sample.jsonl": ("preference", 180),
    "llmbar.jsonl": ("preference", 195),
    "wiki_toxicity_testset.csv": ("labelled", 200),
    "told_br_test_binary.csv": ("labelled", 200),
    "jigsaw_toxic_train_sample.csv": ("labelled", 200),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(tmp_path, data_folder, name):
    """Catches a public file that does not train with data.path= alone."""
    kind, least = REAL[name]
    head = "score" if kind == "labelled" else "lm"
    data = DataModule(
        load_tokenizer(TINY, head=head)[0],
        kind=kind,
        head=head,
        path=os.path.join(data_folder, name),
        loss_on="completion" if kind == "instruction" else "response",
        max_examples=200,
        max_length=2000,
        cache_dir=str(tmp_path),
    )
    assert len(data.train) + len(data.validation) >= least, data.notices
