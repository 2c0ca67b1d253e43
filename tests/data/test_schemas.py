"""What is made of cells: texts, turns, labels and scores."""

import csv
import io
import json

import pytest

from aira.data.labels import label
from aira.data.schemas import preference, scored_pair
from aira.data.texts import BadRow
from aira.data.turns import conversation
from aira.errors import AiraError
from tests.data.conftest import conversations
from tests.data.files import TURNS, lines


@pytest.mark.parametrize("cells", [["None", "NA"], ["00123", "7"], ["2024-01-31", "2.50"], ["true", "False"]])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_answers_are_text(write, module, form, cells):
    """Catches answers that are dropped, refused, or trained on in another spelling."""
    rows = [{"prompt": f"Q{i}", "completion": cell} for i, cell in enumerate(cells)]
    separator = "\t" if form == "tsv" else ","
    table = "".join(separator.join(row) + "\n" for row in (rows[0], *(row.values() for row in rows)))
    made = module(write(f"a.{form}", lines(*rows) if form == "jsonl" else table))
    assert sorted(talk[1]["content"] for talk in conversations(made)) == sorted(cells) and not made.notices


def test_numbers_of_json_are_text(write, module):
    """Catches numbers, true and false that are no answers, alone in a column or beside texts."""
    for values, expected in {
        (1, 2): ["1", "2"],
        (3.5, 4.25): ["3.5", "4.25"],
        (True, False): ["true", "false"],
        (1, 0.5): ["1", "0.5"],
        (7, "seven", 0.5, False): ["7", "seven", "0.5", "false"],
    }.items():
        rows = [{"prompt": f"Q{i}", "completion": value} for i, value in enumerate(values)]
        made = module(write("a.jsonl", lines(*rows)))
        assert sorted(talk[1]["content"] for talk in conversations(made)) == sorted(expected) and not made.notices


def test_turns_in_a_cell(write, module):
    """Catches turns as JSON in a cell of CSV or a text of JSON that are dropped, and a text that is none."""
    rows = [{"conversations": json.dumps(TURNS)}, {"conversations": json.dumps(TURNS[:1] + TURNS)}]
    stream = io.StringIO()
    table = csv.DictWriter(stream, rows[0])
    table.writeheader()
    table.writerows(rows)
    for name, content in {"a.csv": stream.getvalue(), "a.jsonl": lines(*rows)}.items():
        assert sorted(map(len, conversations(module(write(name, content))))) == [2, 3]
    twice = '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]'
    for wrong in ("hello", twice, '["a"]', "[]"):
        with pytest.raises(BadRow, match="text, not a list of turns as JSON"):
            conversation(wrong)
    for half in ("\\ud800", "\\udfff\\ud83d", "a\\ude00"):  # as an escape, which is an ASCII text to CSV and JSON
        cell = json.dumps(TURNS).replace('"b"', f'"{half}"')
        with pytest.raises(BadRow, match="half of a character"):
            conversation(cell)
        with pytest.raises(BadRow, match="half of a character"):
            preference({"prompt": "a", "chosen": cell, "rejected": "b"})
    assert conversation(json.dumps(TURNS).replace('"b"', '"\\ud83d\\ude00"'))[1]["content"] == "😀"
    pair = {"prompt": "a", "chosen": json.dumps(TURNS[1:]), "rejected": "[1]"}
    assert [one[-1]["content"] for one in preference(pair).conversations] == ["b", "[1]"]


def test_numbers_as_text():
    """Catches scores that are compared as texts, and labels of CSV that are not known."""
    known = {"0": 0, "1": 1, "true": 1, "false": 0, "yes": 1}
    for value in ("1", "1.0", " 1 ", "True", "TRUE", 1, 1.0, True, "yes", ["0.0", "2.0"], ["False", "True"]):
        assert label(value, known) == 1, value
    for value in ("0", "0.0", " 0", "False", "-0", 0, 0.0, False, ["0.0", "0"]):
        assert label(value, known) == 0, value
    for value in ("", "  ", None, float("nan"), "nan", "NULL", "None", "-1.00", ["0.0", "0", ""]):
        with pytest.raises(BadRow, match="empty label"):
            label(value, known)
    for value in ("0.25", 0.9999999, "1e-9"):  # a probability
        assert label(value, known) == float(value)
    for value in ("NA", "2", "one", 1.5, -0.5, "inf"):
        with pytest.raises(AiraError, match="neither toxic nor harmless"):
            label(value, known)
    row = {"question": "q", "answer_0": "a", "answer_1": "b"}
    for scores, first in {("10", "9"): "a", ("-1", "-2"): "a", ("0.5", "1"): "b", ("1e1", "5"): "a"}.items():
        pair = scored_pair({**row, "score_0": scores[0], "score_1": scores[1]})
        assert pair.conversations[0][-1]["content"] == first
    with pytest.raises(BadRow, match="a tie"):
        scored_pair({**row, "score_0": "1", "score_1": "1.0"})
    for wrong in ("", "nan", "inf", None, "many"):
        with pytest.raises(BadRow, match="score_1 is not a number"):
            scored_pair({**row, "score_0": "1", "score_1": wrong})
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert preference({**pair, "margin": "0.5"}).margin == 0.5
    for wrong in (1e39, "-1e39", "9" * 400, int("9" * 400), [1], {"a": 1}):  # no number, or none of 32 bits
        with pytest.raises(BadRow, match=r"^margin is not a number \(.{,70}\)$"):
            preference({**pair, "margin": wrong})
