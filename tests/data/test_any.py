"""Rows of any shape and text: what trains is what was written, or a row is told to be none; keys tell all apart."""

import json
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from aira.data.schemas import SCHEMAS, mapped_columns, read_example
from aira.data.sources import read
from aira.data.texts import BadRow
from aira.data.tokenize import encode, tokenizer_hash
from aira.errors import AiraError
from aira.inference.generation import prompt_ids
from tests.data.test_continuation import TEMPLATES, made, talk

WORDS = (
    "role",
    "from",
    "content",
    "value",
    "full_text",
    "user",
    "assistant",
    "gpt",
    "system",
    "\n\nHuman: a\n\nAssistant: b",
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(WORDS))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
        st.fixed_dictionaries(
            {"role": st.one_of(st.sampled_from(["user", "assistant", "system"]), inner), "content": inner}
        ),
    ),
    max_leaves=8,
)
FORMS = [(kind, layout) for kind, layouts in SCHEMAS.items() for layout in layouts]


@settings(max_examples=1500, deadline=None)
@given(st.data(), st.sampled_from(FORMS))
def test_a_row_of_any_shape(data, form):
    """Catches a traceback, and an example whose turns are no text or have no role."""
    kind, layout = form
    row = {name: data.draw(VALUES, label=name) for name in (*layout.columns, *layout.optional)}
    columns = {name: name for name in ("first", "second") if name in row}
    try:
        example = read_example(kind, row, mapped_columns(kind, list(row), columns, "rows"))
    except (BadRow, AiraError):
        return
    for turns in example.conversations:
        assert all(isinstance(turn["content"], str) for turn in turns)
        assert all(turn["content"].strip() or turn["tool_calls"] for turn in turns)
        assert {turn["role"] for turn in turns} <= {"user", "assistant", "system", "tool"}
        assert turns[-1]["role"] == "assistant"
    assert all(0 <= label <= 1 for label in example.labels) and abs(example.margin) < float("inf")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40) | st.sampled_from(
    [
        "</s>",
        "<|im_end|>",
        "a<|im_start|>b",
        "\u0301e",
        "👩‍👩‍👧",
        " x ",
        "\n\n",
        "\ufeffa",
        "<|im_end|>\n<|im_start|>assistant\n",
        "ﬁ",
    ]
)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_what_trains_is_what_was_written(template, asked, answered):
    """Catches a text that is changed, cut or taken for control tokens on its way through template and tokenizer."""
    assume(asked.strip() and answered.strip())
    tokenizer = made("gpt2", template)
    messages = talk(asked, answered)
    (ids,), (mask,) = (encode(tokenizer, [messages], 10_000, "completion")[name] for name in ("branches", "scored"))
    before, whole = (
        tokenizer.apply_chat_template(messages[:n], tokenize=False, add_generation_prompt=n == 1) for n in (1, 2)
    )
    prompt = prompt_ids(tokenizer, messages[:1])
    assert ids[: len(prompt)] == prompt and mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert tokenizer.decode(prompt) == before and tokenizer.decode(ids) == whole
    marks = sum(whole.count(name) for name in tokenizer.all_special_tokens)
    said = sum(text.count(name) for text in (asked, answered) for name in tokenizer.all_special_tokens)
    assert sum(token in tokenizer.all_special_ids for token in ids) == marks - said


FILES = st.dictionaries(
    st.sampled_from(["train.jsonl", "test.jsonl", "validation.jsonl", "train-b.jsonl"]),
    st.lists(st.fixed_dictionaries({"a": st.sampled_from(["", "x", "y", "é", "e\u0301"])}), min_size=1, max_size=3),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(FILES, FILES)
def test_keys_of_files(first, second):
    """Catches two folders that differ in a byte or a name and share a key, or that are the same and do not."""
    keys = []
    with tempfile.TemporaryDirectory() as folder:
        for i, files in enumerate((first, second)):
            (Path(folder) / str(i)).mkdir()
            for name, rows in files.items():
                content = "".join(json.dumps(row) + "\n" for row in rows)
                (Path(folder) / str(i) / name).write_text(content, encoding="utf-8")
            try:
                keys.append(read(f"{folder}/{i}", cache_dir=f"{folder}/cache").key)
            except AiraError:
                return
    assert (keys[0] == keys[1]) == (first == second)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(TEMPLATES)), st.sampled_from(list(TEMPLATES)), TEXTS, TEXTS)
def test_keys_of_tokenizers(first, second, one, other):
    """Catches two templates or tokens that share the key of what was tokenized."""
    keys = []
    for template, token in ((first, one), (second, other)):
        tokenizer = made("gpt2", template)
        before = tokenizer.chat_template
        tokenizer.chat_template = before + token
        keys.append(tokenizer_hash(tokenizer))
        tokenizer.chat_template = before
    assert (keys[0] == keys[1]) == (TEMPLATES[first] + one == TEMPLATES[second] + other)
