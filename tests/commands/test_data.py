"""`aira data`: what it shows of the data is what a run would read."""

import json
import re

import pytest

from aira.config.compose import compose_settings
from aira.config.schema import Train
from aira.preview import preview


def shown(tmp_path, rows, *overrides, color=False):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cache = f"cache_dir={tmp_path}/cache"
    settings = compose_settings(Train, [f"data.path={file}", cache, "data.validation_fraction=0.2", *overrides])
    return "\n".join(preview(settings, color=color))


def number(text, name):
    return int(re.search(rf"{name} +(\d+)", text)[1])


MEMORY = ("weights", "gradients", "optimizer state")


def test_instructions(tmp_path):
    """Catches scored text that is not the answer, and counts that are not those of the examples."""
    rows = [{"instruction": f"Say {i}.", "output": "It is so. " * (i + 1), "id": i} for i in range(5)]
    text = shown(tmp_path, [*rows, {"instruction": "", "output": "x", "id": 9}])
    assert "read as prompt (instruction), completion (output); not read: id." in text
    assert "dropped 1 of 6 rows: empty prompt (first: row 6)" in text
    marked = re.findall("«(.*?)»", text)
    assert len(marked) == 3 and all(re.fullmatch(r"(It is so. )+<\|endofcompletion\|>", one) for one in marked)
    assert "An epoch: 4 examples in 1 steps of 16, 1 forward passes" in text
    counts = [(int(one), int(other)) for one, other in re.findall(r"(\d+) tokens, (\d+) of them scored", text)]
    assert number(text, "tokens read") > sum(all_tokens for all_tokens, _ in counts)
    assert number(text, "tokens read") == number(text, "tokens of separate branches")
    assert number(text, "different prompts") == 4 and "Validation: 1 examples" in text
    assert sum(map(int, re.findall(r"–\d+ +(\d+)", text))) == 4
    weights, gradients, state = (float(re.search(rf"{of} +([\d.]+) GB", text)[1]) for of in MEMORY)
    assert weights == gradients and state == pytest.approx(2 * weights, abs=2e-3)
    assert "\033[32mIt is so." in shown(tmp_path, rows, color=True)


def test_pairs(tmp_path):
    """Catches a shared prompt that is counted twice."""
    rows = [{"prompt": "What is it? " * 9, "chosen": f"It is {i}.", "rejected": "No."} for i in range(5)]
    text = shown(tmp_path, rows, "method=dpo")
    assert text.count("tokens as before] «") == 3 and number(text, "different prompts") == 1
    assert 1.5 < number(text, "tokens of separate branches") / number(text, "tokens read") < 2
    assert "all rows have the same prompt" in text


def test_labelled_texts(tmp_path):
    """Catches labels that are not shown, and scored tokens where there are none."""
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(10)]
    text = shown(tmp_path, rows, "method=toxicity", "model=bert-tiny")
    labels = {f"text {i}": str(i % 2) for i in range(10)}
    found = re.findall(r"tokens, toxic: (\d)\n  \[CLS\](text \d)", text)
    assert len(found) == 3 and all(labels[words] == label for label, words in found)
    assert "scored" not in text.partition("Example 1")[2]
