"""In front of a server that asks nobody who they are: a page of another site must not read it through a browser here.

Such a page can make its own name lead to 127.0.0.1 (DNS rebinding); what it can't is send another Host than that name.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.lookup.at_once import AtOnce, Headers, at_once_of
from pipeline.lookup.security_headers import secured

_PROBLEM = msgspec.json.encode(
    {
        "type": "about:blank",
        "title": "Misdirected Request",
        "status": 421,
        "detail": "without an access section this server answers to localhost and to addresses, not to other names",
    }
)


class OwnNamesOnly:
    """ASGI. `localhost` and addresses are answered, other names are not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._at_once = app, at_once_of(app)

    def at_once(self, path: str, query: bytes, headers: Headers, over_tls: bool) -> AtOnce:
        if self._at_once is None:
            return None
        for name, value in headers:
            if name == b"host" and not is_own(value):
                return None
        return self._at_once(path, query, headers, over_tls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for name, value in scope["headers"]:
                if name == b"host" and not is_own(value):
                    response = Response(_PROBLEM, 421, media_type="application/problem+json")
                    await response(scope, receive, secured(send, scope))
                    return
        await self._app(scope, receive, send)


@lru_cache(1000)
def is_own(host: bytes) -> bool:
    """Of a Host header, with or without a port."""
    name = host.decode("latin-1").strip().lower()
    if name.startswith("["):
        name, _, port = name[1:].partition("]")
        if port and not (port[0] == ":" and port[1:].isdigit()):
            return False
    elif name.count(":") <= 1:
        name = name.partition(":")[0]
    if name in ("localhost", "") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
