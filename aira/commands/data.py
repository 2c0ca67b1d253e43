"""`aira data data.path=mine.jsonl model=smollm2-135m method=sft`: what a run would read, without training.

It takes the keys of `aira train`, and prints as what the columns are read, what is dropped or cut and why, the first
examples as the model sees them (what is scored in colour, or else between « and »), lengths, and the cost of an epoch.
"""

import sys

from aira.commands.shell import command
from aira.config.compose import chosen_model, compose_settings
from aira.config.schema import Train
from aira.files import check_exists


@command("train")
def main() -> None:
    """Compose conf/train.yaml with the command line, and print what its run would read."""
    settings = compose_settings(Train, [*sys.argv[1:], *chosen_model(sys.argv[1:])])
    check_exists("data.path", settings.data.path)
    from aira.preview import preview  # torch is imported only after the configuration was checked

    for line in preview(settings, color=sys.stdout.isatty()):
        print(line)


if __name__ == "__main__":
    main()
