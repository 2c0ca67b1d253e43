"""`aira chat`: talk to a trained model.

In a conversation, /why shows the candidates of the last answer, /reset forgets the conversation, /lang pt changes the
language, /quit ends. `prompt=… --json` answers one message for a script, `input=… output=…` a file.
"""

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aira.chat.load import load
from aira.commands.shell import command
from aira.config.compose import compose_settings
from aira.config.schema import Chat
from aira.errors import AiraError, reason_of
from aira.files import acquire_lock, as_json, check_exists, check_writable

COMMANDS = "/why /reset /lang en|pt /quit"


@command("chat")
def main() -> None:
    """Compose conf/chat.yaml with the command line, and chat."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    prompts = [text for text in arguments if text.startswith("prompt=")]
    settings = compose_settings(Chat, [text for text in arguments if text not in prompts])
    if prompts:  # not parsed by Hydra, since a message may have any character
        settings = settings.model_copy(update={"prompt": prompts[-1].removeprefix("prompt=")})
    for text in arguments:
        if text.startswith(("demo.", "data.")):
            raise AiraError(f"{text} is for `aira demo`; the chat in a terminal does not read it.")
    _check(settings)
    rows = list(_rows(Path(settings.input))) if settings.input else []
    if settings.output:
        _read_answers(Path(settings.output), rows)  # checked before anything is loaded
    chat = load(settings)
    if settings.prompt is not None:
        reply = chat.reply(settings.prompt, seed=settings.seed)
        print(as_json(asdict(reply), ensure_ascii=False) if "--json" in sys.argv else reply.text)
    elif settings.output:
        answer_file(chat, rows, Path(settings.output), settings.seed)
    else:
        talk(chat, settings)


def _check(settings: Chat) -> None:
    if bool(settings.input) != bool(settings.output):
        raise AiraError("input= and output= belong together: a file to read, and one to write.")
    if settings.input and settings.output and Path(settings.input).resolve() == Path(settings.output).resolve():
        raise AiraError(f"output={settings.output} is the input itself. Name another file.")
    if settings.input and settings.prompt is not None:
        raise AiraError("prompt= answers one message and input= a file: give one of them.")
    if "--json" in sys.argv and settings.prompt is None:
        raise AiraError(
            '--json is for one message: prompt="Who are you?" --json. A file is answered as JSON Lines by itself.'
        )


def _rows(file: Path) -> Iterator[list[dict[str, str]]]:
    """The conversations of a file, each ending with the user's turn."""
    check_exists("input", str(file))
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AiraError(f"input={file} cannot be read as text in UTF-8: {reason_of(error)}.") from error
    for number, line in enumerate(content.removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            if {"prompt", "messages"} <= {key for key in row if row[key]}:
                raise AiraError(f"{file}, row {number}: it has both a prompt and messages. Leave one of them out.")
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            valid = messages[-1]["role"] == "user" and all(message["content"].strip() for message in messages)
            valid &= {message["role"] for message in messages} <= {"system", "user", "assistant"}
            "".join(message["content"] for message in messages).encode()  # raises for a lone surrogate
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            valid = False
        if not valid:
            raise AiraError(
                f'{file}, row {number}: a row is {{"prompt": "…"}} or {{"messages": [{{"role": "user", '
                f'"content": "…"}}]}}, with the user\'s turn last and no empty text.'
            )
        yield messages


START = b'{"messages": ['
"""The beginning of every row of answers."""


def _read_answers(output: Path, rows: list[list[dict[str, str]]], made_by: str | None = None) -> list[bytes]:
    """The complete rows of an earlier call; only an incomplete last row may follow them.

    Args:
        made_by: the key of the models and settings; None if it is not known yet.

    Raises:
        AiraError: `output` is a folder, cannot be written, or holds something else, or answers to other conversations,
            of another model, or with other settings.
    """
    if not output.exists():
        check_writable("output", str(output.parent))
        return []
    if not output.is_file():
        raise AiraError(f"output={output} is no file. Name one: output=<file>.jsonl.")
    *lines, rest = output.read_bytes().split(b"\n")  # the rest is a row that was cut off, or empty
    if not (rest.startswith(START) or START.startswith(rest)):
        raise AiraError(f"output={output} exists, and holds no answers of this command. Name another file.")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            messages, answer, key = row["messages"], row["text"], row.get("made_by")
        except (ValueError, TypeError, KeyError, RecursionError):
            messages, answer, key = None, None, None
        if answer is None:
            raise AiraError(f"output={output}, row {number}: this is no answer of this command. Name another file.")
        if messages != (rows[number - 1] if number <= len(rows) else messages):
            raise AiraError(f"{output}, row {number}: it answers another conversation. Name another output=.")
        if made_by is not None and key != made_by:
            raise AiraError(
                f"{output}, row {number}: it was answered by another model, or with other settings. Name another "
                "output=, or use the same ones."
            )
    return lines


def answer_file(chat: Any, rows: list[list[dict[str, str]]], output: Path, seed: int) -> None:
    """Answer conversations into a JSON Lines file, one row each; existing rows are kept.

    Raises:
        AiraError: the file holds something else, or answers to other conversations, of another model or with other
            settings; or another process writes it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        acquire_lock(output.with_name(f".{output.name[:50]}.lock"), output),
        output.open("a", encoding="utf-8") as file,
    ):
        made_by = f"{chat.key()}-{seed}" if rows else ""
        lines = _read_answers(output, rows, made_by)
        file.truncate(sum(len(line) + 1 for line in lines))
        for i in tqdm(range(len(lines), len(rows)), initial=len(lines), total=len(rows), desc="Answers"):
            *history, last = rows[i]
            try:
                reply = chat.reply(last["content"], history, seed=seed + i)
            except AiraError as error:
                raise AiraError(f"Row {i + 1}: {error}") from error
            file.write(as_json({"messages": rows[i], **asdict(reply), "made_by": made_by}, ensure_ascii=False) + "\n")
            file.flush()


def talk(chat: Any, settings: Chat) -> None:
    """A conversation in the terminal."""
    history: list[dict[str, str]] = []
    reply, turn = None, 0
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(
            errors="surrogateescape"
        )  # so that a message that is not UTF-8 is refused, and not the input
    print(COMMANDS, file=sys.stderr)
    while True:
        try:
            message = input("> ").strip()
        except EOFError:
            return
        command, _, argument = message.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            history, turn = [], 0
        elif command == "/why":
            print(table(reply.candidates) if reply else "Nothing was answered yet.")
        elif command == "/lang":
            try:
                overrides = [text for text in sys.argv[1:] if not text.startswith(("language=", "--"))]
                settings = compose_settings(Chat, [*overrides, f"language={argument}"])
                chat, history, turn = load(settings), [], 0
            except AiraError as error:
                print(f"Error: {error}", file=sys.stderr)
        elif command.startswith("/"):
            print(f"There is no command {command}: {COMMANDS}", file=sys.stderr)
        elif message:
            try:
                reply = chat.reply(message, history, seed=settings.seed + turn)
            except AiraError as error:
                print(f"Error: {error}", file=sys.stderr)
                continue
            printed = ""
            for text in reply.stream():
                print(text[len(printed) :], end="", flush=True)
                printed = text
            print()
            if reply.forgotten:
                print(
                    f"({reply.forgotten} earlier messages did not fit into the context, and were left out.)",
                    file=sys.stderr,
                )
            history += [{"role": "user", "content": message}, {"role": "assistant", "content": reply.text}]
            turn += 1


def table(candidates: list[Any]) -> str:
    """The candidates as a table, with their scores and fates."""
    lines = [f"{'':10}  {'reward':>8}  {'harmless':>8}  answer"]
    for candidate in candidates:
        reward = "–" if candidate.reward is None else f"{candidate.reward:.3f}"
        harmless = "–" if candidate.harmless is None else f"{candidate.harmless:.3f}"
        lines.append(f"{candidate.fate:10}  {reward:>8}  {harmless:>8}  {' '.join(candidate.text.split())[:200]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
