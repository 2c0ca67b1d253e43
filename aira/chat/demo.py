"""The chat in a browser, with its candidates, and a search in a data set.

What users, models and data say is shown as plain text.
"""

import copy
import html
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from aira.chat.explorer import PARTS, Explorer
from aira.chat.load import load
from aira.chat.pipeline import Candidate, Chat
from aira.chat.texts import TEXTS
from aira.config.compose import compose_settings
from aira.config.conf import options
from aira.config.schema import Chat as ChatSettings
from aira.data.turns import Message
from aira.errors import AiraError
from aira.files import install_command

SHOWN = 1000
"""Characters of a text in the table of rows that were found."""


class Demo:
    """What the page does, in every language; models and data are loaded when a language first needs them.

    Args:
        overrides: of conf/chat.yaml, as on the command line.
    """

    def __init__(self, overrides: list[str]) -> None:
        others = [text for text in overrides if not text.startswith("language=")]
        self.settings = {
            code: compose_settings(ChatSettings, [*others, f"language={code}"]) for code in options("language")
        }
        self._chats: dict[str, Chat] = {}
        self._explorers: dict[str, Explorer] = {}

    def chat(self, language: str) -> Chat:
        """The chat in a language."""
        if language not in self._chats:
            self._chats[language] = load(self.settings[language])
        return self._chats[language]

    def reply(
        self, language: str, message: str, history: list[Message], guard: bool, **sampling: Any
    ) -> Iterator[tuple[list[Message], list[Candidate], int]]:
        """Answer a message.

        Args:
            sampling: `n`, `temperature`, `top_k` and `top_p`.

        Yields:
            The conversation with a growing answer, the candidates, and how many messages were forgotten.

        Raises:
            AiraError: the message is empty or too long, or there is no chat model in the language.
        """
        settings = self.settings[language]
        if len(message) > settings.demo.max_characters:
            raise AiraError(TEXTS[language]["too_long"].format(len(message), settings.demo.max_characters))
        chat = copy.copy(self.chat(language))
        chat.set_sampling(repetition_penalty=settings.repetition_penalty, **sampling)
        reply = chat.reply(message, history, seed=settings.seed + len(history) // 2, guard=guard)
        asked = [*history, {"role": "user", "content": message}]
        for text in [*reply.stream(), reply.text]:
            yield [*asked, {"role": "assistant", "content": text}], reply.candidates, reply.forgotten

    def search(self, language: str, text: str, over: str) -> list[list[str]]:
        """Rows of the table of what is like a text.

        Raises:
            AiraError: the text is too long, or the data cannot be read.
        """
        settings = self.settings[language]
        if len(text) > settings.demo.max_characters:
            raise AiraError(TEXTS[language]["too_long"].format(len(text), settings.demo.max_characters))
        if language not in self._explorers:
            data = settings.data
            self._explorers[language] = Explorer(data.path, data.split, data.columns)
        rows = self._explorers[language].search(text, over)
        return [[f"{cosine:.2f}", prompt[:SHOWN], completion[:SHOWN]] for cosine, prompt, completion in rows]


def table(candidates: list[Candidate], language: str) -> list[list[str]]:
    """Rows of the table of candidates."""
    fates = TEXTS[language]["fates"]
    return [
        [
            fates[one.fate],
            "–" if one.reward is None else f"{one.reward:.3f}",
            "–" if one.harmless is None else f"{1 - one.harmless:.3f}",
            one.text,
        ]
        for one in candidates
    ]


def serve(demo: Demo, language: str) -> tuple[Any, str]:
    """Build the page and serve it, without waiting for its end.

    Returns:
        The `gradio.Blocks` and its address.

    Raises:
        AiraError: Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported, too
    try:
        import gradio as gr
    except ImportError as error:
        raise AiraError(f"The demo needs Gradio: {install_command('demo')}.") from error
    from aira.chat.gate import Gate, names_of  # of Gradio's own libraries

    settings = demo.settings[language]
    shown: list[tuple[Any, str, str]] = []  # parts of the page whose texts change with the language

    def add(kind: Any, key: str, prop: str = "label", **settings: Any) -> Any:
        part = kind(**{prop: TEXTS[language][key]}, **settings)
        shown.append((part, prop, key))
        return part

    def headed(code: str, key: str, rows: list[list[str]]) -> dict[str, Any]:
        return {"headers": TEXTS[code][key], "data": rows}

    def as_text(messages: list[Message]) -> list[Message]:
        """The conversation as the Chatbot takes it, which reads HTML even where it renders no Markdown."""
        return [{**one, "content": html.escape(one["content"], quote=False)} for one in messages]

    def refuse(error: AiraError) -> None:
        gr.Warning(html.escape(str(error)), duration=20)  # which Gradio shows as HTML

    plain_text: dict[str, Any] = {"datatype": "str", "type": "array", "interactive": False, "wrap": True, "buttons": []}
    with gr.Blocks(title="Aira", analytics_enabled=False) as page:
        history = gr.State([])  # kept here: what a browser sends as a conversation is not read
        with gr.Row():
            gr.Markdown("# Aira")
            spoken = add(
                gr.Radio,
                "language",
                choices=[("English", "en"), ("Português", "pt")],
                value=language,
                elem_id="language",
            )
        with add(gr.Tab, "chat"), gr.Row():
            with gr.Column(scale=1):
                conversation = add(
                    gr.Chatbot,
                    "chat",
                    render_markdown=False,
                    sanitize_html=True,
                    allow_tags=False,
                    allow_file_downloads=False,
                    latex_delimiters=[],
                    feedback_options=None,
                    buttons=[],
                    height=420,
                    elem_id="conversation",
                )
                forgotten = gr.Markdown(visible=False)
                message = add(
                    gr.Textbox,
                    "ask",
                    "placeholder",
                    show_label=False,
                    max_length=settings.demo.max_characters,
                    max_lines=6,
                    elem_id="message",
                )
                with gr.Row():
                    send = add(gr.Button, "send", "value", variant="primary", elem_id="send")
                    reset = add(gr.Button, "reset", "value", elem_id="reset")
            with gr.Column(scale=1):
                guard = add(gr.Checkbox, "guard", value=True, elem_id="guard")
                with add(gr.Accordion, "sampling", open=True):
                    with gr.Row():
                        n = add(gr.Slider, "n", minimum=1, maximum=10, step=1, value=settings.n)
                        limits: dict[str, Any] = {"minimum": 0, "maximum": 2, "step": 0.05}
                        temperature = add(gr.Slider, "temperature", value=settings.temperature, **limits)
                    with gr.Row():
                        top_k = add(gr.Slider, "top_k", minimum=0, maximum=200, step=1, value=settings.top_k)
                        top_p = add(gr.Slider, "top_p", minimum=0.05, maximum=1, step=0.05, value=settings.top_p)
                candidates = add(
                    gr.Dataframe,
                    "candidates",
                    headers=TEXTS[language]["columns"],
                    column_widths=[100, 115, 105, 275],
                    elem_id="candidates",
                    **plain_text,
                )
        with add(gr.Tab, "explorer", elem_id="explorer"):
            with gr.Row():
                query = add(gr.Textbox, "query", elem_id="query", scale=3, max_length=settings.demo.max_characters)
                choices = [(TEXTS[language][part], part) for part in PARTS]
                over = add(gr.Radio, "over", choices=choices, value=PARTS[0], elem_id="over", scale=1)
            search = add(gr.Button, "search", "value", variant="primary", elem_id="search")
            found = add(
                gr.Dataframe,
                "found",
                headers=TEXTS[language]["rows"],
                column_widths=[115, "45%", "45%"],
                elem_id="found",
                **plain_text,
            )
        with add(gr.Tab, "limits"):
            add(gr.Markdown, "limitations", "value")

        ended: Counter[str | None] = Counter()  # how often a page has ended its conversation, by its session

        def answer(
            request: gr.Request, code: str, text: str, before: list[Message], guarded: bool, *sampling: float
        ) -> Iterator[Any]:
            session = request.session_hash
            conversation_number = ended[session]
            if not text.strip():
                yield [gr.skip()] * 6
                return
            settings = dict(zip(("n", "temperature", "top_k", "top_p"), sampling, strict=True))
            whole = {name: int(settings[name]) for name in ("n", "top_k")}
            emptied: Any = ""
            try:
                for said, several, dropped in demo.reply(code, text, before, guarded, **settings | whole):
                    note = gr.update(value=TEXTS[code]["forgotten"].format(dropped), visible=dropped > 0)
                    rows = headed(code, "columns", table(several, code))
                    yield as_text(said), said, rows, note, emptied, gr.update(interactive=False)
                    emptied = gr.skip()  # the next message may be being typed
                    if ended[session] != conversation_number:
                        return
            except AiraError as error:
                refuse(error)
                yield [gr.skip()] * 6

        def look(code: str, text: str, part: str) -> Any:
            try:
                return headed(code, "rows", demo.search(code, text, part))
            except AiraError as error:
                refuse(error)
                return gr.skip()

        def end(request: gr.Request) -> None:
            ended[request.session_hash] += 1

        def begin(code: str) -> list[Any]:
            return [[], [], headed(code, "columns", []), gr.update(visible=False)]

        def rename(code: str) -> list[Any]:
            over_choices = gr.update(choices=[(TEXTS[code][part], part) for part in PARTS])
            labels = [gr.update(**{prop: TEXTS[code][key]}) for _, prop, key in shown]
            return [*labels, over_choices]

        private: dict[str, Any] = {"api_visibility": "private"}
        in_turn: dict[str, Any] = {"concurrency_id": "answers", "concurrency_limit": 1, **private}
        answered = gr.on(
            [message.submit, send.click],
            answer,
            [spoken, message, history, guard, n, temperature, top_k, top_p],
            [conversation, history, candidates, forgotten, message, send],
            **in_turn,  # the sampling sets the random state of the process
        )
        answered.then(lambda: gr.update(interactive=True), None, send, **private)
        gr.on([query.submit, search.click], look, [spoken, query, over], found, **private)
        # An answer that is being shown would fill the conversation again: it is ended at its next word, and what
        # empties the conversation waits for its turn after it. Gradio's own cancelling does not wait.
        at_once: dict[str, Any] = {"queue": False, **private}
        cleared = [conversation, history, candidates, forgotten]
        gr.on([reset.click, conversation.clear], end, None, None, **at_once).then(begin, spoken, cleared, **in_turn)
        renamed = [*(part for part, _, _ in shown), over]
        changed = spoken.change(end, None, None, **at_once).then(begin, spoken, cleared, **in_turn)
        changed = changed.then(rename, spoken, renamed, show_progress="hidden", **private)
        changed.then(lambda code: headed(code, "rows", []), spoken, found, **private)

    fonts: Any = ["system-ui", "sans-serif"]  # those of the machine: nothing is fetched
    _, address, _ = page.queue(max_size=settings.demo.max_waiting, api_open=False).launch(
        server_name=settings.demo.host,
        server_port=settings.demo.port,
        theme=gr.themes.Default(font=fonts, font_mono=fonts),
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size="1kb",  # nothing is uploaded
    )
    served = page.server.config  # each connection takes its application from it
    served.loaded_app = Gate(served.loaded_app, names_of(settings.demo.host, settings.demo.hosts))
    return page, address
