"""The embedded sample data: complete, clean, free of leaks and not solvable by trivial means."""

import importlib.util
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

import aira

SAMPLE = Path(aira.__file__).parent / "data" / "sample"
LANGUAGES = ("en", "pt")
HALVES = ("train", "validation")
COLUMNS = {
    "instruction": {"prompt": str, "completion": str},
    "preference": {"instruction": str, "chosen_response": str, "rejected_response": str},
    "labelled": {"text": str, "label": int},
    "harmful": {"harmless": str, "harmful": str},
}
ROWS = {
    "instruction": (300, 80),
    "preference": (800, 200),
    "labelled": (800, 200),
    "harmful": (400, 100),
}
FOLDERS = [(kind, language) for kind in COLUMNS for language in LANGUAGES]
PAIRS = {
    "preference": ("instruction", "chosen_response", "rejected_response"),
    "harmful": (None, "harmless", "harmful"),
}


def path(kind, language, half):
    return SAMPLE / f"{kind}-{language}" / f"{half}.jsonl"


def rows(kind, language, half):
    lines = path(kind, language, half).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def words(text):
    return re.findall(r"\w+", text.casefold())


def normal(text):
    return " ".join(words(text))


def longest_common_run(first, second):
    runs = {tuple(first[i:j]) for i in range(len(first)) for j in range(i + 1, len(first) + 1)}
    shared = (j - i for i in range(len(second)) for j in range(i + 1, len(second) + 1) if tuple(second[i:j]) in runs)
    return max(shared, default=0)


@pytest.mark.parametrize("kind, language", FOLDERS)
def test_rows_and_columns(kind, language):
    """Catches lost rows, misspelt columns, empty values and labels that are not 0 or 1."""
    for half, expected in zip(HALVES, ROWS[kind]):
        found = rows(kind, language, half)
        assert abs(len(found) - expected) <= 0.03 * expected
        for row in found:
            assert {name: type(value) for name, value in row.items()} == COLUMNS[kind]
            assert all(v.strip() == v != "" for v in row.values() if isinstance(v, str))
        if kind == "labelled":
            assert sum(row["label"] for row in found) * 2 == len(found)
            assert {row["label"] for row in found} == {0, 1}


@pytest.mark.parametrize("kind, language", FOLDERS)
def test_encoding(kind, language):
    """Catches a wrong encoding, decomposed accents, control characters and a missing line end."""
    for half in HALVES:
        raw = path(kind, language, half).read_bytes()
        text = raw.decode("utf-8")
        assert not raw.startswith(b"\xef\xbb\xbf") and text.endswith("}\n")
        assert text == unicodedata.normalize("NFC", text)
        values = [v for row in rows(kind, language, half) for v in row.values() if v not in (0, 1)]
        assert not any(unicodedata.category(char).startswith("C") for v in values for char in v)


def test_files_equal_their_source(tmp_path):
    """Catches a JSONL file edited by hand, or a source text edited without a rebuild."""
    spec = importlib.util.spec_from_file_location("sample_build", SAMPLE / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    build.write(tmp_path)
    written = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.jsonl"))
    assert written == sorted(file.relative_to(SAMPLE) for file in SAMPLE.rglob("*.jsonl"))
    assert all((tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes() for name in written)


@pytest.mark.parametrize("language", LANGUAGES)
def test_instruction_prompts(language):
    """Catches ambiguous questions, overlong answers, and validation rows that only repeat training.

    A validation row asks for the completion of a training row in other words: at most three words
    in a row are shared with that training prompt, no training prompt starts with the same three
    words, and none is equal once the words of the completion (names, numbers) are masked.
    """
    train, validation = (rows("instruction", language, half) for half in HALVES)
    prompts = [normal(row["prompt"]) for row in train + validation]
    assert len(set(prompts)) == len(prompts)
    assert all(5 <= len(words(row["completion"])) <= 30 for row in train)

    def template(row):
        completion = words(row["completion"])
        return ["_" if word in completion else word for word in words(row["prompt"])]

    heads = {tuple(words(row["prompt"])[:3]) for row in train}
    templates = [template(row) for row in train]
    for row in validation:
        prompt = words(row["prompt"])
        known = [words(r["prompt"]) for r in train if r["completion"] == row["completion"]]
        assert known, row
        assert max(longest_common_run(prompt, other) for other in known) <= 3, row
        assert tuple(prompt[:3]) not in heads, row
        assert template(row) not in templates, row


@pytest.mark.parametrize("kind, language", FOLDERS[2:])
def test_no_leak_between_train_and_validation(kind, language):
    """Catches a text that occurs twice, above all one that occurs in both halves."""
    train, validation = (rows(kind, language, half) for half in HALVES)
    for name in COLUMNS[kind]:
        if name != "label":
            seen = [normal(row[name]) for row in train + validation]
            assert len(set(seen)) == len(seen), name
    if kind in PAIRS:
        _, better, worse = PAIRS[kind]
        seen = {normal(row[name]) for row in train for name in (better, worse)}
        assert not any(normal(row[name]) in seen for row in validation for name in (better, worse))
    else:  # neither with another opener such as "Listen," in front
        cores = {normal(row["text"].split(", ", 1)[-1]) for row in train}
        cores |= {normal(row["text"]) for row in train}
        assert not any(normal(row["text"]) in cores for row in validation)


def pairwise_accuracy(differences):
    """The share of positive differences, a tie counting one half."""
    differences = np.where(np.abs(differences) < 1e-9, 0, differences)
    return float(np.mean(np.sign(differences) + 1) / 2)


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("kind, language", [f for f in FOLDERS if f[0] in PAIRS])
def test_pairs_need_more_than_length_or_words(kind, language, with_prompt):
    """Catches pairs that "the longer (shorter) one" or a bag of words decides."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    prompt, better, worse = PAIRS[kind]
    train, validation = (rows(kind, language, half) for half in HALVES)
    for size in (len, lambda text: len(words(text))):
        longer = np.array([size(row[better]) - size(row[worse]) for row in validation])
        assert 0.25 <= pairwise_accuracy(longer) <= 0.75

    def texts(half, name):
        front = [row[prompt] + " " if with_prompt and prompt else "" for row in half]
        return [text + row[name] for text, row in zip(front, half)]

    bag = TfidfVectorizer(token_pattern=r"\w+").fit(texts(train, better) + texts(train, worse))
    fit, held_out = (
        (bag.transform(texts(half, better)) - bag.transform(texts(half, worse))).toarray()
        for half in (train, validation)
    )
    signs = np.repeat([1, 0], len(fit))
    model = LogisticRegression(fit_intercept=False).fit(np.concatenate([fit, -fit]), signs)
    assert pairwise_accuracy(held_out @ model.coef_[0]) <= 0.75


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_need_more_than_length_or_words(language):
    """Catches labels that the length or a bag of words gives away."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, validation = (rows("labelled", language, half) for half in HALVES)
    labels = [[row["label"] for row in half] for half in (train, validation)]
    texts = [[row["text"] for row in half] for half in (train, validation)]
    bag = make_pipeline(TfidfVectorizer(token_pattern=r"\w+"), LogisticRegression())
    assert bag.fit(texts[0], labels[0]).score(texts[1], labels[1]) <= 0.75

    sizes = [np.array([[len(t), len(words(t))] for t in half]) / 10 for half in texts]
    length = LogisticRegression().fit(sizes[0], labels[0])
    assert length.score(sizes[1], labels[1]) <= 0.75
