"""Preference pairs and labelled texts: the published sets, a user's forms, and what is held out."""

import csv
import json
import math
import shlex

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from aira.config.compose import compose_config
from aira.config.record import to_dict
from aira.data.labels import LABELS, class_names, label
from aira.data.module import DataModule
from aira.data.schemas import Example, harmful, mapped_columns, prompt_key, read_example
from aira.data.texts import BadRow, text_key
from aira.data.turns import transcript
from aira.errors import AiraError
from aira.models.loading import load_tokenizer
from tests.data.conftest import HUB, TINY


@pytest.fixture
def load(cache):
    """Make a DataModule as the command line does."""

    def make(*overrides, **settings):
        values = to_dict(compose_config("train", list(overrides)))
        head = values["method"]["head"]
        names = ("split", "validation_split", "validation_fraction", "columns", "labels", "exclude", "max_examples")
        chosen = {name: values["data"][name] for name in names}
        return DataModule(
            load_tokenizer(TINY, head=head)[0],
            kind=values["method"]["kind"],
            path=values["data"]["path"],
            head=head,
            loss_on="response",
            cache_dir=str(cache),
            **{**chosen, **settings},
        )

    return make


def turns(*said):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def every(data):
    """All examples, training first."""
    return [example for split in (data.train, data.validation) for example in data.examples(split, split.index)]


QUESTION, GOOD, BAD = "What is the capital of France?", "The capital of France is Paris.", "Find it out yourself."


@pytest.mark.parametrize("data, name", [("aira", "reward-aira-dataset"), ("harmless-aira", "harmless-aira-dataset")])
@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_aira_pairs(load, data, name, method):
    """Catches published pairs whose sides are swapped."""
    made = load(f"data={data}", f"method={method}", f"data.path={HUB / name}")
    found = {example.conversations[0][0]["content"]: example.conversations for example in every(made)}
    assert found[QUESTION] == [turns(QUESTION, GOOD), turns(QUESTION, BAD)] and len(found) == 6


@pytest.mark.parametrize("objective", ["classification", "pairwise"])
def test_harmful_text(load, objective):
    """Catches labels that are swapped."""
    overrides = ["data=aira", "method=toxicity", f"method.objective={objective}", f"data.path={HUB / 'harmful-text'}"]
    made = load(*overrides, "language=pt")
    assert all(example.labels == [0, 1] and len(example.conversations) == 2 for example in every(made))
    harmless = {example.conversations[0][0]["content"] for example in every(made)}
    assert "A capital da França é Paris." in harmless and made.train.labels.tolist() == [[0, 1]] * len(made.train)


def test_hh_rlhf(load):
    """Catches dialogues that are split elsewhere than at the last turn, compressed files, or a test split not used."""
    made = load("data=hh-rlhf", "method=reward", f"data.path={HUB / 'hh-rlhf'}")
    assert (len(made.train), len(made.validation)) == (6, 6)
    found = every(made)
    talk = next(example.conversations[0] for example in found if len(example.conversations[0]) == 4)
    assert [message["role"] for message in talk] == ["user", "assistant", "user", "assistant"]
    assert talk[:2] == turns("Hello!", "Hello. What is it?")
    assert [c[-1]["content"] for c in found[0].conversations] == [GOOD, BAD]


def test_webgpt(load):
    """Catches a tie that is trained on, and an answer that is chosen for the lower score."""
    made = load("data=webgpt", "method=dpo", f"data.path={HUB / 'webgpt_comparisons'}")
    assert len(every(made)) == 5 and "dropped 1 of 6 rows: a tie" in made.notices[0]
    found = {example.conversations[0][0]["content"]: example.conversations for example in every(made)}
    assert found["What is 2 + 3?"] == [
        turns("What is 2 + 3?", "2 + 3 is 5."),
        turns("What is 2 + 3?", "You cannot even add."),
    ]


def test_real_dialogues(load, data_folder):
    """Catches rows of HH-RLHF that the reader does not understand; two of the helpful rows are no pairs."""
    for name, equal in (("hh_rlhf_harmless_base_test", 0), ("hh_rlhf_helpful_base_test", 2)):
        made = load("method=dpo", f"data.path={data_folder / name}.jsonl", max_length=4000)
        said = " ".join(made.notices)
        assert ("dropped 2 of 1700 rows: chosen equals rejected" in said) == bool(equal)
        assert len(every(made)) > 0.97 * {0: 1156, 2: 1700}[equal]


def test_real_pairs_of_turns(load, data_folder):
    """Catches pairs whose prompt is a list of turns and whose responses are single turns."""
    made = load("method=reward", f"data.path={data_folder / 'dpo_en_demo.jsonl'}", max_length=4000)
    assert len(every(made)) >= 295
    assert all(example.conversations[0][-1]["role"] == "assistant" for example in every(made))


CLASSES = ["homophobia", "obscene", "insult", "racism", "misogyny", "xenophobia"]


@pytest.mark.slow
def test_real_labels(load, data_folder):
    """Catches another rule for ToLD-Br than the published one: its label of every row of the test split."""
    made = load("data=told-br", "language=pt", "method=toxicity", f"data.path={data_folder / 'told_br.csv'}")
    with open(data_folder / "told_br_test_binary.csv", encoding="utf-8", newline="") as file:
        published = {row["text"]: int(float(row["toxic"])) for row in csv.DictReader(file)}
    found = {}  # a text may occur more than once, with other labels
    for example in every(made):
        found.setdefault(example.conversations[0][0]["content"], set()).update(example.labels)
    both = found.keys() & published.keys()
    assert len(both) > 2000 and all(published[text] in found[text] for text in both)
    assert sum(len(found[text]) > 1 for text in both) < 20


@pytest.mark.slow
def test_real_rows_are_excluded(load, data_folder):
    """Catches test texts that are trained on."""
    files = [str(data_folder / f"told_br_{name}_binary.csv") for name in ("test", "validation")]
    made = load(
        "data=told-br", "language=pt", "method=toxicity", f"data.path={data_folder / 'told_br.csv'}", exclude=files
    )
    with open(files[0], encoding="utf-8", newline="") as file:
        texts = {" ".join(row["text"].casefold().split()) for row in csv.DictReader(file)}
    kept = {" ".join(example.conversations[0][0]["content"].casefold().split()) for example in every(made)}
    assert not kept & texts and 15_000 < len(every(made)) < 17_000
    assert any("by data.exclude" in line for line in made.notices)


def test_hatecheck(load, data_folder):
    """Catches labels in words that are read the wrong way round."""
    made = load(
        "data=hatecheck",
        "language=pt",
        "method=toxicity",
        f"data.path={data_folder / 'hatecheck_pt.csv'}",
        split="train",
    )
    assert sum(example.labels[0] for example in every(made)) == 2581 and len(every(made)) == 3691


def test_jigsaw(load, data_folder):
    """Catches several columns of classes that do not make one label."""
    columns = {
        "text": "comment_text",
        "label": ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"],
    }
    made = load("method=toxicity", f"data.path={data_folder / 'jigsaw_toxic_train_sample.csv'}", columns=columns)
    assert 28 <= sum(example.labels[0] for example in every(made)) <= 40


FORMS = {
    "texts": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "turns": {"prompt": turns("q"), "chosen": turns("q", "a")[1:], "rejected": [{"role": "assistant", "content": "b"}]},
    "one turn each": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "dialogues": {"chosen": turns("q", "a"), "rejected": turns("q", "b")},
    "a prompt and a dialogue": {"prompt": "Q ", "chosen": turns("q", "a"), "rejected": turns("q", "b")},
    "a prompt and dialogues": {"prompt": "q", "chosen": turns("q", "a"), "rejected": turns("q", "b")},
    "transcripts": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "comparison": {"question": "q", "answer_0": "b", "answer_1": "a", "score_0": -0.5, "score_1": 0.5},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_pairs(form):
    """Catches a form that gives another pair than the others."""
    row = FORMS[form]
    mapping = mapped_columns("preference", list(row), None, "rows")
    assert read_example("preference", row, mapping) == Example([turns("q", "a"), turns("q", "b")], notes=[], tools=[])


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
        ({"prompt": "q", "chosen": "", "rejected": "a"}, "empty response"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "empty response"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": "\u200b\ufeff", "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": "p", "chosen": "\0 \u00ad", "rejected": "b"}, "empty response"),
        ({"prompt": "p", "chosen": "\u3164\ufe0f\n", "rejected": "b"}, "empty response"),
        ({"chosen": turns("q", "a"), "rejected": turns("p", "b")}, "different prompts"),
        ({"prompt": "p", "chosen": turns("q", "a"), "rejected": turns("q", "b")}, "another prompt than the row's"),
        ({"prompt": "p", "chosen": turns("q", "a"), "rejected": "b"}, "another prompt than the row's"),
        ({"prompt": turns("p", "q", "r"), "chosen": "a", "rejected": turns("p", "q", "s", "b")}, "another prompt"),
        ({"chosen": "a", "rejected": "b"}, "no transcript"),
        ({"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "an empty response"),
        ({"question": "q", "answer_0": "a", "answer_1": "b", "score_0": 0.0, "score_1": 0.0}, "a tie"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"}, "is not a number"),
    ],
)
def test_unusable_pairs(row, reason):
    """Catches a pair that says nothing about preferences and is trained on."""
    with pytest.raises(BadRow, match=reason):
        read_example("preference", row, mapped_columns("preference", list(row), None, "rows"))


def test_margin_is_optional(write, load):
    """Catches a margin that is lost, or a set without one that is refused."""
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "margin": i / 4} for i in range(4)]
    made = load("method=reward", f"data.path={write('a.jsonl', rows)}")
    assert sorted(example.margin for example in every(made)) == [0, 0.25, 0.5, 0.75]
    made = load("method=reward", f"data.path={write('b.jsonl', rows)}", columns={"margin": "none"})
    assert {example.margin for example in every(made)} == {0}


UNLABELLED = [
    *(None, "", "  ", math.nan, "NaN", -1, -1.0, "-1", " -1 ", "-1.00", "-1e0", "null", "None"),
    *([0, None], ["0", ""], [0, -1], [math.nan, 0], [-1], ["0", "-1.00"], [0, "null"]),
]


def test_labels():
    """Catches a label that is taken for the other class."""
    for value in (1, 1.0, "1", True, "True", "toxic", "Hateful", [0, 2, 0], ["0", "1.0"]):
        assert label(value, LABELS) == 1, value
    for value in (0, 0.0, "0", False, "false", "non-hateful", "harmless", [0, 0], ["0", False]):
        assert label(value, LABELS) == 0, value
    assert label(0.5, LABELS) == 0.5
    for value in (2, "spam", 1.5, -2):
        with pytest.raises(AiraError, match="neither toxic nor harmless"):
            label(value, LABELS)
    for value in UNLABELLED:
        with pytest.raises(BadRow, match="empty label, or -1"):  # nobody has labelled it, or not in every way
            label(value, LABELS)
    assert label([1, None], LABELS) == label([-1, "1"], LABELS) == label(-1, {"-1": 1}) == 1
    for given, cell in (({-1: 0}, "-1.0"), ({-1.0: 0}, "-1"), ({"00": 0, "0": 1}, "00"), ({"None": 0}, "none")):
        assert label(cell, LABELS | class_names(given)) == 0, (given, cell)
    with pytest.raises(BadRow, match="leaves out 'Unsure'"):
        label("Unsure", {**LABELS, "unsure": None})
    assert harmful({"harmless": "a", "harmful": "b"}).labels == [0, 1]


HINTS = {
    "numbers": ([0, 1, 2, 3], "{2: ?, 3: ?}"),
    "words": (["offensive", "neutral", "Hate"], "{offensive: 1, neutral: 0, Hate: 1}"),
    "turned round": (["safe", "unsafe", "NOT", "OFF"], "{safe: 0, unsafe: 1, NOT: 0, OFF: 1}"),
    "not there": (["NA", "spam", None, ""], "{NA: ?, spam: ?}"),
    "words with spaces and signs": (["not hate", "a: b", "x,y", "c=d", "(e)", "[f]", "-g", "a/b"], None),
    "a path": (["a.b", "c-d", "e_f"], "{a.b: ?, c-d: ?, e_f: ?}"),
    "two that cannot be typed": (["isn't", "t\u00f3xico", "ham", "spam"], "{ham: 0, spam: ?}"),
    "none that can be typed": (["isn't", 'so "called"'], ""),
    "a book": (["x " * 9000, "ham", "spam"], "{ham: 0, spam: ?}"),
    "many": ([f"class-{i}" for i in range(20)], None),
}


@pytest.mark.parametrize("found, hint", HINTS.values(), ids=HINTS)
def test_a_hint_on_labels_can_be_typed(write, load, found, hint):
    """Catches a command in a message that a shell or Hydra reads otherwise than it was meant."""
    rows = [{"text": f"text {i}", "label": found[i % len(found)]} for i in range(4 * len(found))]
    data = ["method=toxicity", f"data.path={write('a.jsonl', rows)}"]
    with pytest.raises(AiraError, match="neither toxic nor harmless") as caught:
        load(*data)
    said = str(caught.value)
    assert "row" in said and "…" not in said.partition("data.labels defines")[2] and len(said) < 800
    if hint == "":
        assert "docs/extending.md" in said and "For example" not in said
        return
    typed = shlex.split(said.partition(" For example ")[2].partition(", with 1, 0 or null")[0].removesuffix("."))[0]
    assert hint is None or typed == f"data.labels={hint}"
    if "?" in typed:
        with pytest.raises(AiraError, match="labels"):  # what nobody has decided is not taken
            load(*data, typed)
        typed = typed.replace("?", "1", 1).replace("?", "0")
    cannot = [one for one in found if one in ("isn't", "t\u00f3xico", "x " * 9000)]
    if len(found) == 20 or cannot:  # the next ones are named then
        with pytest.raises(AiraError, match="neither toxic nor harmless"):
            load(*data, typed)
    else:
        assert len(load(*data, typed).train)


def test_labels_of_a_user(write, load):
    """Catches data.labels that is not read."""
    rows = [{"text": f"t{i}", "label": ("OFF", "NOT")[i % 2]} for i in range(6)]
    made = load("method=toxicity", f"data.path={write('a.jsonl', rows)}", "data.labels={OFF: 1, NOT: 0}")
    assert {example.conversations[0][0]["content"]: example.labels[0] for example in every(made)} == {
        f"t{i}": 1 - i % 2 for i in range(6)
    }


def test_names_of_labels_in_other_forms():
    """Catches a name that is not known in another form of its characters, and one that is given two classes."""
    given = class_names({"n\u00e3o": 0, "STRASSE": 1, "\u0130\u0307": 1})
    for cell, expected in {"Na\u0303o": 0, " N\u00c3O\n": 0, "stra\u00dfe": 1}.items():
        assert label(cell, LABELS | given) == expected, cell
    for twice in ({"OFF": 1, "off": 0}, {"a\u0303": 1, "\u00e3": None}, {" x": 0, "x ": 1}):
        with pytest.raises(AiraError, match="has two classes"):
            class_names(twice)
    assert class_names({"OFF": 1, "off": 1, "1": 1, "1.0": 0}) == {"off": 1, "1": 1, "1.0": 0}


def test_labels_that_are_turned_round(write, load):
    """Catches numbers as names of classes that end in a traceback, alone or beside words."""
    rows = [{"text": f"text {i}", "label": ("0", "OFF", "1")[i % 3]} for i in range(12)]
    made = load("method=toxicity", f"data.path={write('a.jsonl', rows)}", "data.labels={0: 1, OFF: 1, 1: 0}")
    found = {example.conversations[0][0]["content"]: example.labels[0] for example in every(made)}
    assert found == {f"text {i}": int(i % 3 != 2) for i in range(12)}


NAMES = {  # of the classes 0 and 1, with the user's labels: the classes that they stand for, or the error
    "turned round": (["toxic", "harmless"], {}, [1, 0]),
    "as usual": (["non-hateful", "hateful"], {}, [0, 1]),
    "numbers": (["0", "1"], {}, [0, 1]),
    "unknown": (["neg", "pos"], {}, "'neg' is neither"),
    "one unknown": (["toxic", "fine"], {}, "'fine' is neither"),
    "named by the user": (["neg", "pos"], {"neg": 1, "pos": 0}, [1, 0]),
    "numbered by the user": (["toxic", "harmless"], {"0": 0, "1": 1}, [0, 1]),
    "left out": (["toxic", "harmless", "unsure"], {"unsure": None}, [1, 0]),
}


@pytest.mark.parametrize("names, labels, expected", NAMES.values(), ids=NAMES)
def test_names_of_classes(tmp_path, load, names, labels, expected):
    """Catches a class that is read by its number where the data set names it; what each means is told with counts."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    cells = [i % len(names) for i in range(12)]
    rows = Dataset.from_dict({"text": [f"t{i}" for i in range(12)], "label": cells}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    asked = ("method=toxicity", f"data.path={tmp_path}/a.parquet")
    if isinstance(expected, str):
        with pytest.raises(AiraError, match=expected):
            load(*asked, labels=labels)
        return
    made = load(*asked, labels=labels)
    found = {example.conversations[0][0]["content"]: example.labels[0] for example in every(made)}
    assert found == {f"t{i}": expected[cell] for i, cell in enumerate(cells) if cell < 2}
    (told,) = (line for line in made.notices if ", training: " in line)
    counts = np.bincount(made.train.labels.flatten().astype(int))
    for i in (0, 1):
        meaning = f"label {i} ({names[i]}) is {('harmless', 'toxic')[expected[i]]} in {counts[expected[i]]} rows"
        assert meaning in told
    assert ("dropped 4 of 12 rows: data.labels leaves out 'unsure'" in str(made.notices)) == (len(names) == 3)


def test_labels_of_one_class(write, load):
    """Catches an error that does not say that the rows of the other class were dropped."""
    rows = [{"text": f"t{i}", "label": (1, -1)[i % 2]} for i in range(8)]
    with pytest.raises(AiraError, match=r"the same label.*dropped 4 of 8 rows: empty label, or -1 \(first: row 2\)"):
        load("method=toxicity", f"data.path={write('a.jsonl', rows)}")
    made = load("method=toxicity", f"data.path={write('a.jsonl', rows)}", "data.labels={-1: 0, 1: 1}")
    assert len(every(made)) == 8


def test_rows_that_nobody_has_labelled(write, load):
    """Catches an empty cell, or -1, that counts as harmless."""
    rows = [{"text": f"t{i}", "a": ("0", "1")[i % 2], "b": ("", "0", "-1")[i % 3]} for i in range(12)]
    made = load("method=toxicity", f"data.path={write('a.jsonl', rows)}", columns={"label": ["a", "b"]})
    found = {example.conversations[0][0]["content"]: example.labels[0] for example in every(made)}
    assert found == {f"t{i}": i % 2 for i in range(12) if i % 2 or i % 3 == 1}
    assert any("dropped 4 of 12 rows: empty label, or -1 (first: row 1)" in line for line in made.notices)
    assert any("toxic, where any of a, b is above 0: " in line for line in made.notices)


SAME = [  # what is read as one prompt: forms of a character, case, spaces, and what is not seen
    ("Você é?", "Voce\u0302 e\u0301?"),
    ("Who are you?", "Who\u200b are\u200d you?\ufeff"),
    ("soft hyphen", "soft hy\u00adphen"),
    ("left", "\u200eleft\u200f"),
    ("STRASSE", "straße"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("abc 123", "ａｂｃ\u3000１２３"),
    ("one two", " One\u00a0\u2003TWO\n"),
    ("ﬁnd", "find"),
    ("ok ☺", "ok ☺\ufe0f"),
    ("가", "\u1100\u1161"),
    ("é", "e\u200d\u0301"),
    ("é", "e\u034f\u0301"),
    ("Você", "Voce\u200b\u0302\ufe0e"),
    ("plain", "pl\0ain\x08\x7f"),
    ("葛 é", "葛\U000e0101 é\U000e01ef"),
    ("ᠠ é", "ᠠ\u180b\u180f é"),
    ("hidden tags", "hidden\U000e0068\U000e007f tags"),
    ("filler é", "fil\uffa0ler\u3164 é"),
    ("unassigned é", "un\u2065assigned\ufff0 é"),
    ("Khmer é", "Khmer\u17b4 é"),
]


@pytest.mark.parametrize("first, second", SAME)
def test_one_prompt_in_two_forms(write, load, first, second):
    """Catches a prompt that stands in training and in validation, since it is written in two ways."""
    assert text_key(first) == text_key(second) != text_key(first + "?")
    rows = [{"prompt": said, "completion": f"a{i}"} for i, said in enumerate([first, second] * 4 + ["other", "more"])]
    made = load(f"data.path={write('a.jsonl', rows)}", validation_fraction=0.3)
    assert not set(made.train.prompts.flat) & set(made.validation.prompts.flat)


def test_what_is_no_twin():
    """Catches letters with and without an accent, or words with and without a space, that are taken for one."""
    lines = (("a\tb", "ab"), ("a\nb", "ab"), ("a\x1fb", "ab"), ("é\x85b", "éb"))
    for first, second in (("pais", "país"), ("e mail", "email"), ("1 2", "12"), ("a.", "a"), ("ø", "o"), *lines):
        assert text_key(first) != text_key(second)


def test_a_validation_split_with_training_rows_is_told(load, tmp_path):
    """Catches a given validation split that measures what was trained on."""
    for name, asked in (("train", ["q0", "q1", "q2"]), ("validation", ["Q0", "n1", "q2 "]), ("test", ["new"])):
        rows = [json.dumps({"prompt": said, "completion": name}) + "\n" for said in asked]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    made = load(f"data.path={tmp_path}")
    assert "2 of 3 rows for validation have a prompt or a text that is also trained on" in str(made.notices)
    assert "is also trained on" not in str(load(f"data.path={tmp_path}", validation_split="test").notices)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_something_is_left_to_train_on(write, load, count):
    """Catches a training split that is empty since a large part of few rows is held out."""
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(count)]
    made = load(f"data.path={write('a.jsonl', rows)}", validation_fraction=0.99)
    assert (len(made.train), len(made.validation)) == (1, count - 1)


def test_a_validation_split_that_is_not_there_is_told(load, write, tmp_path):
    """Catches a name that is passed over without a word: the rows are in a file that another split is read from."""
    for name in ("train", "dev"):
        write(f"{name}.jsonl", [{"prompt": f"{name} {i}", "completion": "a"} for i in range(4)])
    for split, told in {"dev": True, "tset": True, "validation": False}.items():
        said = str(load(f"data.path={tmp_path}/files", validation_split=split).notices)
        assert (f"the validation split '{split}' is no split of it (it has: train, validation)" in said) == told


def test_held_out_rows_share_no_prompt(write, load):
    """Catches a prompt that is trained on and asked again in validation."""
    rows = [{"prompt": f"Q{i % 10}{' ' * (i % 3)}?", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(40)]
    made = load("method=dpo", f"data.path={write('a.jsonl', rows)}", validation_fraction=0.3)
    assert not set(made.train.prompts.flat) & set(made.validation.prompts.flat)
    assert 8 <= len(made.validation) <= 12 and len(every(made)) == 40


def test_held_out_pairs_share_no_text(write, load):
    """Catches a text of two pairs that is learnt from and asked again, or that stands in an excluded file."""
    rows = [{"harmless": f"good {i}", "harmful": f"bad {i // 3}"} for i in range(30)]
    path = write("a.jsonl", rows)
    made = load("method=toxicity", f"data.path={path}", "method.objective=pairwise", validation_fraction=0.3)
    assert not set(made.train.prompts.flat) & set(made.validation.prompts.flat)
    assert 6 <= len(made.validation) <= 9 and len(every(made)) == 30
    tests = [write("labelled.jsonl", [{"text": "BAD 2", "label": 1}]), write("pairs.jsonl", [{"harmful": "bad 5"}])]
    made = load("method=toxicity", f"data.path={path}", "method.objective=pairwise", exclude=tests)
    assert {example.conversations[1][0]["content"] for example in every(made)} == {
        f"bad {i}" for i in range(10) if i not in (2, 5)
    }


def test_an_excluded_file_of_other_columns(write, load):
    """Catches a message about columns that does not say that it is of data.exclude."""
    rows = write("rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    with pytest.raises(AiraError, match=r"^data\.exclude: .*has the columns x"):
        load("method=dpo", f"data.path={rows}", exclude=[write("other.jsonl", [{"x": "1", "y": "2"}])])


def test_excluded_prompts(write, load):
    """Catches test prompts that are trained on in another spelling, and a file without the labels that is not read."""
    rows = [{"prompt": f"Question {i}?", "chosen": "a", "rejected": "b"} for i in range(8)]
    test = write("test.jsonl", [{"prompt": "question  3?", "answer": "x"}, {"prompt": "Question 5?", "answer": "y"}])
    path = write("a.jsonl", rows)
    made = load("method=dpo", f"data.path={path}", exclude=[test])
    asked = {example.conversations[0][0]["content"] for example in every(made)}
    assert asked == {f"Question {i}?" for i in range(8) if i not in (3, 5)}
    assert any("excluded 2 of 8 rows" in line for line in made.notices)
    with pytest.raises(AiraError, match="leaves no row"):
        load("method=dpo", f"data.path={path}", exclude=[path])
    parts = [{"head": f"Question {i}", "tail": "now?", "completion": "a"} for i in range(8)]
    made = load(
        f"data.path={write('b.jsonl', parts)}",
        columns={"prompt": ["head", "tail"]},
        exclude=[write("t.jsonl", [{"head": "question 3", "tail": "now?"}])],
    )
    assert any("excluded 1 of 8 rows" in line for line in made.notices)


def test_excluded_without_an_answer(write, load):
    """Catches test prompts that are trained on since their rows have no answer, or a label that is not known."""
    rows = [{"conversations": turns(f"q{i}", "a")} for i in range(8)]
    path = write("a.jsonl", rows)
    asked = [
        {"conversations": turns("q1")},
        {"conversations": json.dumps(turns("Q2\u200b"))},
        {"conversations": turns("q3", "b", "more", "c")},
        {"conversations": turns("q4", " ")},
        {"conversations": [{"role": "narrator", "content": "q5"}]},
        {"conversations": []},
    ]
    made = load(f"data.path={path}", exclude=[write("t.jsonl", asked)])
    assert any("excluded 4 of 8 rows by data.exclude" in line for line in made.notices)
    assert any("t.jsonl: 2 of 6 rows have no prompt or text to exclude" in line for line in made.notices)
    pairs = [{"prompt": f"q{i}", "completion": "a"} for i in range(8)]
    test = [
        {"prompt": "Q1", "completion": ""},
        {"prompt": "q2", "completion": None},
        {"prompt": "q9", "completion": "x"},
    ]
    made = load(f"data.path={write('b.jsonl', pairs)}", exclude=[write("u.jsonl", test)])
    assert any("excluded 2 of 8 rows by data.exclude" in line for line in made.notices)
    made = load(f"data.path={write('b.jsonl', pairs)}", exclude=[write("v.jsonl", test[2:])])
    assert any("excluded 0 of 8 rows by data.exclude" in line for line in made.notices)
    with pytest.raises(AiraError, match=r"^data\.exclude=nowhere\.jsonl: there is no such file"):
        load(f"data.path={path}", exclude=["nowhere.jsonl"])
    with pytest.raises(AiraError, match=r"no row of .*w\.jsonl has a prompt or a text"):
        load(f"data.path={path}", exclude=[write("w.jsonl", [{"prompt": ""}, {"prompt": None}])])
    texts = [{"text": f"t{i}", "label": i % 2} for i in range(8)]
    test = write("x.jsonl", [{"text": "T3", "label": "weird"}, {"text": "t4", "label": -1}])
    made = load("method=toxicity", f"data.path={write('c.jsonl', texts)}", exclude=[test])
    assert any("excluded 2 of 8 rows by data.exclude" in line for line in made.notices)


def test_dialogues_that_go_on_are_held_out_together(write, load, tmp_path):
    """Catches an answer that is trained on as an earlier turn, and measured as the last one."""
    rows = [{"conversations": turns(f"q{i // 3}", "a", "more", "b", "and?", "c")[: 2 * (i % 3 + 1)]} for i in range(30)]
    made = load(f"data.path={write('a.jsonl', rows)}", validation_fraction=0.3)
    first, held = (
        {talk.conversations[0][0]["content"] for talk in part}
        for part in (made.examples(made.train, made.train.index), made.examples(made.validation, made.validation.index))
    )
    assert first and held and not first & held
    for name, some in {"train": rows[:3], "validation": [{"conversations": turns("Q0", "x")}, rows[9]]}.items():
        write(f"b/{name}.jsonl", some)
    assert "1 of 2 rows for validation have a prompt or a text that is also trained on" in str(
        load(f"data.path={tmp_path}/files/b").notices
    )


def test_prompt_key():
    """Catches a key that depends on letter case, or that two prompts share."""
    keys = [
        prompt_key(Example([turns(*said, "answer")])) for said in (["Hi there"], ["hi  THERE "], ["Hi", "you", "there"])
    ]
    assert keys[0] == keys[1] != keys[2] and np.array(keys, dtype=np.int64).tolist() == keys


def test_transcript():
    """Catches colons and blank lines in a turn that are taken for another turn."""
    found = transcript("\n\nHuman: a: b\n\nc\n\nAssistant: d\n\nHuman: e\n\nAssistant: f")
    assert found == turns("a: b\n\nc", "d", "e", "f")
