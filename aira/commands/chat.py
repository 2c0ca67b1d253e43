"""`aira chat`: talk to what was trained.

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
from aira.files import as_json, check_exists, check_writable, locked

COMMANDS = "/why /reset /lang en|pt /quit"


@command("chat")
def main() -> None:
    """Compose conf/chat.yaml with the command line, and chat."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    asked = [text for text in arguments if text.startswith("prompt=")]
    settings = compose_settings(Chat, [text for text in arguments if text not in asked])
    if asked:  # as it stands, since a message may have any of the characters that Hydra reads
        settings = settings.model_copy(update={"prompt": asked[-1].removeprefix("prompt=")})
    _check(settings)
    rows = list(_rows(Path(settings.input))) if settings.input else []
    if settings.output:
        _kept(Path(settings.output), rows)  # before anything is loaded
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
        whole = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AiraError(f"input={file} cannot be read as text in UTF-8: {reason_of(error)}.") from error
    for number, line in enumerate(whole.removesuffix("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
            if {"prompt", "messages"} <= {key for key in row if row[key]}:
                raise AiraError(f"{file}, row {number}: it has both a prompt and messages. Leave one of them out.")
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            fine = messages[-1]["role"] == "user" and all(one["content"].strip() for one in messages)
            fine &= {one["role"] for one in messages} <= {"system", "user", "assistant"}
            "".join(one["content"] for one in messages).encode()  # half of a character is no text
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            fine = False
        if not fine:
            raise AiraError(
                f'{file}, row {number}: a row is {{"prompt": "…"}} or {{"messages": [{{"role": "user", '
                f'"content": "…"}}]}}, with the user\'s turn last and no empty text.'
            )
        yield messages


START = b'{"messages": ['
"""How a row of answers begins."""


def _kept(output: Path, rows: list[list[dict[str, str]]], made_by: str | None = None) -> list[bytes]:
    """The rows of answers that are there already; nothing else is ever cut off but a row that was begun.

    Args:
        made_by: what answers; None where that is not known yet.

    Raises:
        AiraError: it is a folder, or cannot be written, or holds something else, or answers to other conversations, or
            by another model, or with other settings.
    """
    if not output.exists():
        check_writable("output", str(output.parent))
        return []
    if not output.is_file():
        raise AiraError(f"output={output} is no file. Name one: output=<file>.jsonl.")
    *lines, cut = output.read_bytes().split(b"\n")  # a last part was cut off
    if not (cut.startswith(START) or START.startswith(cut)):
        raise AiraError(f"output={output} is there, and holds no answers of this command. Name another file.")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            messages, there, maker = row["messages"], row["text"], row.get("made_by")
        except (ValueError, TypeError, KeyError, RecursionError):
            messages, there, maker = None, None, None
        if there is None:
            raise AiraError(f"output={output}, row {number}: this is no answer of this command. Name another file.")
        if messages != (rows[number - 1] if number <= len(rows) else messages):
            raise AiraError(f"{output}, row {number}: it answers another conversation. Name another output=.")
        if made_by is not None and maker != made_by:
            raise AiraError(
                f"{output}, row {number}: it was answered by another model, or with other settings. Name another "
                "output=, or give the same ones."
            )
    return lines


def answer_file(chat: Any, rows: list[list[dict[str, str]]], output: Path, seed: int) -> None:
    """Answer conversations into a JSON Lines file, a row each; rows that are there are not answered again.

    Raises:
        AiraError: the file holds answers to other conversations, by another model, with other settings, or something
            else, or another process writes it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output.with_name(f".{output.name[:50]}.lock"), output), output.open("a", encoding="utf-8") as file:
        made_by = f"{chat.key()}-{seed}" if rows else ""
        lines = _kept(output, rows, made_by)
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
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are refused as a message
    print(COMMANDS, file=sys.stderr)
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            return
        command, _, argument = said.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            history, turn = [], 0
        elif command == "/why":
            print(table(reply.candidates) if reply else "Nothing was answered yet.")
        elif command == "/lang":
            try:
                chosen = [text for text in sys.argv[1:] if not text.startswith(("language=", "--"))]
                settings = compose_settings(Chat, [*chosen, f"language={argument}"])
                chat, history, turn = load(settings), [], 0
            except AiraError as error:
                print(f"Error: {error}", file=sys.stderr)
        elif command.startswith("/"):
            print(f"There is no command {command}: {COMMANDS}", file=sys.stderr)
        elif said:
            try:
                reply = chat.reply(said, history, seed=settings.seed + turn)
            except AiraError as error:
                print(f"Error: {error}", file=sys.stderr)
                continue
            shown = ""
            for part in reply.stream():
                print(part[len(shown) :], end="", flush=True)
                shown = part
            print()
            if reply.forgotten:
                print(f"({reply.forgotten} earlier messages did not fit, and were not read.)", file=sys.stderr)
            history += [{"role": "user", "content": said}, {"role": "assistant", "content": reply.text}]
            turn += 1


def table(candidates: list[Any]) -> str:
    """The candidates, with what became of them."""
    lines = [f"{'':10}  {'reward':>8}  {'harmless':>8}  answer"]
    for one in candidates:
        reward = "–" if one.reward is None else f"{one.reward:.3f}"
        harmless = "–" if one.harmless is None else f"{one.harmless:.3f}"
        lines.append(f"{one.fate:10}  {reward:>8}  {harmless:>8}  {' '.join(one.text.split())[:200]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
