"""Conversations as the text of a chat template: each answer as it is asked for at inference.

A template may rewrite what stands before an answer: strip earlier reasoning, put a system prompt elsewhere. So each
turn of the assistant is rendered by itself, after the generation prompt of the turns before it. Where a template has no
place for something, or refuses it, that is written in another way, and said.
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from aira.data.texts import BadRow
from aira.data.trees import shared_prefix
from aira.data.turns import Message, turn
from aira.errors import reason_of

LONGEST = 10_000
"""Characters that a chat template may write for each character of a conversation."""

JOINED = "consecutive turns of one role are joined"
SYSTEM_MOVED = "a system turn is written into the user's turn: the chat template has no place for it"
TOOLS_AS_TEXT = "tools and their calls are written as text, in Hermes' form: the chat template has no place for them"
REASONING_AS_TEXT = "reasoning is written between <think> and </think>: the chat template has no place for it"


class Turn(NamedTuple):
    """A turn of the assistant with all that stands before it."""

    text: str
    start: int  # where the answer begins, in characters
    train: bool  # whether it is trained on


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    tools: Sequence[dict[str, Any]] = (),
    last: bool = False,
    consecutive: str = "keep",
) -> tuple[list[Turn], list[str]]:
    """The assistant's turns of a conversation, each as it is asked for at inference.

    Args:
        tools: that may be called.
        last: only the last turn.
        consecutive: what becomes of consecutive turns of one role: `keep` joins them where the template refuses them,
            `join` does so always, `refuse` drops the row.

    Returns:
        The turns, and notes on what is written in another way than the data has it.

    Raises:
        BadRow: the template refuses the conversation, leaves a part of it out, or has no place to answer.
    """
    messages, tools, notes = _as_text(tokenizer.chat_template or "", messages, tools)
    if consecutive == "refuse" and _has_consecutive(messages):
        raise BadRow("consecutive turns of one role")
    problem = BadRow("")
    for variant, more in _variants(messages, consecutive == "join"):
        try:
            return _turns(tokenizer, variant, tools, last), [*notes, *more]
        except BadRow as error:
            problem = problem if str(problem) else error
    raise problem


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    """A conversation as the text after which an answer is asked for, in the same forms as `render` trains on.

    Raises:
        BadRow: the template refuses the conversation, or leaves a part of it out.
    """
    messages, tools, _ = _as_text(tokenizer.chat_template or "", messages, ())
    problem = BadRow("")
    for variant, _ in _variants(messages, join=False):
        try:
            return _before(tokenizer, variant, tools)
        except BadRow as error:
            problem = problem if str(problem) else error
    raise problem


def _has_consecutive(messages: list[Message]) -> bool:
    """Whether two turns of one role follow each other, those of tools aside."""
    return any(
        one["role"] == other["role"] != "tool" and not one.get("tool_calls") for one, other in pairwise(messages)
    )


def _variants(messages: list[Message], join: bool) -> Iterator[tuple[list[Message], list[str]]]:
    """The conversation as it is, and in forms that more templates take."""
    repeated = _has_consecutive(messages)
    join &= repeated
    joined = (_joined(messages), [JOINED])
    if not join:
        yield messages, []
    if repeated:
        yield joined
    if any(message["role"] == "system" for message in messages):
        moved = _without_system(messages)
        if not join:
            yield moved, [SYSTEM_MOVED]
        yield _joined(moved), [SYSTEM_MOVED, JOINED] if len(_joined(moved)) < len(moved) else [SYSTEM_MOVED]


def _joined(messages: list[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        if before and before["role"] == message["role"] != "tool" and not before.get("tool_calls"):
            joined[-1] = before | message | {"content": f"{before['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _without_system(messages: list[Message]) -> list[Message]:
    """The turns, with each system turn before the text of the user's next turn, or else after that of the last one."""
    rest: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user" and waiting:
            rest.append(message | {"content": "\n\n".join([*waiting, message["content"]])})
            waiting = []
        elif message["role"] == "assistant" and waiting and rest and rest[-1]["role"] == "user":
            rest[-1] = rest[-1] | {"content": "\n\n".join([rest[-1]["content"], *waiting])}
            waiting = []
            rest.append(message)
        else:
            rest.append(message)
    return rest


def _as_text(
    template: str, messages: list[Message], tools: Sequence[dict[str, Any]]
) -> tuple[list[Message], Sequence[dict[str, Any]], list[str]]:
    """The conversation with tools and reasoning as text, where the template reads none."""
    notes = []
    has_calls = any(message["role"] == "tool" or "tool_calls" in message for message in messages)
    if (tools or has_calls) and not ("tools" in template and "tool_calls" in template):
        messages, tools = _with_written_tools(messages, tools), ()
        notes.append(TOOLS_AS_TEXT)
    if any("reasoning_content" in message for message in messages):
        known = next((name for name in ("reasoning_content", "thinking") if name in template), None)
        if known == "thinking":
            messages = [_renamed(message, "reasoning_content", "thinking") for message in messages]
        elif known is None and "</think>" not in template:
            notes.append(REASONING_AS_TEXT)
            messages = [
                message | {"content": f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}"}
                if "reasoning_content" in message
                else message
                for message in messages
            ]
    return messages, tools, notes


def _renamed(message: Message, old: str, new: str) -> Message:
    return {new if key == old else key: value for key, value in message.items()}


def _with_written_tools(messages: list[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """Tools in the system turn, calls in the assistant's and results in the user's, as JSON between Hermes' tags."""
    written: list[Message] = []
    if tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        described = f"You may call these functions:\n<tools>\n{listed}\n</tools>"
        first = messages[0]["role"] == "system"
        content = f"{messages[0]['content']}\n\n{described}" if first else described
        written, messages = [turn("system", content)], messages[first:]
    for message in messages:
        if "tool_calls" in message:
            calls = [
                f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
                for call in message["tool_calls"]
            ]
            content = "\n".join([*filter(None, [message["content"]]), *calls])
            written.append({key: part for key, part in message.items() if key != "tool_calls"} | {"content": content})
        elif message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            before = written[-1] if written else None
            if before and before["role"] == "user" and before["content"].startswith("<tool_response>"):
                written[-1] = turn("user", f"{before['content']}\n{content}")
            else:
                written.append(turn("user", content))
        else:
            written.append(message)
    return written


def _turns(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Sequence[dict[str, Any]], last: bool
) -> list[Turn]:
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    turns = []
    for i in answers[-1:] if last else answers:
        before = _before(tokenizer, messages[:i], tools)
        after = apply(tokenizer, messages[: i + 1], tools)
        text = after if after.startswith(before) else _after_opened_reasoning(before, after, messages[i])
        if messages[i]["content"].strip() not in text[len(before) :]:
            raise BadRow("the chat template leaves out an answer, or changes its text")
        turns.append(Turn(text, len(before), messages[i].get("train", True)))
    return turns


def _before(tokenizer: PreTrainedTokenizerBase, messages: list[Message], tools: Sequence[dict[str, Any]]) -> str:
    """The text after which an answer is asked for.

    Raises:
        BadRow: the template refuses the turns, or the text of one is not in it.
    """
    text = apply(tokenizer, messages, tools, add_generation_prompt=True)
    for message in messages:
        if message["role"] in ("system", "user") and message["content"].strip() not in text:
            raise BadRow(f"the chat template leaves out a {message['role']} turn, or changes its text")
    return text


def _after_opened_reasoning(before: str, after: str, answer: Message) -> str:
    """The answer after a generation prompt that opens a tag for reasoning, which finished turns do not have.

    So do the templates of DeepSeek-R1 and its like. The tag is closed before the answer, as the model would do.

    Raises:
        BadRow: the generation prompt is otherwise than what stands before a finished answer.
    """
    common = before[: shared_prefix(before, after)]
    opened = re.search(r"<(\w+)>\s*\Z", before[len(common) :])
    if not opened:
        raise BadRow("the chat template asks for an answer otherwise than it writes one")
    reasoning = answer.get("reasoning_content", "").strip("\n")
    return f"{before}{reasoning}\n</{opened[1]}>\n\n{after[len(common) :]}"


def apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Message],
    tools: Sequence[dict[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """A conversation as the text of the chat template.

    Raises:
        BadRow: the template refuses it.
    """
    shown = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(
            shown, tools=list(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # a template is third-party code
        raise BadRow(f"the chat template refuses the conversation: {reason_of(error)}") from error
    if len(text) > LONGEST * (1 + sum(len(message["content"]) for message in messages) + len(str(tools))):
        raise BadRow(f"the chat template makes {len(text)} characters of it")
    return text
