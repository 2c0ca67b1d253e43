"""Rows of any shape: each is an example, or is told to be none; nothing else is raised."""

import hypothesis.strategies as st
from hypothesis import given, settings

from aira.data.schemas import SCHEMAS, BadRow, mapped_columns, read_example
from aira.errors import AiraError

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
FORMS = [(kind, names) for kind, schema in SCHEMAS.items() for names in schema.columns]


@settings(max_examples=1500, deadline=None)
@given(st.data(), st.sampled_from(FORMS))
def test_a_row_of_any_shape(data, form):
    """Catches a traceback, and an example whose turns are no text or have no role."""
    kind, names = form
    row = {name: data.draw(VALUES, label=name) for name in (*names, *SCHEMAS[kind].optional)}
    try:
        example = read_example(kind, row, mapped_columns(kind, list(row), None, "rows"))
    except (BadRow, AiraError):
        return
    for turns in example.conversations:
        assert all(isinstance(turn["content"], str) and turn["content"].strip() for turn in turns)
        assert {turn["role"] for turn in turns} <= {"user", "assistant", "system"} and turns[-1]["role"] == "assistant"
    assert set(example.labels) <= {0, 1} and abs(example.margin) < float("inf")
