"""Whom the demo answers: by host, origin and length of a request."""

import asyncio

import pytest

from aira.chat.gate import LARGEST, Gate, names_of


async def served(scope, receive, send):
    """An application that reads a request whole and says how long it was."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            from starlette.requests import ClientDisconnect

            raise ClientDisconnect
        length, more = length + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(headers, parts=(b"hi",), method="POST", host="127.0.0.1", more=None):
    """The status and the headers that a request is answered with."""
    sent, waiting = [], list(parts)
    scope = {"type": "http", "method": method, "path": "/", "headers": [(k.encode(), v.encode()) for k, v in headers]}

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(served, names_of(host, more))(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


HOST = ("host", "127.0.0.1:7860")


REQUESTS = [
    ([HOST], 200),
    ([("host", "localhost")], 200),
    ([("host", "LOCALHOST:1")], 200),
    ([("host", "[::1]:7860")], 200),
    ([("host", "[0:0:0:0:0:0:0:1]:7860")], 200),
    ([HOST, ("origin", "http://127.0.0.1:7860")], 200),
    ([("host", "evil.example")], 400),
    ([("host", "evil.example:7860"), ("origin", "http://evil.example:7860")], 400),
    ([("host", "localhost.evil.example")], 400),
    ([("host", "user@evil.example")], 400),
    ([("host", "[")], 400),
    ([("host", "")], 400),
    ([], 400),
    ([HOST, ("origin", "http://evil.example")], 403),
    ([HOST, ("origin", "http://127.0.0.1:80")], 403),
    ([HOST, ("origin", "http://127.0.0.1.evil.example:7860")], 403),
    ([HOST, ("origin", "null")], 403),
    ([HOST, ("origin", "")], 403),
    ([HOST, ("origin", "http://[")], 403),
    ([HOST, ("content-length", str(LARGEST))], 200),
    ([HOST, ("content-length", str(LARGEST + 1))], 413),
    ([HOST, ("content-length", "-1")], 413),
]


@pytest.mark.parametrize("headers, status", REQUESTS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_who_is_answered(headers, status, method):
    """Catches another name, a page of another site, and a long request that are answered, or an origin sent back."""
    got, sent = ask(headers, method=method)
    assert got == status and b"access-control-allow-origin" not in sent


def test_a_long_request_without_its_length():
    """Catches a body that is taken although nothing said how long it would be."""
    part = b"x" * (LARGEST // 4)
    assert ask([HOST], [part] * 4)[0] == 200
    assert ask([HOST], [part] * 5)[0] == 413


def test_names():
    """Catches names of the user that are not taken, and a server for all that answers to any name."""
    assert ask([("host", "chat.example.org")])[0] == 400
    assert ask([("host", "Chat.Example.org:80")], more=["chat.example.org"])[0] == 200
    assert ask([("host", "10.1.2.3")], host="10.1.2.3")[0] == 200
    assert ask([("host", "evil.example")], host="0.0.0.0")[0] == 400
