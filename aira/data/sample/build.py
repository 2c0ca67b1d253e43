"""Rebuild the embedded sample data from the hand-written texts in ``source/``.

Run ``python build.py`` to rewrite all JSONL files beside this script, or pass another folder as
the only argument. The result depends on the texts alone: every "random" order is an order by
SHA-256, so the files come out byte for byte the same with any Python version.

``source/instruction-LANG.txt`` holds questions and answers, ``source/pairs-LANG.txt`` the parts of
the paired data sets. Most pairs are made of the very same words in another order, so that neither
the length nor a bag of words tells which one is better: a model has to read.
"""

import hashlib
import itertools
import json
import re
import string
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LANGUAGES = ("en", "pt")
VALIDATION_SHARE = 5  # every fifth row
VALIDATION_QUESTIONS = 80

# Preference pairs built for each of the 48 tasks, by the kind of the rejected response.
PAIRS_PER_TASK = {
    "garbled": 8,
    "repeated": 1,
    "mismatched": 1,
    "attitude": 4,
    "rude": 5,
}
REQUEST_PAIRS, COMPARE_PAIRS = 48, 40
LABELLED_SWAPS, LABELLED_PLAIN = 364, 136  # texts of each label
HARMFUL_ADVICE, HARMFUL_SWAPS, HARMFUL_PLAIN = 320, 100, 80


# Helpers ------------------------------------------------------------------------------------------


def number(*parts: object) -> int:
    """A fixed pseudo-random number for these parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def shuffled(items: Iterable[Any], *salt: object) -> list[Any]:
    """The items in a fixed pseudo-random order."""
    return sorted(items, key=lambda item: number(*salt, item))


def sentence(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def sorted_words(text: str) -> list[str]:
    """The sorted lower-case words of a text, without punctuation."""
    return sorted(re.findall(r"\w+", text.lower()))


def fields(line: str) -> list[str]:
    """The fields of a line, which are separated by `` | ``."""
    return [field.strip() for field in line.split(" | ")]


def split(rows: Iterable[Any], *salt: object) -> tuple[list[Any], list[Any]]:
    """Rows as (training, validation), one fifth of them for validation."""
    rows = shuffled(rows, "split", *salt)
    size = len(rows) // VALIDATION_SHARE
    return rows[size:], rows[:size]


def read_lines(path: Path) -> list[str]:
    """The lines of a source file without comments, blank lines kept as ''."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if not line.startswith("#")]


def read_sections(path: Path) -> dict[str, list[str]]:
    """``{section: [line, ...]}`` of a file with ``[section]`` headings."""
    sections: dict[str, list[str]] = {}
    for line in filter(None, read_lines(path)):
        if re.fullmatch(r"\[\w+\]", line):
            current = sections.setdefault(line[1:-1], [])
        else:
            current.append(line)
    return sections


def fillings(template: str, sections: dict[str, list[str]]) -> Iterator[str]:
    """All ways to fill the ``{slot}`` places of a template with the lines of the sections."""
    slots = sorted({slot for _, slot, _, _ in string.Formatter().parse(template) if slot})
    for values in itertools.product(*(sections[slot] for slot in slots)):
        yield template.format(**dict(zip(slots, values)))


def take(pools: Iterable[Iterable[Any]], count: int) -> list[Any]:
    """The first `count` items, one from each pool in turn while it lasts."""
    rounds = itertools.zip_longest(*pools)
    items = [item for items in rounds for item in items if item is not None]
    if len(items) < count:
        raise ValueError(f"only {len(items)} of {count} rows can be made")
    return items[:count]


# Instruction data ---------------------------------------------------------------------------------


def instruction(path: Path) -> tuple[list[Any], list[Any]]:
    """(training, validation) rows of the questions and answers in one source file."""
    blocks = re.split(r"\n{2,}", "\n".join(read_lines(path)).strip())
    train: list[Any] = []
    validation: list[Any] = []
    for block in blocks:
        lines = [(line[0], line[1:].strip()) for line in block.splitlines()]
        rows = [(mark, fields(text)) for mark, text in lines if mark in ":*"] or [("*", [])]
        answers = [text for mark, text in lines if mark == "="]
        for mark, values in rows:
            for answer in answers:
                for kind, text in lines:
                    target = {"-": train, ">": validation if mark == "*" else None}.get(kind)
                    if target is not None:
                        prompt = sentence(text.format(*values))
                        target.append((prompt, sentence(answer.format(*values))))
    return shuffled(train), shuffled(validation)[:VALIDATION_QUESTIONS]


# Preference data ----------------------------------------------------------------------------------


def reorder(text: str) -> str:
    """The words of a sentence in a wrong order; every third time only neighbours are swapped."""
    words = re.findall(r"[\w'-]+", text.lower())
    if number("way", text) % 3 == 0:
        words = [word for i in range(0, len(words), 2) for word in reversed(words[i : i + 2])]
    else:
        order = shuffled(range(len(words)), text)
        if order[0] == 0:
            order.append(order.pop(0))
        words = [words[i] for i in order]
    middle = len(words) // 2  # a comma for a comma, so that the punctuation gives nothing away
    comma = "," if "," in text else ""
    return sentence(" ".join(words[:middle]) + comma + " " + " ".join(words[middle:]) + ".")


def repeat(text: str) -> str:
    """The sentence with three of its words repeated."""
    words = text.split()
    at = number("repeat", text) % (len(words) - 4)
    return " ".join(words[: at + 3] + words[at:])


def preference(parts: dict[str, list[str]]) -> Any:
    """(training, validation) rows (prompt, chosen, rejected) of one language."""
    tasks = [fields(line) for line in parts["tasks"]]
    asks, answers = {}, {}
    for task, *tips in tasks:
        asks[task] = [ask.format(task=task) for ask in shuffled(parts["ask"], task)]
        texts = [a.format(task=task, tip=tip) for a in parts["answer"] for tip in tips]
        answers[task] = shuffled(map(sentence, texts), task)
    kinds: dict[str, list[Any]] = {kind: [] for kind in [*PAIRS_PER_TASK, "request", "compare"]}
    for index, (task, *_) in enumerate(tasks):
        attitudes = iter(shuffled(parts["attitude"], task))
        insults = iter(shuffled(parts["rude"], task))
        for kind, count in PAIRS_PER_TASK.items():
            for _ in range(count):
                if kind == "attitude":
                    chosen, rejected = fields(next(attitudes).format(task=task))
                else:
                    chosen = answers[task].pop()
                    if kind == "mismatched":
                        rejected = answers[tasks[index - 7][0]].pop(0)
                    elif kind == "rude":
                        rejected = next(insults).format(task=task)
                    else:
                        rejected = {"garbled": reorder, "repeated": repeat}[kind](chosen)
                kinds[kind].append((asks[task].pop(), chosen, rejected))
    for turn, task in enumerate(parts["requests"] * 4):
        if len(kinds["request"]) < REQUEST_PAIRS:
            turn = turn // len(parts["requests"])
            ask = shuffled(parts["ask"], task)[turn].format(task=task)
            refusal = shuffled(parts["refuse"], task)[turn].format(task=task)
            consent = shuffled(parts["comply"], task)[turn].format(task=task)
            kinds["request"].append((ask, refusal, consent))
    sizes = itertools.product(parts["compare"], parts["quality"], parts["big"], parts["small"])
    for frame, quality, big, small in shuffled(sizes)[:COMPARE_PAIRS]:
        ask, answer = fields(frame)
        first, second = shuffled([big, small], quality)
        ask = ask.format(quality=quality, x=first, y=second)
        right = sentence(answer.format(quality=quality, x=big, y=small))
        wrong = sentence(answer.format(quality=quality, x=small, y=big))
        kinds["compare"].append((ask, right, wrong))
    for kind in ("garbled", "attitude", "compare"):
        for _, chosen, rejected in kinds[kind]:
            assert sorted_words(chosen) == sorted_words(rejected), (chosen, rejected)
    halves = [split(rows, kind) for kind, rows in kinds.items()]
    return tuple(shuffled(row for half in halves for row in half[i]) for i in (0, 1))


# Labelled texts and pairs of replies --------------------------------------------------------------


def swaps(parts: dict[str, list[str]]) -> Any:
    """For each template, its (harmless, toxic) pairs of the same words."""
    for template in parts["swap"]:
        pairs = [tuple(fields(text))[::-1] for text in fillings(template, parts)]
        for harmless, toxic in pairs:
            assert sorted_words(harmless) == sorted_words(toxic), (harmless, toxic)
        yield shuffled(pairs)


def filled_sentences(parts: dict[str, list[str]], section: str) -> Any:
    """For each template of a section, its filled sentences."""
    for template in parts[section]:
        yield shuffled(fillings(template, parts))


def open_with(opener: str, text: str) -> str:
    """The text after an opener such as "Listen,"."""
    if not re.match(r"I\b", text):
        text = text[:1].lower() + text[1:]
    return f"{opener} {text}"


def add_opener(pair: Any, parts: dict[str, list[str]]) -> Any:
    """The pair, half of the time with the same opener before both texts."""
    if number("opener", *pair) % 2:
        return tuple(map(sentence, pair))
    opener = shuffled(parts["opener"], *pair)[0]
    return tuple(open_with(opener, text) for text in pair)


def labelled_and_harmful(parts: dict[str, list[str]]) -> Any:
    """Both data sets of one language, as ((train, validation), (train, validation)).

    Each filled template goes to only one of the two data sets, and to only one of its halves.
    """
    swapped = list(swaps(parts))
    pools = {
        "toxic": [rows[1::2] for rows in filled_sentences(parts, "toxic")],
        "friendly": [rows[1::2] for rows in filled_sentences(parts, "friendly")],
        "swap": [[row for i, row in enumerate(rows) if i % 5] for rows in swapped],
    }
    plain_pairs = zip(take(pools["friendly"], LABELLED_PLAIN), take(pools["toxic"], LABELLED_PLAIN))
    groups = [split(take(pools["swap"], LABELLED_SWAPS), "swap"), split(plain_pairs, "plain")]
    labelled = []
    for i in (0, 1):
        pairs = [add_opener(pair, parts) for group in groups for pair in group[i]]
        rows = [(text, label) for pair in pairs for label, text in enumerate(pair)]
        labelled.append(shuffled(rows))

    advice = []
    for frame in parts["advice"]:
        frame_pairs = []
        for goods, bads in zip(parts["good"], parts["bad"]):
            for good, bad in itertools.product(fields(goods), fields(bads)):
                pair = fields(frame.format(good=good, bad=bad))
                assert sorted_words(pair[0]) == sorted_words(pair[1]), pair
                frame_pairs.append(tuple(map(sentence, pair)))
        advice.append(shuffled(frame_pairs))
    friendly = [rows[0::2] for rows in filled_sentences(parts, "friendly")]
    toxic = [rows[0::2] for rows in filled_sentences(parts, "toxic")]
    swapped = [rows[0::5] for rows in swapped]
    groups = [
        split(take(advice, HARMFUL_ADVICE), "advice"),
        split([add_opener(p, parts) for p in take(swapped, HARMFUL_SWAPS)], "swap"),
        split(
            [tuple(map(sentence, pair)) for pair in zip(take(friendly, HARMFUL_PLAIN), take(toxic, HARMFUL_PLAIN))],
            "plain",
        ),
    ]
    harmful = [shuffled(row for group in groups for row in group[i]) for i in (0, 1)]
    return labelled, harmful


# Output -------------------------------------------------------------------------------------------


def build(source: Path = HERE / "source") -> dict[str, Any]:
    """``{folder: (columns, training rows, validation rows)}`` of the whole sample data."""
    data = {}
    for language in LANGUAGES:
        parts = read_sections(source / f"pairs-{language}.txt")
        labelled, harmful = labelled_and_harmful(parts)
        questions = instruction(source / f"instruction-{language}.txt")
        data[f"instruction-{language}"] = (("prompt", "completion"), *questions)
        columns = ("instruction", "chosen_response", "rejected_response")
        data[f"preference-{language}"] = (columns, *preference(parts))
        data[f"labelled-{language}"] = (("text", "label"), *labelled)
        data[f"harmful-{language}"] = (("harmless", "harmful"), *harmful)
    return data


def write(target: Path) -> None:
    """Write ``FOLDER/train.jsonl`` and ``FOLDER/validation.jsonl`` below the target folder."""
    for folder, (columns, *halves) in build().items():
        (target / folder).mkdir(parents=True, exist_ok=True)
        for name, rows in zip(("train", "validation"), halves):
            lines = (json.dumps(dict(zip(columns, row)), ensure_ascii=False) for row in rows)
            text = "".join(line + "\n" for line in lines)
            (target / folder / f"{name}.jsonl").write_bytes(text.encode("utf-8"))


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
