"""`aira <command> [key=value …]`: Aira from the command line."""

import runpy
import sys

from aira import __version__
from aira.errors import nearest

COMMANDS = {
    "train": "a model: aira train model=opt-1b3 method=dpo language=pt",
    "data": "a look at what a run would read: aira data data.path=mine.jsonl model=smollm2-135m",
    "evaluate": "models, on benchmarks or held-out rows: aira evaluate model.path=<run>/export eval=aira-en",
    "pipeline": "fine-tuning, scorers, rejection sampling, DPO, evaluation and report: aira pipeline pipeline=sample",
    "chat": "with what was trained, in the terminal or from a file: aira chat",
    "demo": "of the chat, in a browser: aira demo",
    "report": "on runs, as a page: aira report runs=outputs",
    "push": "an export to the hub: aira push run=outputs/<date>/<run> repo=<user>/<name>",
    "rejection_sampling": "of preferences from a model's own answers: aira rejection_sampling output=<folder>",
}
"""Each command is the module of `aira.commands` with its name."""


def main() -> None:
    """Run a command as `python -m aira.commands.<command>` does, which is also how its own processes are started."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("aira <command> [key=value …]; aira <command> --help has its keys\n")
        print("\n".join(f"  {command:20} {about}" for command, about in COMMANDS.items()))
    elif name == "--version":
        print(__version__)
    elif name not in COMMANDS:
        print(f"Error: there is no command {name}. {nearest(name, list(COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    else:
        del sys.argv[1]
        runpy.run_module(f"aira.commands.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
