"""The layouts of data sets: which columns are recognized, under which names, and what a row of them is."""

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aira.data.cells import Record, finite, pick, reachable, text
from aira.data.labels import HARMLESS, LABELS, TOXIC, class_label, class_names, label
from aira.data.texts import BadRow, hash_of, is_blank, text_key
from aira.data.turns import (
    Message,
    conversation,
    is_printed_list,
    is_transcript,
    messages,
    parse_turns,
    tools,
    transcript,
    transcript_turns,
    turn,
    up_to_an_answer,
)
from aira.errors import AiraError, nearest
from aira.files import override

LARGEST_MARGIN = 1000.0
"""Scores are log-odds: no reward model is asked to tell a pair apart by more than this."""

ALIASES = {
    "prompt": ("instruction", "question", "query", "input", "user"),
    "completion": ("response", "answer", "output", "reply", "assistant"),
    "context": ("input",),
    "system": ("system_prompt",),
    "tools": ("functions",),
    "conversations": ("messages", "conversation", "dialogue", "dialog", "chat"),
    "chosen": ("chosen_response",),
    "rejected": ("rejected_response",),
    "text": ("comment", "comment_text", "sentence", "tweet", "content"),
    "label": ("toxic", "is_toxic", "toxicity", "hateful", "is_hateful", "hate", "offensive", "is_offensive"),
    "better": ("label", "preference", "preferred", "winner", "better_response_id"),
}
"""Names that a column is recognized by, besides its own; letter case does not matter."""

DOCUMENT = ("content", "document")
"""Other names of a text to be continued."""

SIDES = [
    (f"{stem}_{first}", f"{stem}_{second}")
    for stem in ("response", "output", "answer", "completion")
    for first, second in (("0", "1"), ("1", "2"), ("a", "b"))
]
"""Names of two answers, of which another column says which is better: by the ending of its name."""

CHOICES = {"choices", "options", "alternatives", "endings"}
"""Columns without which a question is not whole."""

HINTS = {
    "prompt": ("problem", "goal", "request", "forbidden_prompt", "behavior", "statement", "title"),
    "completion": ("solution", "target", "best answer", "expected_answer", "completions", "answers", "instances"),
    "conversations": ("turns",),
    "chosen": ("preferred", "better", "accepted"),
    "rejected": ("dispreferred", "worse", "refused"),
    "text": ("message", "body", "post", "test_case", "prompt"),
    "label": ("class", "category", "target", "label_gold", "labels"),
}
"""Further names, which a message proposes and which are not taken without a word: they mean other things elsewhere."""


class Example(NamedTuple):
    """A row in one form for all kinds of data."""

    conversations: list[list[Message]]  # one per branch; a text without a prompt is a single turn of the assistant
    labels: Sequence[float] = ()  # of each branch of labelled texts, its class or the probability that it is toxic
    margin: float = 0.0  # by how much chosen should be better than rejected, in units of the score
    tools: Sequence[Record] = ()  # that the conversations may call, in the form of Transformers
    notes: Sequence[str] = ()  # what is unusual about it, to be counted


def instruction(row: Record) -> Example:
    """One conversation, from {prompt, completion}, of which the answers in the completion are trained on."""
    prompt = [each if each["role"] != "assistant" else each | {"train": False} for each in _prompt(row)]
    whole = _append_response(_with_history(prompt, row.get("history")), row["completion"], "completion")
    return Example([up_to_an_answer(whole)], tools=tools(row.get("tools")))


def dialogue(row: Record) -> Example:
    """One conversation, from {conversations}."""
    value = row["conversations"]
    turns = transcript_turns(value) if isinstance(value, str) and is_transcript(value) else messages(value)
    whole = up_to_an_answer(turns)
    notes = ["turns follow the last answer, and are left out"] if len(whole) < len(turns) else []
    return Example([_with_system(whole, row.get("system"))], tools=tools(row.get("tools")), notes=notes)


def document(row: Record) -> Example:
    """A text to be continued, from {text}."""
    return Example([[turn("assistant", text(row, "text"))]])


def preference(row: Record) -> Example:
    """A conversation that ends with the chosen response, and one that ends with the rejected one.

    Responses are texts, turns, or lists of turns; so are prompts. Without a prompt, `chosen` and `rejected` are whole
    dialogues, as lists of turns or as transcripts of HH-RLHF.

    Raises:
        BadRow: the responses are equal, one is empty, the two answer different prompts, or the margin is negative.
    """
    name = next((name for name in ("prompt", "conversations") if name in row), None)
    if name:
        prompt = _prompt(row, name)
        chosen, rejected = (_append_response(prompt, row[side], "response") for side in ("chosen", "rejected"))
    else:
        chosen, rejected = (_whole_dialogue(row[side], side, row.get("system")) for side in ("chosen", "rejected"))
        if chosen[:-1] != rejected[:-1]:
            raise BadRow("chosen and rejected answer different prompts")
    return _pair(chosen, rejected, row)


def _pair(chosen: list[Message], rejected: list[Message], row: Record) -> Example:
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    margin = finite(row.get("margin") or 0, "margin")
    if not 0 <= margin <= LARGEST_MARGIN:
        raise BadRow(f"margin is not between 0 and {LARGEST_MARGIN:.0f} ({margin:g})")
    return Example([up_to_an_answer(chosen), up_to_an_answer(rejected)], margin=margin, tools=tools(row.get("tools")))


def scored_pair(row: Record) -> Example:
    """WebGPT's {question, answer_0, answer_1, score_0, score_1}: the answer with the higher score is chosen.

    Raises:
        BadRow: as of `preference`, or it is a tie.
    """
    scores = {name: finite(row[f"score_{name}"], f"score_{name}") for name in ("0", "1")}
    if scores["0"] == scores["1"]:
        raise BadRow("a tie")
    names = sorted(scores, key=lambda name: -scores[name])
    question = row["question"]
    prompt = _turns(question.get("full_text") if isinstance(question, Mapping) else question, "user", "question")
    chosen, rejected = (_append_response(prompt, row[f"answer_{name}"], "response") for name in names)
    return _pair(chosen, rejected, row)


def judged_pair(row: Record) -> Example:
    """{prompt, first, second, better}: `better` names one of the two by the ending of its column, as 1 or 2, a or b.

    Raises:
        BadRow: as of `preference`, or `better` names none of them.
    """
    first, second = row["sides"]
    better = str(row["better"]).strip().lower()
    named = [side for side in (first, second) if better == side or better.endswith(f"_{side}")]
    if len(named) != 1:
        raise BadRow(f"better says neither {first} nor {second} ({better[:40]})")
    prompt = _prompt(row)
    sides = ("first", "second") if named[0] == first else ("second", "first")
    chosen, rejected = (_append_response(prompt, row[side], "response") for side in sides)
    return _pair(chosen, rejected, row)


def labelled(row: Record) -> Example:
    """A text with its class, from {text, label}."""
    return Example([[turn("assistant", text(row, "text"))]], [row["label"]])


def harmful(row: Record) -> Example:
    """A harmless and a harmful text.

    Raises:
        BadRow: a text is empty, or the two are equal.
    """
    pair = [text(row, "harmless"), text(row, "harmful")]
    if pair[0] == pair[1]:
        raise BadRow("harmless equals harmful")
    return Example([[turn("assistant", content)] for content in pair], [HARMLESS, TOXIC])


def _prompt(row: Record, name: str = "prompt") -> list[Message]:
    """The turns before an answer, with the context and the system prompt that the row has beside them."""
    turns = _turns(row[name], "user", name)
    if not is_blank(row.get("context")):
        last = turns[-1]
        turns = [*turns[:-1], last | {"content": f"{last['content']}\n\n{text(row, 'context')}"}]
    return _with_system(turns, row.get("system"))


def _with_system(turns: list[Message], system: Any) -> list[Message]:
    if is_blank(system):
        return turns
    first = turn("system", text({"system": system}, "system"))
    if turns[0]["role"] == "system" and turns[0] != first:
        raise BadRow("two different system prompts")
    return turns if turns[0] == first else [first, *turns]


def _with_history(prompt: list[Message], history: Any) -> list[Message]:
    """A prompt after earlier pairs of a question and its answer, as LLaMA-Factory has them."""
    if isinstance(history, str) and not is_blank(history):
        try:
            history = json.loads(history)
        except ValueError as error:
            raise BadRow("history is text, not a list of pairs as JSON") from error
    if is_blank(history) or not history:
        return prompt
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("history is not a list of pairs")
    said = [_turns(part, role, "history") for pair in history for part, role in zip(pair, ("user", "assistant"))]
    start = prompt[0]["role"] == "system"
    return [*prompt[:start], *(each for turns in said for each in turns), *prompt[start:]]


def _whole_dialogue(value: Any, name: str, system: Any) -> list[Message]:
    value = parse_turns(value)
    return _with_system(transcript(value) if isinstance(value, str) else conversation(value), system)


def _turns(value: Any, role: str, name: str) -> list[Message]:
    """A text as a turn of `role`, turns as they are, or the turns of a transcript of HH-RLHF."""
    value = parse_turns(value)
    if isinstance(value, str) and is_transcript(value):
        return transcript_turns(value)
    if isinstance(value, str) and role == "assistant" and re.match(r"\n\nAssistant:", value):
        value = value.removeprefix("\n\nAssistant:").strip()
    if value is None or isinstance(value, bool | int | float | str):
        return [turn(role, text({name: value}, name))]
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        raise BadRow(f"{name} is a list of texts; a path in data.columns, such as <column>.0, takes one of them")
    return messages(value if isinstance(value, list) else [value])


def _append_response(prompt: list[Message], response: Any, name: str) -> list[Message]:
    """A response after its prompt; a response that is a whole dialogue already includes the prompt.

    Raises:
        BadRow: it includes another prompt.
    """
    turns = _turns(response, "assistant", name)
    if turns[0]["role"] == "assistant":
        return prompt + turns
    keys = {text_key(each["content"]) for each in turns}
    if any(text_key(each["content"]) not in keys for each in prompt):
        raise BadRow("a response is a dialogue with another prompt than the row's")
    return turns


class Layout(NamedTuple):
    """A set of columns, and what a row of them is."""

    columns: tuple[str, ...]
    read: Callable[[Record], Example]
    optional: tuple[str, ...] = ()  # columns that are read if they exist


_PAIR = ("context", "system", "tools", "margin")

SCHEMAS = {
    "instruction": (
        Layout(("prompt", "completion"), instruction, ("context", "system", "history", "tools")),
        Layout(("conversations",), dialogue, ("system", "tools")),
        Layout(("text",), document),
    ),
    "preference": (
        Layout(("prompt", "chosen", "rejected"), preference, _PAIR),
        Layout(("conversations", "chosen", "rejected"), preference, _PAIR[1:]),
        Layout(("question", "answer_0", "answer_1", "score_0", "score_1"), scored_pair),
        Layout(("prompt", "first", "second", "better"), judged_pair, _PAIR[:2]),
        Layout(("chosen", "rejected"), preference, _PAIR[1:]),
    ),
    "labelled": (Layout(("text", "label"), labelled), Layout(("harmless", "harmful"), harmful)),
    "harmful": (Layout(("harmless", "harmful"), harmful),),
}
"""The layouts of each kind of data; the first of those that fit is read."""


def _resolve(layout: Layout, available: Sequence[str], user: Mapping[str, Any]) -> dict[str, Any] | None:
    """The column of each name of a layout; None if the layout does not fit."""
    columns = {name.casefold(): name for name in reversed(available)}
    mapping: dict[str, Any] = {}
    if layout.read is instruction and not user and columns.keys() & CHOICES:
        return None  # the answer may be one of them by its letter or number
    if {"first", "second"} <= set(layout.columns) and not {"first", "second"} & user.keys():
        pair = next((pair for pair in SIDES if set(pair) <= columns.keys()), None)
        if pair is None:
            return None
        user = dict(zip(("first", "second"), (columns[name] for name in pair))) | dict(user)
    for name in (*layout.columns, *layout.optional):
        if name in user:
            if not reachable(user[name], available):
                if name in layout.columns:
                    return None
                continue
            mapping[name] = user[name]
            continue
        if name == "context" and "prompt" in user:
            continue  # the user says what the prompt is
        taken = {str(column) for column in mapping.values()}
        aliases = DOCUMENT if layout.read is document else ALIASES.get(name, ())
        found = next((columns[each] for each in (name, *aliases) if each in columns), None)
        found = name if name in available else found
        if found is not None and found not in taken:
            mapping[name] = found
        elif name in layout.columns:
            return None
    return mapping


def _fitting(kind: str, available: Sequence[str], user: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The mappings of the layouts that fit, the one to be read first.

    That is the one with the most of the names that the user maps, then of those that are there as they are (but any
    table may have a column `text`), then the first.
    """
    fitting = []
    for layout in SCHEMAS[kind]:
        mapping = _resolve(layout, available, user)
        if mapping:
            exact = sum(mapping[name] == name for name in layout.columns) if layout.read is not document else 0
            fitting.append((-len(user.keys() & {*layout.columns, *layout.optional}), -exact, mapping))
    return [mapping for *_, mapping in sorted(fitting, key=lambda each: each[:2])]


def mapped_columns(
    kind: str,
    available: Sequence[str],
    columns: Mapping[str, Any] | None,
    source: str,
    first_row: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The mapping from the names of a layout to the columns of the data.

    Args:
        columns: the user's mapping; other names stand for themselves, or for a column under another usual name.
        first_row: of the data, for a message.

    Raises:
        AiraError: the kind has no such name, a mapped column does not exist, or no layout of the kind fits.
    """
    user = columns or {}
    known = {name for layout in SCHEMAS[kind] for name in (*layout.columns, *layout.optional)}
    for name in user:
        if name not in known:
            meant = [each for each in known if name in ALIASES.get(each, ())]
            hint = f"It is called {meant[0]} here." if meant else nearest(name, sorted(known))
            raise AiraError(f"data.columns: {kind} data has no {name}. {hint}")
    fitting = _fitting(kind, available, user)
    if fitting:
        return fitting[0]
    printed = [name if name.isprintable() and name == name.strip() else repr(name) for name in available]
    shown = ", ".join(printed[:20]) + (f" and {len(printed) - 20} more" if len(printed) > 20 else "")
    for name, column in user.items():
        if not reachable(column, available):
            raise AiraError(f"data.columns: {name} is mapped to {column}, and {source} has the columns {shown}.")
    valid = " or ".join("{" + ", ".join(layout.columns) + "}" for layout in SCHEMAS[kind])
    raise AiraError(
        f"{source} has the columns {shown}, and {kind} data needs {valid}."
        + _mapping_hint(kind, available, first_row or {})
        + _other_hint(kind, available)
    )


def described(kind: str, available: Sequence[str], mapping: Mapping[str, Any]) -> str:
    """As what the columns are read, and which are not."""
    parts = [name if column == name else f"{name} ({_named(column)})" for name, column in mapping.items()]
    read = {part.split(".")[0] for column in mapping.values() for part in _as_list(column)}
    read |= {part for column in mapping.values() for part in _as_list(column)}
    ignored = [name for name in available if name not in read]
    layout = _layout(kind, mapping)
    what = "documents, every token of which is scored: " if layout.read is document else ""
    others = f"; not read: {', '.join(ignored[:12])}{' …' * (len(ignored) > 12)}" if ignored else ""
    if layout.read in (instruction, dialogue) and "label" in ignored:
        others += " (so answers with a bad label are trained on like those with a good one)"
    return f"read as {what}{', '.join(parts)}{others}"


def _named(column: Any) -> str:
    return " + ".join(map(str, _as_list(column)))


def _as_list(column: Any) -> list[str]:
    return [str(part) for part in column] if isinstance(column, list) else [str(column)]


def _layout(kind: str, mapping: Mapping[str, Any]) -> Layout:
    return next(layout for layout in SCHEMAS[kind] if set(layout.columns) <= mapping.keys())


def _mapping_hint(kind: str, available: Sequence[str], first_row: Mapping[str, Any]) -> str:
    """A mapping of columns under names that may be meant; what no name tells is left open."""
    proposals = []
    for layout in SCHEMAS[kind]:
        if layout.read is document:
            continue  # its names were looked for already
        taken: list[str] = []
        proposal: dict[str, str | None] = {}
        for name in layout.columns:
            names = (name, *ALIASES.get(name, ()), *HINTS.get(name, ()))
            column = next((one for each in names for one in available if one.casefold() == each), None)
            column = column or next(
                (one for each in names for one in available if each in re.findall(r"[a-z]+", one.casefold())), None
            )
            proposal[name] = column if column not in taken else None
            taken += [column] if column else []
        proposals.append((sum(column is None for column in proposal.values()) / len(proposal), proposal))
    missing, best = min(proposals, key=lambda each: each[0])
    if missing == 1:
        return ""
    pairs = []
    for name, column in best.items():
        path = None if column is None else _path_to_text(column, first_row.get(column))
        if path == name:
            continue
        context = next((each for each in available if each.casefold() in ("context", "input")), None)
        joined = name == "prompt" and path and context and context != path
        shown = "?" if path is None else f"[{_quote(path)}, {_quote(str(context))}]" if joined else _quote(path)
        pairs.append(f"{name}: {shown}")
    mapping = f"data.columns={{{', '.join(pairs)}}}"
    asked = ", with a column for each ?" if any(column is None for column in best.values()) else ""
    return f" Map them, for example {shlex.quote(mapping)}{asked}."


def _path_to_text(column: str, value: Any) -> str:
    """A column, or the path to the first text in it, if its first cell is a list."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        name = next((each for each in ("text", "output", "content", "value", "answer") if each in value[0]), None)
        return f"{column}.0.{name}" if name else column
    return f"{column}.0" if isinstance(value, list) and value and isinstance(value[0], str) else column


def _other_hint(kind: str, available: Sequence[str]) -> str:
    """What may be wrong about columns that fit no layout of a kind."""
    if any(re.fullmatch(r"-?\d+([.,]\d+)?", name) or len(name) > 60 for name in available):
        return " If the first line of the file is data, write a line with the names of the columns above it."
    if kind == "instruction" and CHOICES & {name.casefold() for name in available}:
        return " A question with choices is not whole without them: write them into it, and the right one as answer."
    fits = [other for other in SCHEMAS if other != kind and _fitting(other, available, {})]
    if kind == "preference" and "instruction" in fits:
        return " Single answers are no pairs; method=sft trains on them."
    if kind == "instruction" and "preference" in fits:
        return " method=dpo and method=reward train on such pairs."
    return ""


def _quote(column: str) -> str:
    """The name of a column, quoted if Hydra needs it in a mapping."""
    is_identifier = re.fullmatch(r"(?!(null|true|false|nan|inf)$)[a-z][\w.]*", column, re.ASCII | re.IGNORECASE)
    return column if is_identifier else override("", column).removeprefix("=")


def read_example(
    kind: str,
    row: Record,
    mapping: Mapping[str, Any],
    labels: Mapping[str, int | None] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Example:
    """One row as an example.

    Args:
        mapping: from `mapped_columns`.
        labels: the user's class names, with 1 for toxic, 0 for harmless or None for neither.
        names: from `named_classes`.

    Raises:
        BadRow: the row cannot be used.
        AiraError: its label belongs to neither class.
    """
    values: Record = {}
    for name, column in mapping.items():
        if name == "label":
            user = class_names(labels)
            parts = column if isinstance(column, list) else [column]
            labels_of_row = [class_label(pick(row, part), (names or {}).get(part), user) for part in parts]
            values[name] = label(labels_of_row if isinstance(column, list) else labels_of_row[0], LABELS | user)
        else:
            values[name] = pick(row, column)
    if "better" in values:
        values["sides"] = _sides(str(mapping["first"]), str(mapping["second"]))
    notes = [
        f"{name} is a list as Python prints it"
        for name in ("prompt", "completion", "chosen", "rejected", "text")
        if isinstance(values.get(name), str) and is_printed_list(values[name])
    ]
    example = _layout(kind, mapping).read(values)
    return example._replace(notes=[*example.notes, *notes])


def _sides(first: str, second: str) -> tuple[str, str]:
    """How two columns are told apart: by what follows the last `_` of their names, or by their place."""
    ends = first.rpartition("_")[2].lower(), second.rpartition("_")[2].lower()
    return ends if ends[0] != ends[1] and "_" in first and "_" in second else ("1", "2")


def branch_keys(example: Example) -> tuple[int, int]:
    """Two numbers: one that examples with the same branches share, in any order, and one of their first branch."""
    keys = [hash_of(json.dumps(turns, sort_keys=True, default=str)) for turns in example.conversations]
    return (sum(keys) + 2**63) % 2**64 - 2**63, keys[0]


def prompt_key(example: Example) -> int:
    """A number that examples with the same prompt share, normalized as by `text_key`; a lone text is its own prompt."""
    return _turns_key(example.conversations[0])


def last_key(example: Example) -> int:
    """The prompt key of the last branch: it differs for a pair of lone texts, which have no prompt in common.

    For a single branch, it is the key of the prompt of its first answer, which is trained on, too.
    """
    turns = example.conversations[-1]
    if len(example.conversations) == 1:
        turns = turns[: 1 + next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")]
    return _turns_key(turns)


def cell_key(value: Any) -> int:
    """The key of a prompt or text in a cell, given as text or as turns, of which an answer at the end is ignored.

    Raises:
        BadRow: there is no text.
    """
    value = parse_turns(value)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        role = value[-1].get("role") or value[-1].get("from")
        value = value[:-1] if role in ("assistant", "gpt") else value
    return _turns_key([*_turns(value, "user", "prompt"), turn("assistant", "")])


def _turns_key(turns: list[Message]) -> int:
    return text_key(" ".join(turn["content"] for turn in turns[:-1] or turns))
