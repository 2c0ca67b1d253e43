"""`aira demo`: the chat in a browser, with its candidates, and a search in a data set.

It is served only to this machine, unless demo.host says otherwise.
"""

import sys

from aira.commands.shell import command
from aira.config.compose import compose_settings
from aira.config.schema import Chat
from aira.errors import AiraError


@command("chat")
def main() -> None:
    """Compose conf/chat.yaml with the command line, load the models, and serve the page until Ctrl-C."""
    arguments = sys.argv[1:]
    settings = compose_settings(Chat, arguments)
    for key in ("prompt", "input", "output"):
        if getattr(settings, key) is not None:
            raise AiraError(f"{key}= is for `aira chat`; the demo is asked in a browser.")
    from aira.chat.demo import Demo, serve  # torch is imported only after the configuration was checked

    demo = Demo(arguments)
    language = settings.language.code
    demo.chat(language)
    page, address = serve(demo, language)
    print(f"{address} (Ctrl-C ends it)")
    page.block_thread()


if __name__ == "__main__":
    main()
