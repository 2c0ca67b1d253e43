"""`aira demo`: the chat in a browser, with its candidates, and a search in a data set.

It is served to this machine alone, unless demo.host says otherwise.
"""

import sys

from aira.chat.demo import Demo, serve
from aira.commands.shell import command
from aira.config.compose import compose_config
from aira.config.record import plain
from aira.errors import AiraError


@command("chat")
def main() -> None:
    """Compose conf/chat.yaml with the command line, load the models, and serve the page until Ctrl-C."""
    arguments = sys.argv[1:]
    values = plain(compose_config("chat", arguments))
    for key in ("prompt", "input", "output"):
        if values[key] is not None:
            raise AiraError(f"{key}= is for `aira chat`; the demo is asked in a browser.")
    demo = Demo(arguments)
    language = values["language"]["code"]
    demo.chat(language)
    page, address = serve(demo, language)
    print(f"{address} (Ctrl-C ends it)")
    page.block_thread()


if __name__ == "__main__":
    main()
