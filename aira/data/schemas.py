"""What a row must hold for each kind of data, and how a user's columns are brought into that form."""

import contextlib
import hashlib
import json
import re
import shlex
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset

from aira.config.overrides import parse_override
from aira.errors import AiraError, nearest
from aira.files import override

Message = dict[str, str]
Record = dict[str, Any]

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}

LARGEST = 3.4e38
"""The largest number that a margin, which is kept in 32 bits, may be."""

HARMLESS, TOXIC = 0, 1
"""The two classes of labelled texts. A score is high where a text is harmless: see `aira.methods.toxicity`."""

LABELS: dict[str, int | None] = {
    **dict.fromkeys(("0", "false", "harmless", "non-toxic", "not-toxic", "non-hateful"), HARMLESS),
    **dict.fromkeys(("1", "true", "harmful", "toxic", "hateful"), TOXIC),
}
"""The labels that need no `data.labels`, in lower case."""


ALIASES = {
    "prompt": ("question", "instruction", "input", "query", "user"),
    "completion": ("answer", "response", "output", "reply", "assistant"),
    "conversations": ("messages", "conversation", "turns", "dialogue", "dialog"),
    "chosen": ("preferred", "better", "accepted"),
    "rejected": ("dispreferred", "worse", "refused"),
    "text": ("comment", "comment_text", "sentence", "tweet", "content", "message"),
    "label": ("class", "category", "target", "toxic", "toxicity"),
}
"""What others call a column."""


class Example(NamedTuple):
    """A row in one form for all kinds of data."""

    conversations: list[list[Message]]  # one a branch; a text that answers nothing is an assistant's turn alone
    labels: Sequence[int] = ()  # the class of each branch, for labelled texts
    margin: float = 0.0  # by how much chosen is to be better than rejected, in units of the score


class BadRow(Exception):
    """A row that cannot be used; it is dropped, and counted by the reason: the message without what is in brackets."""

    @property
    def reason(self) -> str:
        """What dropped rows are counted by."""
        return reason_in(str(self))


class UnknownLabel(AiraError):
    """A label that is none of two classes; see `labels_hint`."""


def reason_in(problem: str) -> str:
    """The reason in the message of a `BadRow`."""
    return problem.partition(" (")[0]


def pick(row: Record, column: str | list[str]) -> Any:
    """Read a column, by its name, by a dotted path into it (`answers.0.text`), or several joined by blank lines.

    Raises:
        BadRow: the path leads nowhere in this row, or a part to join is no text.
    """
    if isinstance(column, list):
        parts = {name: pick(row, name) for name in column}
        return "\n\n".join(text(parts, name) for name, part in parts.items() if not _blank(part))
    value: Any = row
    for name in [column] if column in row else column.split("."):
        if value is None or (isinstance(value, list) and name.isdecimal() and int(name) >= len(value)):
            raise BadRow(f"empty {column}")
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)]
        elif isinstance(value, Mapping) and name in value:  # a row of the datasets library is no dict
            value = value[name]
        else:
            raise BadRow(f"there is no {column}")
    return value


def _blank(value: Any) -> bool:
    """Whether it is nothing, or a text in which nothing is seen."""
    if isinstance(value, str):
        return all(sign.isspace() or unicodedata.category(sign) == "Cf" or _UNSEEN.match(sign) for sign in value)
    return value is None or bool(value != value)


def text(row: Record, name: str) -> str:
    """A column that must be non-empty text; a number, or true or false, is the text that JSON has for it."""
    value = row[name]
    if _blank(value):
        raise BadRow(f"empty {name}")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise BadRow(f"{name} is no text but {type(value).__name__}")
    return value


def messages(turns: Any) -> list[Message]:
    """Turns as role and content (or from and value).

    Raises:
        BadRow: there is none, an unknown role, or an empty turn.
    """
    turns = _unpacked(turns)
    if isinstance(turns, str) and turns.strip():
        raise BadRow("conversations is a text, and no list of turns as JSON")
    if turns is not None and not isinstance(turns, list | str):
        raise BadRow(f"conversations is no list of turns but {type(turns).__name__}")
    if not turns or isinstance(turns, str):
        raise BadRow("empty conversations")
    found = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRow("a turn is no mapping")
        role = turn.get("role") or turn.get("from")
        content = turn.get("value") if turn.get("content") in (None, "") else turn["content"]
        if not isinstance(role, str) or role not in ROLES:
            raise BadRow(f"unknown role {short(role)} (known: {', '.join(ROLES)})")
        if _blank(content):
            raise BadRow("an empty turn")
        if not isinstance(content, str):
            raise BadRow(f"a turn is no text but {type(content).__name__}")
        found.append({"role": ROLES[role], "content": content})
    return found


def short(value: Any) -> str:
    """A value as it is shown in a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose names stand once each; the last one of two would be taken without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return made


def _unpacked(value: Any) -> Any:
    """The turns that a text holds as JSON, as a cell of CSV does; any other value as it is.

    Raises:
        BadRow: an escape in a turn stands for half of a character, which no text can hold.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            found = json.loads(value, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            return value
        turns = found if isinstance(found, list) else [found]
        if turns and all(isinstance(one, dict) and one.keys() & {"role", "from"} for one in turns):
            try:
                json.dumps(turns, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise BadRow("an escape in a turn is half of a character") from error
            return turns
    return value


def conversation(turns: Any) -> list[Message]:
    """Turns that end with the assistant's.

    Raises:
        BadRow: as for `messages`, or no answer by the assistant, or no question before it.
    """
    found = messages(turns)
    while found and found[-1]["role"] != "assistant":
        found.pop()
    if not found:
        raise BadRow("no turn of the assistant")
    if next(message["role"] for message in found if message["role"] != "system") == "assistant":
        raise BadRow("the assistant speaks first")
    return found


def transcript(whole: str) -> list[Message]:
    r"""The turns of a dialogue as HH-RLHF writes it: `\n\nHuman: …\n\nAssistant: …`.

    Raises:
        BadRow: it does not begin with a turn of the human, or a turn is empty.
    """
    first, *parts = re.split(r"\n\n(Human|Assistant):", whole)
    if first.strip() or not parts:
        raise BadRow("no prompt, and no transcript that begins with a blank line and 'Human:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    found = [{"role": roles[role], "content": said.strip()} for role, said in zip(parts[::2], parts[1::2], strict=True)]
    if not found[-1]["content"]:
        raise BadRow("an empty response")
    return conversation(found)


def instruction(row: Record) -> Example:
    """One conversation, from {prompt, completion} or {conversations}."""
    if "conversations" in row:
        return Example([conversation(row["conversations"])])
    return Example([[_turn("user", text(row, "prompt")), _turn("assistant", text(row, "completion"))]])


def preference(row: Record) -> Example:
    """A conversation that ends with the chosen response, and one that ends with the rejected one.

    Responses are texts, turns, or lists of turns; prompts too. Without a prompt, `chosen` and `rejected` are whole
    dialogues, as lists of turns or as transcripts of HH-RLHF. {question, answer_0, answer_1, score_0, score_1} is
    WebGPT's form, in which the answer with the higher score is chosen.

    Raises:
        BadRow: the responses are equal, one is empty, the two answer different prompts, or a comparison is a tie.
    """
    if "answer_0" in row:
        scores = {name: finite(row[f"score_{name}"], f"score_{name}") for name in ("0", "1")}
        if scores["0"] == scores["1"]:
            raise BadRow("a tie")
        names = sorted(scores, key=lambda name: -scores[name])
        asked = row["question"]
        prompt = _turns(asked.get("full_text") if isinstance(asked, Mapping) else asked, "user", "question")
        chosen, rejected = (_answered(prompt, row[f"answer_{name}"]) for name in names)
    else:
        prompted = next((name for name in ("prompt", "instruction", "conversations") if name in row), None)
        pair = [row.get(name, row.get(f"{name}_response")) for name in ("chosen", "rejected")]
        if prompted:
            prompt = _turns(row[prompted], "user", prompted)
            chosen, rejected = (_answered(prompt, response) for response in pair)
        else:
            pair = [_unpacked(whole) for whole in pair]
            chosen, rejected = (transcript(whole) if isinstance(whole, str) else conversation(whole) for whole in pair)
            if chosen[:-1] != rejected[:-1]:
                raise BadRow("chosen and rejected answer different prompts")
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    return Example([conversation(chosen), conversation(rejected)], margin=finite(row.get("margin") or 0, "margin"))


def labelled(row: Record) -> Example:
    """A text with its class, from {text, label}, or a harmless and a harmful text, from {harmless, harmful}.

    Raises:
        BadRow: a text is empty, or the two are equal.
    """
    if "harmless" in row:
        pair = [text(row, "harmless"), text(row, "harmful")]
        if pair[0] == pair[1]:
            raise BadRow("harmless equals harmful")
        return Example([[_turn("assistant", said)] for said in pair], [HARMLESS, TOXIC])
    return Example([[_turn("assistant", text(row, "text"))]], [row["label"]])


def label(value: Any, known: Mapping[str, int | None]) -> int:
    """The class that a label stands for; of several columns (a list), toxic where any is above 0.

    Raises:
        BadRow: there is no label: the cell is empty, null, NaN, or -1, by which the hub's data sets say so, or `known`
            has None for it. Of several columns, one has none, and no other is above 0.
        AiraError: it is none of two classes.
    """
    if isinstance(value, list):
        given = [part for part in value if not _unlabelled(part)]
        toxic = any(finite(part, "label") > 0 for part in given)
        if not toxic and len(given) < len(value):
            raise BadRow("empty label, or -1")
        return TOXIC if toxic else HARMLESS
    name = _text_of(value)
    name = name if name in known else _class_name(value)
    if name not in known:
        if _unlabelled(value):
            raise BadRow("empty label, or -1")
        raise UnknownLabel(f"the label {short(value)} is neither toxic nor harmless. Known are {', '.join(known)}.")
    found = known[name]
    if found is None:
        raise BadRow(f"data.labels leaves out {short(value)}")
    return found


MOST_LABELS = 8
"""Labels that are named in a hint."""


def labels_hint(
    rows: Dataset, column: str, labels: Mapping[str, int | None] | None, names: Mapping[str, Sequence[str]]
) -> str:
    """How a user says what labels mean that nobody knows: an override with the labels that are there.

    Args:
        column: of the labels, as of `mapped_columns`.
        labels, names: as of `read_example`.
    """
    user, cells = class_names(labels), []
    top = rows.select_columns(column if column in rows.column_names else column.split(".")[0])
    for row in top.take(min(len(top), 100_000)):
        with contextlib.suppress(BadRow):
            cells.append(pick(row, column))
    named = [_named(cell, names.get(column), user) for cell in cells]
    known = LABELS | user
    texts = dict.fromkeys(str(value).strip() for value in named if not _unlabelled(value))
    unknown = [name for name in texts if _text_of(name) not in known and _class_name(name) not in known]
    written = [re.sub(r"[\\()\[\]{}:=,]| (?= |$)", r"\\\g<0>", name) for name in unknown]
    fine = [key for key, name in zip(written, unknown, strict=True) if len(name) <= 40 and _can_be_typed(key, name)]
    pairs = ", ".join(f"{key}: {int(i == 0)}" for i, key in enumerate(fine[:MOST_LABELS]))
    such = f" Such as {shlex.quote(f'data.labels={{{pairs}}}')}, with the numbers as they are meant." if pairs else ""
    more = f" {len(unknown)} labels are not known." if len(unknown) > MOST_LABELS else ""
    if len(fine) < len(unknown):
        more += " One that Hydra cannot read there, as with a quote, is set in a file (docs/extending.md)."
    return f"data.labels says what others mean: 1 is toxic, 0 is not, null leaves rows out.{such}{more}"


def _can_be_typed(key: str, name: str) -> bool:
    """Whether Hydra reads a key of a mapping as this name."""
    try:
        found = parse_override(f"data.labels={{{key}: 1}}").value()
    except AiraError:
        return False
    return isinstance(found, dict) and [_text_of(one) for one in found] == [_text_of(name)]


def _unlabelled(value: Any) -> bool:
    """Whether a cell says that nobody has given a label."""
    return _class_name(value) in ("", "nan", "null", "none", "-1")


def _text_of(value: Any) -> str:
    return unicodedata.normalize("NFC", str(value).strip().casefold())


def _class_name(value: Any) -> str:
    """A label as it is compared: as text, without letter case; a whole number as one, so that 1.0 is 1, and -0 is 0."""
    name = _text_of(value)
    with contextlib.suppress(ValueError, OverflowError):
        number = float(name)
        return str(int(number)) if number == int(number) else name
    return name


def class_names(labels: Mapping[Any, int | None] | None) -> dict[str, int | None]:
    """The user's names of classes as they are compared; a number also as it is written, so that 00 may be no 0."""
    given = labels or {}
    classes: dict[str, int | None] = {}
    for name, cls in given.items():
        if classes.setdefault(_text_of(name), cls) != cls:
            raise AiraError(f"data.labels={dict(given)}: {name} has two classes, for letter case makes no other name.")
    return {_class_name(name): given[name] for name in given} | classes


def named_classes(features: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The columns of a data set that hold numbers of classes, with the names that the data set has for them."""
    return {name: one.names for name, one in (features or {}).items() if isinstance(one, ClassLabel)}


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _turns(value: Any, role: str, name: str) -> list[Message]:
    """A text as a turn of `role`, or turns as they are."""
    value = _unpacked(value)
    if value is None or isinstance(value, bool | int | float | str):
        return [_turn(role, text({name: value}, name))]
    return messages(value if isinstance(value, list) else [value])


def _answered(prompt: list[Message], response: Any) -> list[Message]:
    """A response after its prompt; one that is a whole dialogue has it already.

    Raises:
        BadRow: it has another one.
    """
    said = _turns(response, "assistant", "response")
    if said[0]["role"] == "assistant":
        return prompt + said
    there = {text_key(turn["content"]) for turn in said}
    if any(text_key(turn["content"]) not in there for turn in prompt):
        raise BadRow("a response is a dialogue with another prompt than the row's")
    return said


def finite(value: Any, name: str) -> float:
    """A number, also as text, or true or false.

    Raises:
        BadRow: it is none, or not a finite one in 32 bits.
    """
    said = str(value).strip().lower()
    try:
        number = float({"true": 1, "false": 0}.get(said, said))
    except ValueError as error:
        raise BadRow(f"{name} is no number ({short(value)})") from error
    if not abs(number) <= LARGEST:
        raise BadRow(f"{name} is no number ({short(value)})")
    return number


def reachable(column: str | list[str], available: list[str]) -> bool:
    """Whether a mapping's column, or what each of its paths begins with, is there; see `pick`."""
    names = column if isinstance(column, list) else [column]
    return all(name in available or name.split(".")[0] in available for name in names)


class Schema(NamedTuple):
    """A kind of data."""

    columns: tuple[tuple[str, ...], ...]  # the sets of columns that it may have
    example: Callable[[Record], Example]
    optional: tuple[str, ...] = ()  # columns that are read where they are there


SCHEMAS = {
    "instruction": Schema((("prompt", "completion"), ("conversations",)), instruction),
    "preference": Schema(
        (
            ("prompt", "chosen", "rejected"),
            ("instruction", "chosen_response", "rejected_response"),
            ("conversations", "chosen", "rejected"),
            ("question", "answer_0", "answer_1", "score_0", "score_1"),
            ("chosen", "rejected"),
        ),
        preference,
        ("margin",),
    ),
    "labelled": Schema((("text", "label"), ("harmless", "harmful")), labelled),
    "harmful": Schema((("harmless", "harmful"),), labelled),
}


def _fitting(kind: str, available: list[str], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The mappings of the layouts that the columns have; those with most of the names that the user maps first."""
    mappings = [{name: columns.get(name, name) for name in names} for names in SCHEMAS[kind].columns]
    found = [one for one in mappings if all(reachable(column, available) for column in one.values())]
    return sorted(found, key=lambda one: -len(one.keys() & columns.keys()))


def left_aside(kind: str, available: list[str], columns: Mapping[str, Any] | None, source: str) -> list[str]:
    """A sentence on which columns are read, and which are not, where they fit more than one layout."""
    fitting = _fitting(kind, available, columns or {})
    read = [str(column) for column in fitting[0].values()] if fitting else []
    others = [str(column) for one in fitting[1:] for column in one.values()]
    others += ["messages"] * (kind != "labelled" and "messages" in available)
    unread = [column for column in dict.fromkeys(others) if column not in read]
    if not unread:
        return []
    return [f"{source}: read as {', '.join(read)}; left aside: {', '.join(unread)}. data.columns chooses others."]


def mapped_columns(kind: str, available: list[str], columns: dict[str, Any] | None, source: str) -> dict[str, Any]:
    """The mapping from a kind's column names to those of the data.

    Args:
        columns: the user's mapping; names that are not mapped stand for themselves.

    Raises:
        AiraError: the kind has no such name, a mapped column is not there, or the data has none of the sets of
            columns that the kind needs.
    """
    columns = columns or {}
    schema = SCHEMAS[kind]

    known = {name for names in schema.columns for name in names} | set(schema.optional)
    for name in columns:
        if name not in known:
            raise AiraError(f"data.columns: {kind} data has no {name}. {nearest(name, sorted(known))}")
    if fitting := _fitting(kind, available, columns):
        optional = {name: columns.get(name, name) for name in schema.optional}
        return fitting[0] | {name: column for name, column in optional.items() if reachable(column, available)}
    printed = [name if name.isprintable() and name == name.strip() else repr(name) for name in available]
    shown = ", ".join(printed[:20]) + (f" and {len(printed) - 20} more" if len(printed) > 20 else "")
    for name, column in columns.items():
        if not reachable(column, available):
            raise AiraError(f"data.columns: {name} is mapped to {column}, and {source} has the columns {shown}.")
    valid = " or ".join("{" + ", ".join(names) + "}" for names in schema.columns)
    raise AiraError(
        f"{source} has the columns {shown}, and {kind} data needs {valid}.{_mapping_hint(schema.columns, available)}"
    )


def _mapping_hint(layouts: Sequence[Sequence[str]], available: Sequence[str]) -> str:
    """A mapping of the columns that are there, by what others call them, or in their order."""
    by_name = [{name: _called(name, available) for name in names} for names in layouts]
    found = next((one for one in by_name if None not in one.values()), None)
    if found is None:
        taken = {column for column in by_name[0].values() if column}
        rest = iter([column for column in available if column not in taken])
        found = {name: column or next(rest, None) for name, column in by_name[0].items()}
    pairs = [(name, column) for name, column in found.items() if column != name]
    if not all(column for _, column in pairs):
        return ""
    mapping = ", ".join(f"{name}: {_value(str(column))}" for name, column in pairs)
    return f" Map them, such as {shlex.quote(f'data.columns={{{mapping}}}')}."


def _value(column: str) -> str:
    """The name of a column as Hydra reads it in a mapping."""
    plain = re.fullmatch(r"(?!(null|true|false|nan|inf)$)[a-z]\w*", column, re.ASCII | re.IGNORECASE)
    return column if plain else override("", column).removeprefix("=")


def _called(name: str, available: Sequence[str]) -> str | None:
    """The column that others have under another name; of the name itself where it is there."""
    names = (name, *ALIASES.get(name, ()))
    return next((column for one in names for column in available if column.casefold() == one), None)


def read_example(
    kind: str,
    row: Record,
    mapping: dict[str, Any],
    labels: Mapping[str, int | None] | None = None,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Example:
    """One row as an example.

    Args:
        mapping: from `mapped_columns`.
        labels: the user's names of classes, and 1 for toxic, 0 for harmless or None for neither.
        names: from `named_classes`.

    Raises:
        BadRow: the row cannot be used.
        AiraError: its label is none of two classes.
    """
    picked = {}
    for name, column in mapping.items():
        if name == "label":
            user = class_names(labels)
            parts = column if isinstance(column, list) else [column]
            found = [_named(pick(row, part), (names or {}).get(part), user) for part in parts]
            picked[name] = label(found if isinstance(column, list) else found[0], LABELS | user)
        else:
            picked[name] = pick(row, column)
    return SCHEMAS[kind].example(picked)


def _named(value: Any, names: Sequence[str] | None, user: Mapping[str, Any]) -> Any:
    """The data set's name of a class, where it has one and the user says nothing of the number."""
    if names is None or str(value) in user or type(value) is not int or not 0 <= value < len(names):
        return value
    return names[value]


def prompt_key(example: Example) -> int:
    """A number that examples with the same prompt share, by the form of `text_key` (a lone text is its own)."""
    return _asked_key(example.conversations[0])


def last_key(example: Example) -> int:
    """The same of the last branch: another number for a pair of lone texts, which have no prompt in common.

    Where there is one branch, it is that of what its first answer answers: it is trained on, too.
    """
    turns = example.conversations[-1]
    if len(example.conversations) == 1:
        turns = turns[: 1 + next(i for i, turn in enumerate(turns) if turn["role"] == "assistant")]
    return _asked_key(turns)


def asked_key(value: Any) -> int:
    """The key of a prompt or text by itself, as a text or as turns, of which an answer at the end is not looked at.

    Raises:
        BadRow: there is no text.
    """
    value = _unpacked(value)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        role = value[-1].get("role") or value[-1].get("from")
        value = value[:-1] if role in ("assistant", "gpt") else value
    return _asked_key([*_turns(value, "user", "prompt"), _turn("assistant", "")])


def _asked_key(turns: list[Message]) -> int:
    return text_key(" ".join(turn["content"] for turn in turns[:-1] or turns))


def text_key(said: str) -> int:
    """A signed 64-bit hash of a text, but for letter case, spacing, forms of one character, and what is not seen.

    Compared are NFKC forms (an accent by itself or not, full width or not) without format characters (zero-width
    spaces, soft hyphens, marks of direction), variation selectors and control characters.
    """
    form = _UNSEEN.sub("", said).casefold()
    if not form.isascii():  # what is not seen is gone before accents are joined to letters
        form = "".join(sign for sign in said if unicodedata.category(sign) != "Cf")
        form = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _UNSEEN.sub("", form)).casefold())
    digest = hashlib.blake2b(" ".join(form.split()).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


_UNSEEN = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Signs of no width that are no format characters by their category, and control characters but those of spacing."""
