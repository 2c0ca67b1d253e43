"""The columns that each kind of data needs, and how a user's columns are converted to them."""

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
"""The largest margin, which is stored in 32 bits."""

HARMLESS, TOXIC = 0, 1
"""The two classes of labelled texts. A harmless text has a high score: see `aira.methods.toxicity`."""

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
"""Other common names of a column."""


class Example(NamedTuple):
    """A row in one form for all kinds of data."""

    conversations: list[list[Message]]  # one per branch; a text without a prompt is a single turn of the assistant
    labels: Sequence[int] = ()  # the class of each branch, for labelled texts
    margin: float = 0.0  # by how much chosen should be better than rejected, in units of the score


class BadRow(Exception):
    """A row that cannot be used; it is dropped and counted by reason: the message without the part in parentheses."""

    @property
    def reason(self) -> str:
        """The reason by which dropped rows are counted."""
        return reason_in(str(self))


class UnknownLabel(AiraError):
    """A label that belongs to neither class; see `labels_hint`."""


def reason_in(problem: str) -> str:
    """The reason in the message of a `BadRow`."""
    return problem.partition(" (")[0]


def pick(row: Record, column: str | list[str]) -> Any:
    """Read a column by its name or by a dotted path into it (`answers.0.text`), or join several with blank lines.

    Raises:
        BadRow: the path does not exist in this row, or a part to join is not text.
    """
    if isinstance(column, list):
        parts = {name: pick(row, name) for name in column}
        return "\n\n".join(text(parts, name) for name, part in parts.items() if not _is_blank(part))
    value: Any = row
    for name in [column] if column in row else column.split("."):
        if value is None or (isinstance(value, list) and name.isdecimal() and int(name) >= len(value)):
            raise BadRow(f"empty {column}")
        if isinstance(value, list) and name.isdecimal():
            value = value[int(name)]
        elif isinstance(value, Mapping) and name in value:  # a row of the datasets library is not a dict
            value = value[name]
        else:
            raise BadRow(f"there is no {column}")
    return value


def _is_blank(value: Any) -> bool:
    """Whether a value is missing, or a text without visible characters."""
    if isinstance(value, str):
        return all(char.isspace() or unicodedata.category(char) == "Cf" or _UNSEEN.match(char) for char in value)
    return value is None or bool(value != value)


def text(row: Record, name: str) -> str:
    """A column that must be non-empty text; a number or a boolean becomes its JSON text."""
    value = row[name]
    if _is_blank(value):
        raise BadRow(f"empty {name}")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text but {type(value).__name__}")
    return value


def messages(turns: Any) -> list[Message]:
    """Turns as role and content (or from and value).

    Raises:
        BadRow: there are no turns, or one has an unknown role or is empty.
    """
    turns = _parse_turns(turns)
    if isinstance(turns, str) and turns.strip():
        raise BadRow("conversations is text, not a list of turns as JSON")
    if turns is not None and not isinstance(turns, list | str):
        raise BadRow(f"conversations is not a list of turns but {type(turns).__name__}")
    if not turns or isinstance(turns, str):
        raise BadRow("empty conversations")
    dialogue = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRow("a turn is not a mapping")
        role = turn.get("role") or turn.get("from")
        content = turn.get("value") if turn.get("content") in (None, "") else turn["content"]
        if not isinstance(role, str) or role not in ROLES:
            raise BadRow(f"unknown role {short(role)} (known: {', '.join(ROLES)})")
        if _is_blank(content):
            raise BadRow("an empty turn")
        if not isinstance(content, str):
            raise BadRow(f"a turn is not text but {type(content).__name__}")
        dialogue.append({"role": ROLES[role], "content": content})
    return dialogue


def short(value: Any) -> str:
    """A value, shortened for a message."""
    full = repr(value)
    return full if len(full) <= 60 else f"{full[:60]}…"


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are unique; json.loads would silently take the last of two."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return mapping


def _parse_turns(value: Any) -> Any:
    """The turns that a text holds as JSON, such as a cell of CSV; any other value unchanged.

    Raises:
        BadRow: an escape in a turn stands for half of a character, which text cannot hold.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            parsed = json.loads(value, object_pairs_hook=_unique_names)
        except (ValueError, RecursionError):
            return value
        turns = parsed if isinstance(parsed, list) else [parsed]
        if turns and all(isinstance(one, dict) and one.keys() & {"role", "from"} for one in turns):
            try:
                json.dumps(turns, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise BadRow("an escape in a turn is half of a character") from error
            return turns
    return value


def conversation(turns: Any) -> list[Message]:
    """Turns up to the assistant's last one.

    Raises:
        BadRow: as for `messages`, or there is no answer by the assistant, or no question before it.
    """
    dialogue = messages(turns)
    while dialogue and dialogue[-1]["role"] != "assistant":
        dialogue.pop()
    if not dialogue:
        raise BadRow("no turn of the assistant")
    if next(message["role"] for message in dialogue if message["role"] != "system") == "assistant":
        raise BadRow("the assistant speaks first")
    return dialogue


def transcript(whole: str) -> list[Message]:
    r"""The turns of a dialogue in HH-RLHF's format: `\n\nHuman: …\n\nAssistant: …`.

    Raises:
        BadRow: it does not begin with a turn of the human, or a turn is empty.
    """
    first, *parts = re.split(r"\n\n(Human|Assistant):", whole)
    if first.strip() or not parts:
        raise BadRow("no prompt, and no transcript that begins with a blank line and 'Human:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [_turn(roles[role], content.strip()) for role, content in zip(parts[::2], parts[1::2], strict=True)]
    if not turns[-1]["content"]:
        raise BadRow("an empty response")
    return conversation(turns)


def instruction(row: Record) -> Example:
    """One conversation, from {prompt, completion} or {conversations}."""
    if "conversations" in row:
        return Example([conversation(row["conversations"])])
    return Example([[_turn("user", text(row, "prompt")), _turn("assistant", text(row, "completion"))]])


def preference(row: Record) -> Example:
    """A conversation that ends with the chosen response, and one that ends with the rejected one.

    Responses are texts, turns, or lists of turns; so are prompts. Without a prompt, `chosen` and `rejected` are whole
    dialogues, as lists of turns or as transcripts of HH-RLHF. {question, answer_0, answer_1, score_0, score_1} is
    WebGPT's format, in which the answer with the higher score is chosen.

    Raises:
        BadRow: the responses are equal, one is empty, the two answer different prompts, or a comparison is a tie.
    """
    if "answer_0" in row:
        scores = {name: finite(row[f"score_{name}"], f"score_{name}") for name in ("0", "1")}
        if scores["0"] == scores["1"]:
            raise BadRow("a tie")
        names = sorted(scores, key=lambda name: -scores[name])
        question = row["question"]
        prompt = _turns(question.get("full_text") if isinstance(question, Mapping) else question, "user", "question")
        chosen, rejected = (_append_response(prompt, row[f"answer_{name}"]) for name in names)
    else:
        prompt_column = next((name for name in ("prompt", "instruction", "conversations") if name in row), None)
        pair = [row.get(name, row.get(f"{name}_response")) for name in ("chosen", "rejected")]
        if prompt_column:
            prompt = _turns(row[prompt_column], "user", prompt_column)
            chosen, rejected = (_append_response(prompt, response) for response in pair)
        else:
            pair = [_parse_turns(whole) for whole in pair]
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
        return Example([[_turn("assistant", content)] for content in pair], [HARMLESS, TOXIC])
    return Example([[_turn("assistant", text(row, "text"))]], [row["label"]])


def label(value: Any, known: Mapping[str, int | None]) -> int:
    """The class of a label; for several columns (a list), toxic if any is above 0.

    Raises:
        BadRow: there is no label: the cell is empty, null, NaN, or -1 (as in data sets of the hub), or `known`
            has None for it. Of several columns, one has no label, and no other is above 0.
        AiraError: it belongs to neither class.
    """
    if isinstance(value, list):
        present = [part for part in value if not _is_unlabelled(part)]
        toxic = any(finite(part, "label") > 0 for part in present)
        if not toxic and len(present) < len(value):
            raise BadRow("empty label, or -1")
        return TOXIC if toxic else HARMLESS
    name = _normalize(value)
    name = name if name in known else _class_name(value)
    if name not in known:
        if _is_unlabelled(value):
            raise BadRow("empty label, or -1")
        raise UnknownLabel(f"the label {short(value)} is neither toxic nor harmless. Known are {', '.join(known)}.")
    label_class = known[name]
    if label_class is None:
        raise BadRow(f"data.labels leaves out {short(value)}")
    return label_class


MOST_LABELS = 8
"""Labels listed in a hint."""


def labels_hint(
    rows: Dataset, column: str, labels: Mapping[str, int | None] | None, names: Mapping[str, Sequence[str]]
) -> str:
    """How a user defines unknown labels: an override with the labels of the data.

    Args:
        column: of the labels, as of `mapped_columns`.
        labels, names: as of `read_example`.
    """
    user, cells = class_names(labels), []
    top = rows.select_columns(column if column in rows.column_names else column.split(".")[0])
    for row in top.take(min(len(top), 100_000)):
        with contextlib.suppress(BadRow):
            cells.append(pick(row, column))
    values = [_class_label(cell, names.get(column), user) for cell in cells]
    known = LABELS | user
    texts = dict.fromkeys(str(value).strip() for value in values if not _is_unlabelled(value))
    unknown = [name for name in texts if _normalize(name) not in known and _class_name(name) not in known]
    escaped = [re.sub(r"[\\()\[\]{}:=,]| (?= |$)", r"\\\g<0>", name) for name in unknown]
    typable = [key for key, name in zip(escaped, unknown, strict=True) if len(name) <= 40 and _can_be_typed(key, name)]
    pairs = ", ".join(f"{key}: {int(i == 0)}" for i, key in enumerate(typable[:MOST_LABELS]))
    example = f" For example {shlex.quote(f'data.labels={{{pairs}}}')}, with the right numbers." if pairs else ""
    more = f" {len(unknown)} labels are not known." if len(unknown) > MOST_LABELS else ""
    if len(typable) < len(unknown):
        more += " A label that Hydra cannot read there, such as one with a quote, is set in a file (docs/extending.md)."
    return f"data.labels defines other labels: 1 is toxic, 0 is not, null leaves rows out.{example}{more}"


def _can_be_typed(key: str, name: str) -> bool:
    """Whether Hydra reads a key of a mapping as this name."""
    try:
        mapping = parse_override(f"data.labels={{{key}: 1}}").value()
    except AiraError:
        return False
    return isinstance(mapping, dict) and [_normalize(one) for one in mapping] == [_normalize(name)]


def _is_unlabelled(value: Any) -> bool:
    """Whether a cell says that there is no label."""
    return _class_name(value) in ("", "nan", "null", "none", "-1")


def _normalize(value: Any) -> str:
    return unicodedata.normalize("NFC", str(value).strip().casefold())


def _class_name(value: Any) -> str:
    """A label in the form that is compared: text without letter case; whole numbers so that 1.0 is 1, and -0 is 0."""
    name = _normalize(value)
    with contextlib.suppress(ValueError, OverflowError):
        number = float(name)
        return str(int(number)) if number == int(number) else name
    return name


def class_names(labels: Mapping[Any, int | None] | None) -> dict[str, int | None]:
    """The user's class names in the form that is compared; a number also as written, so that 00 may differ from 0."""
    labels = labels or {}
    classes: dict[str, int | None] = {}
    for name, cls in labels.items():
        if classes.setdefault(_normalize(name), cls) != cls:
            raise AiraError(f"data.labels={dict(labels)}: {name} has two classes; letter case makes no difference.")
    return {_class_name(name): labels[name] for name in labels} | classes


def named_classes(features: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The columns of a data set that hold class numbers, with the data set's names of the classes."""
    return {name: one.names for name, one in (features or {}).items() if isinstance(one, ClassLabel)}


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _turns(value: Any, role: str, name: str) -> list[Message]:
    """A text as a turn of `role`, or turns as they are."""
    value = _parse_turns(value)
    if value is None or isinstance(value, bool | int | float | str):
        return [_turn(role, text({name: value}, name))]
    return messages(value if isinstance(value, list) else [value])


def _append_response(prompt: list[Message], response: Any) -> list[Message]:
    """A response after its prompt; a response that is a whole dialogue already includes the prompt.

    Raises:
        BadRow: it includes another prompt.
    """
    turns = _turns(response, "assistant", "response")
    if turns[0]["role"] == "assistant":
        return prompt + turns
    keys = {text_key(turn["content"]) for turn in turns}
    if any(text_key(turn["content"]) not in keys for turn in prompt):
        raise BadRow("a response is a dialogue with another prompt than the row's")
    return turns


def finite(value: Any, name: str) -> float:
    """A number, which may be given as text, or as true or false.

    Raises:
        BadRow: it is not a number, or not finite in 32 bits.
    """
    literal = str(value).strip().lower()
    try:
        number = float({"true": 1, "false": 0}.get(literal, literal))
    except ValueError as error:
        raise BadRow(f"{name} is not a number ({short(value)})") from error
    if not abs(number) <= LARGEST:
        raise BadRow(f"{name} is not a number ({short(value)})")
    return number


def reachable(column: str | list[str], available: list[str]) -> bool:
    """Whether a mapping's column, or the column that each of its paths begins with, exists; see `pick`."""
    names = column if isinstance(column, list) else [column]
    return all(name in available or name.split(".")[0] in available for name in names)


class Schema(NamedTuple):
    """A kind of data."""

    columns: tuple[tuple[str, ...], ...]  # the sets of columns that it may have
    example: Callable[[Record], Example]
    optional: tuple[str, ...] = ()  # columns that are read if they exist


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


def _fitting_mappings(kind: str, available: list[str], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The mappings of the layouts that the columns fit; those with most of the names that the user maps first."""
    mappings = [{name: columns.get(name, name) for name in names} for names in SCHEMAS[kind].columns]
    fitting = [one for one in mappings if all(reachable(column, available) for column in one.values())]
    return sorted(fitting, key=lambda one: -len(one.keys() & columns.keys()))


def ignored_columns(kind: str, available: list[str], columns: Mapping[str, Any] | None, source: str) -> list[str]:
    """A notice of which columns are read and which are ignored, if they fit more than one layout."""
    fitting = _fitting_mappings(kind, available, columns or {})
    read = [str(column) for column in fitting[0].values()] if fitting else []
    others = [str(column) for one in fitting[1:] for column in one.values()]
    others += ["messages"] * (kind != "labelled" and "messages" in available)
    unread = [column for column in dict.fromkeys(others) if column not in read]
    if not unread:
        return []
    return [f"{source}: read as {', '.join(read)}; ignored: {', '.join(unread)}. data.columns selects others."]


def mapped_columns(kind: str, available: list[str], columns: dict[str, Any] | None, source: str) -> dict[str, Any]:
    """The mapping from a kind's column names to those of the data.

    Args:
        columns: the user's mapping; names that are not mapped stand for themselves.

    Raises:
        AiraError: the kind has no such name, a mapped column does not exist, or the data has none of the sets of
            columns that the kind needs.
    """
    columns = columns or {}
    schema = SCHEMAS[kind]

    known = {name for names in schema.columns for name in names} | set(schema.optional)
    for name in columns:
        if name not in known:
            raise AiraError(f"data.columns: {kind} data has no {name}. {nearest(name, sorted(known))}")
    if fitting := _fitting_mappings(kind, available, columns):
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
    """A mapping of the available columns, by their common names, or in their order."""
    by_name = [{name: _column_for(name, available) for name in names} for names in layouts]
    suggestion = next((one for one in by_name if None not in one.values()), None)
    if suggestion is None:
        taken = {column for column in by_name[0].values() if column}
        rest = iter([column for column in available if column not in taken])
        suggestion = {name: column or next(rest, None) for name, column in by_name[0].items()}
    pairs = [(name, column) for name, column in suggestion.items() if column != name]
    if not all(column for _, column in pairs):
        return ""
    mapping = ", ".join(f"{name}: {_quote(str(column))}" for name, column in pairs)
    return f" Map them, for example {shlex.quote(f'data.columns={{{mapping}}}')}."


def _quote(column: str) -> str:
    """The name of a column, quoted if Hydra needs it in a mapping."""
    is_identifier = re.fullmatch(r"(?!(null|true|false|nan|inf)$)[a-z]\w*", column, re.ASCII | re.IGNORECASE)
    return column if is_identifier else override("", column).removeprefix("=")


def _column_for(name: str, available: Sequence[str]) -> str | None:
    """The available column for a name: the name itself, or a common alias of it."""
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
        labels: the user's class names, with 1 for toxic, 0 for harmless or None for neither.
        names: from `named_classes`.

    Raises:
        BadRow: the row cannot be used.
        AiraError: its label belongs to neither class.
    """
    values = {}
    for name, column in mapping.items():
        if name == "label":
            user = class_names(labels)
            parts = column if isinstance(column, list) else [column]
            labels_of_row = [_class_label(pick(row, part), (names or {}).get(part), user) for part in parts]
            values[name] = label(labels_of_row if isinstance(column, list) else labels_of_row[0], LABELS | user)
        else:
            values[name] = pick(row, column)
    return SCHEMAS[kind].example(values)


def _class_label(value: Any, names: Sequence[str] | None, user: Mapping[str, Any]) -> Any:
    """The data set's name of a class if it has one, and the user does not define the number."""
    if names is None or str(value) in user or type(value) is not int or not 0 <= value < len(names):
        return value
    return names[value]


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
    value = _parse_turns(value)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        role = value[-1].get("role") or value[-1].get("from")
        value = value[:-1] if role in ("assistant", "gpt") else value
    return _turns_key([*_turns(value, "user", "prompt"), _turn("assistant", "")])


def _turns_key(turns: list[Message]) -> int:
    return text_key(" ".join(turn["content"] for turn in turns[:-1] or turns))


def text_key(value: str) -> int:
    """A signed 64-bit hash of a text; letter case, spacing, Unicode forms and invisible characters do not matter.

    Texts are compared in NFKC form (combined or separate accents, full width or not) without format characters
    (zero-width spaces, soft hyphens, direction marks), variation selectors and control characters.
    """
    form = _UNSEEN.sub("", value).casefold()
    if not form.isascii():  # invisible characters are removed before accents are joined to letters
        form = "".join(char for char in value if unicodedata.category(char) != "Cf")
        form = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _UNSEEN.sub("", form)).casefold())
    digest = hashlib.blake2b(" ".join(form.split()).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


_UNSEEN = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
"""Zero-width characters that are not in the category of format characters, and control characters except spacing."""
