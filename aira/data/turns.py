"""The turns of a dialogue, from the forms in which data sets hold them."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aira.data.texts import BadRow, is_blank, short

Message = dict[str, Any]
"""A turn: `role` (system, user, assistant or tool) and `content`; some have `reasoning_content`, `tool_calls` in the
form of Transformers, `tool_call_id` or `name`, and `train` is False for a turn of the assistant without loss."""

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response"), "tool"),
}
"""The names of roles in data sets, in lower case."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""The names of what a model thought before it answered."""


def turn(role: str, content: str) -> Message:
    """A turn that is text alone."""
    return {"role": role, "content": content}


def messages(turns: Any) -> list[Message]:
    """Turns as role and content (or from and value), from a list or its JSON.

    Raises:
        BadRow: there are no turns, or one has an unknown role, is empty, or is no text.
    """
    turns = parse_turns(turns)
    if isinstance(turns, str) and turns.strip():
        raise BadRow("conversations is text, not a list of turns as JSON")
    if turns is not None and not isinstance(turns, list | str):
        raise BadRow(f"conversations is not a list of turns but {type(turns).__name__}")
    if not turns or isinstance(turns, str):
        raise BadRow("empty conversations")
    return [_message(each) for each in turns]


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow("a turn is not a mapping")
    name = turn.get("role") or turn.get("from")
    if not isinstance(name, str) or name.lower() not in ROLES:
        raise BadRow(f"unknown role {short(name)} (known: {', '.join(ROLES)})")
    content = _content(turn.get("value") if turn.get("content") in (None, "") else turn["content"])
    message: Message = {"role": ROLES[name.lower()], "content": content}
    if message["role"] == "assistant":
        calls = [content] if name.lower() == "function_call" else turn.get("tool_calls") or turn.get("function_call")
        if calls:
            message["tool_calls"] = _tool_calls(calls if isinstance(calls, list) else [calls])
            message["content"] = "" if calls == [content] or content is None else content
        reasoning = next((turn[key] for key in REASONING if not is_blank(turn.get(key))), None)
        if isinstance(reasoning, str):
            message["reasoning_content"] = reasoning
        elif reasoning is not None:
            raise BadRow(f"the reasoning of a turn is not text but {type(reasoning).__name__}")
        if not _is_trained(turn):
            message["train"] = False
    else:
        message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str) and turn[key]}
    if is_blank(message["content"]) and "tool_calls" not in message:
        raise BadRow("an empty turn")
    if not isinstance(message["content"], str):
        raise BadRow(f"a turn is not text but {type(content).__name__}")
    return message


def _content(content: Any) -> Any:
    """The text of a turn that is given as parts; anything else unchanged."""
    if not isinstance(content, list) or not content or not all(isinstance(part, Mapping) for part in content):
        return content
    others = [part.get("type") for part in content if not isinstance(part.get("text"), str)]
    if others:
        raise BadRow(f"a part of a turn is not text but {short(others[0])}")
    return "\n".join(part["text"] for part in content)


def _is_trained(turn: Mapping[str, Any]) -> bool:
    """Whether a turn of the assistant counts: `weight` 1 or 0 as of OpenAI, `train` or `training` as of axolotl."""
    for key in ("weight", "train", "training"):
        value = turn.get(key)
        if value is not None:
            if isinstance(value, bool | int | float) and value in (0, 1):
                return bool(value)
            raise BadRow(f"{key} of a turn is neither 0 nor 1 ({short(value)})")
    return True


def _tool_calls(calls: Sequence[Any]) -> list[dict[str, Any]]:
    """Calls in the form of Transformers, whose arguments are a mapping where they can be read as one."""
    read = []
    for call in calls:
        call = _from_json(call)
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRow(f"a tool call has no name ({short(call)})")
        arguments = without_none(_from_json(function.get("arguments", function.get("parameters"))) or {})
        whole = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        read.append(whole if not isinstance(call.get("id"), str) else {"id": call["id"], **whole})
    return read


def tools(value: Any) -> list[dict[str, Any]]:
    """The tools that a row offers, in the form of Transformers, from a list or its JSON; none is an empty list.

    Raises:
        BadRow: one has no name.
    """
    value = _from_json(value)
    read = []
    for tool in [] if is_blank(value) else value if isinstance(value, list) else [value]:
        tool = without_none(_from_json(tool))
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function", tool), Mapping):
            raise BadRow(f"a tool is not described by a mapping ({short(tool)})")
        if not isinstance(tool.get("function", tool).get("name"), str):
            raise BadRow(f"a tool has no name ({short(tool)})")
        read.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)})
    return read


def without_none(value: Any) -> Any:
    """A value without the keys that are None: a table gives every mapping of a column the keys of all."""
    if isinstance(value, Mapping):
        return {key: without_none(part) for key, part in value.items() if part is not None}
    return [without_none(part) for part in value] if isinstance(value, list) else value


def _from_json(value: Any) -> Any:
    """What a text holds as JSON, if it is a list or an object; any other value unchanged."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value, object_pairs_hook=_unique_names)
        except (ValueError, RecursionError):
            return value
    return value


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are unique; json.loads would silently take the last of two."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return mapping


def parse_turns(value: Any) -> Any:
    """The turns that a text holds as JSON or as Python prints them, such as a cell of CSV; any other value unchanged.

    Raises:
        BadRow: an escape in a turn stands for half of a character, which text cannot hold; or the text begins like
            printed turns and cannot be read as such.
    """
    if not isinstance(value, str) or not re.match(r"\s*[\[{]", value):
        return value
    parsed = _from_json(value)
    printed = parsed is value and re.match(r"\s*\[?\s*\{\s*'(role|from|content|value)'\s*:", value)
    if printed:
        try:
            parsed = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise BadRow("turns as Python prints them, which cannot be read back") from error
    turns = parsed if isinstance(parsed, list) else [parsed]
    if turns and all(isinstance(one, dict) and one.keys() & {"role", "from"} for one in turns):
        try:
            json.dumps(turns, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise BadRow("an escape in a turn is half of a character") from error
        return turns
    if printed:
        raise BadRow("turns as Python prints them, which cannot be read back")
    return value


def is_printed_list(value: str) -> bool:
    """Whether a text is a list of texts as Python prints it, which a table makes of a list in a cell."""
    if not re.match(r"\s*\[\s*['\"]", value) or not value.rstrip().endswith("]"):
        return False
    try:
        parsed = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return isinstance(parsed, list) and all(isinstance(part, str) for part in parsed)


def conversation(turns: Any) -> list[Message]:
    """Turns up to the assistant's last one.

    Raises:
        BadRow: as for `messages`, or there is no answer by the assistant, or no question before it.
    """
    return up_to_an_answer(messages(turns))


def up_to_an_answer(dialogue: list[Message]) -> list[Message]:
    """Turns up to the assistant's last one.

    Raises:
        BadRow: there is no answer by the assistant, or no question before it.
    """
    last = max((i for i, each in enumerate(dialogue) if each["role"] == "assistant"), default=-1)
    if last < 0:
        raise BadRow("no turn of the assistant")
    if next(each["role"] for each in dialogue if each["role"] != "system") == "assistant":
        raise BadRow("the assistant speaks first")
    return dialogue[: last + 1]


TRANSCRIPT = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
"""What stands before a turn in HH-RLHF's format."""


def is_transcript(text: str) -> bool:
    r"""Whether a text is a dialogue in HH-RLHF's format: `\n\nHuman: …\n\nAssistant: …`."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def transcript_turns(whole: str) -> list[Message]:
    """The turns of a dialogue in HH-RLHF's format; an empty one of the assistant at the end, to be filled, is left out.

    Raises:
        BadRow: it does not begin with a turn of the human, or a turn is empty.
    """
    first, *parts = TRANSCRIPT.split(whole)
    if first.strip() or not parts:
        raise BadRow("no prompt, and no transcript that begins with a blank line and 'Human:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [turn(roles[role], content.strip()) for role, content in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    if any(is_blank(each["content"]) for each in turns):
        raise BadRow("an empty turn")
    return turns


def transcript(whole: str) -> list[Message]:
    """The turns of a dialogue in HH-RLHF's format that ends with an answer.

    Raises:
        BadRow: as for `transcript_turns`, or the last turn is empty, or not the assistant's.
    """
    turns = transcript_turns(whole)
    if re.search(r"\n\nAssistant:\s*\Z", whole):
        raise BadRow("an empty response")
    return up_to_an_answer(turns)
