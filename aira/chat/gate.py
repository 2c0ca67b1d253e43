"""Who the demo answers: browsers that call it by a name of its own, on pages of its own, in short requests."""

import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

LARGEST = 1_000_000
"""Bytes of a request."""

LOCAL = {"localhost", "127.0.0.1", "::1"}


def names_of(host: str, more: list[str] | None) -> set[str]:
    """The names by which a browser may call the server.

    Args:
        host: the address that it listens at; one that stands for all has this machine's names and addresses.
        more: names beside these, such as that of a proxy.
    """
    names = LOCAL | {host, *(more or [])}
    if host in ("0.0.0.0", "::", ""):
        machine = socket.gethostname()
        names |= {machine, socket.getfqdn()}
        try:
            names |= {str(address[4][0]).partition("%")[0] for address in socket.getaddrinfo(machine, None)}
        except OSError:
            print(f"The addresses of {machine} are not known; demo.hosts=[<name>] names those that browsers may use.")
    return {name.lower() for name in names}


class Gate:
    """An ASGI application in front of another, which refuses what it is not for.

    A page of another site cannot ask (its origin is not the host), also where its name was made to lead to this machine
    (its host is none of ours).

    Args:
        app: what is served.
        names: see `names_of`.
    """

    def __init__(self, app: Any, names: set[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with status 400 (host), 403 (origin) or 413 (length), or as the application does."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers, read = Headers(scope=scope), 0
        refused = self._refusal(headers)
        if refused:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                status, message = refused
                await PlainTextResponse(message, status)(scope, receive, send)
            return

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return message if read <= LARGEST else {"type": "http.disconnect"}

        try:
            await self.app(scope, limited, send)
        except ClientDisconnect:
            if read <= LARGEST:
                raise
            await PlainTextResponse("The request is too long.", 413)(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        host, origin, length = headers.get("host", ""), headers.get("origin"), headers.get("content-length", "0")
        if _split(f"//{host}")[0] not in self.names:
            return 400, "This server is not called so. demo.hosts=[<name>] lets browsers use another name."
        if origin is not None and _split(origin) != _split(f"//{host}"):
            return 403, "Pages of other sites cannot ask this server."
        if not length.isdecimal() or int(length) > LARGEST:
            return 413, "The request is too long."
        return None


def _split(url: str) -> tuple[str, int | None]:
    """The host and the port of a URL; no host where it is none."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
        return str(ipaddress.ip_address(name)) if ":" in name else name, port
    except ValueError:
        return "", None
