"""In front of models that ask over HTTP: the same credentials as for lookups, read anew with every message."""

from __future__ import annotations

import time
from contextvars import ContextVar

import msgspec
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.lookup.audit import Access
from pipeline.lookup.credentials import Refused
from pipeline.lookup.guarding import Guard, address_of, principal_of
from pipeline.lookup.narrowing import NotAllowed
from pipeline.lookup.principal import Principal
from pipeline.lookup.security_headers import secured

_ASKS: ContextVar[HTTPConnection | None] = ContextVar("ctxpipe_mcp_asks", default=None)


class GuardedTransport:
    """An ASGI application before another: who brings no good credential gets no further."""

    def __init__(self, application: ASGIApp, guard: Guard) -> None:
        self._application, self._guard = application, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        request, send = HTTPConnection(scope), secured(send, scope)
        try:
            await self._guard.admit(request)
        except Refused as error:
            self._guard.note(Access("mcp", None, time.perf_counter(), address_of(request)), error)
            await _refusal(error)(scope, receive, send)
            return
        await self._application(scope, receive, send)


class Asker:
    """Of the message that is answered now. Without a guard everything is allowed, as over standard input."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    @staticmethod
    def asks(request: object) -> None:
        """What the transport attached to the message, before anything of it is answered."""
        _ASKS.set(request if isinstance(request, HTTPConnection) else None)

    def principal(self) -> Principal | None:
        """Raises NotAllowed where a message came past the guard."""
        request = _ASKS.get()
        principal = None if request is None else principal_of(request)
        if principal is None and self._guard.active:
            raise NotAllowed("a credential is needed")
        return principal

    def access(self, action: str, context: str, keys: tuple[str, ...] = ()) -> Access:
        """To be noted when it is answered. Raises NotAllowed as `principal`."""
        request = _ASKS.get()
        peer = None if request is None else address_of(request)
        return Access(action, context, time.perf_counter(), peer, self.principal(), keys)

    def note(self, access: Access, error: Exception | None = None) -> None:
        if self._guard.active:
            self._guard.note(access, error)


def _refusal(error: Refused) -> Response:
    body = msgspec.json.encode({"type": "about:blank", "status": error.status, "detail": str(error)})
    headers = {"cache-control": "no-store"}
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="ctxpipe"'
    return Response(body, error.status, headers, "application/problem+json")
