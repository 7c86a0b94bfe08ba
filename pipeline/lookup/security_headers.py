"""Headers that keep browsers from doing more with an answer than showing it, on every answer, errors too."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send

from pipeline.lookup.at_once import Told

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}
TRANSPORT_SECURITY = (b"strict-transport-security", b"max-age=31536000")


class SecuredApplication(Starlette):
    """Starlette, whose own middleware would leave out the answer to an error that nobody expected. An answer may bring
    a header of its own, as a page does that needs its scripts."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        await super().__call__(scope, receive, secured(send, scope))


def secured(send: Send, scope: Scope) -> Send:
    """Sends with the headers that an answer does not bring itself."""
    over_tls = scope.get("scheme") == "https"

    async def send_secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_missing(message.get("headers", ()), over_tls)]
        await send(message)

    return send_secured


def _missing(headers: Iterable[tuple[bytes, bytes]], over_tls: bool) -> list[tuple[bytes, bytes]]:
    names = {name for name, _ in headers}
    found = [(name, value) for name, value in HEADERS.items() if name not in names]
    return [*found, TRANSPORT_SECURITY] if over_tls else found


_ALL = tuple(HEADERS.items())


def secured_at_once(told: Told, over_tls: bool) -> Told:
    """With all headers, of an answer that brings none of them."""
    status, headers, body = told
    return status, [*headers, *_ALL, *((TRANSPORT_SECURITY,) if over_tls else ())], body
