"""In front of every route that gives data away: who asks, may they, and a line that says so afterwards."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from pipeline.lookup.audit import Access, Audit
from pipeline.lookup.credentials import Gate, Peer
from pipeline.lookup.narrowing import NotAllowed
from pipeline.lookup.principal import Principal

Endpoint = Callable[[Request], Awaitable[Response]]
PRINCIPAL, AUDITED_KEYS, CERTIFICATE = "ctxpipe.principal", "ctxpipe.keys", "ctxpipe.certificate"
"""Of an ASGI scope: who asks, which keys they asked for, and the certificate of the connection (getpeercert())."""


class Guard:
    """`protect` wraps an endpoint; `admit` and `note` do its two parts for who has no endpoints. Without a gate nothing
    is asked, which `serve` allows on this machine only."""

    def __init__(self, gate: Gate | None = None, audit: Audit | None = None) -> None:
        self._gate, self._audit = gate, audit

    @property
    def active(self) -> bool:
        return self._gate is not None

    def protect(self, action: str | None, endpoint: Endpoint) -> Endpoint:
        """`action` is the scope that it takes, of the route's context if it has one; None: any good credential."""
        gate = self._gate
        if gate is None:
            return endpoint

        async def guarded(request: Request) -> Response:
            access = Access(action or "list", _context_of(request), time.perf_counter(), address_of(request))
            try:
                access.principal = await self.admit(request)
                if action is not None:
                    refuse_without_scope(access.principal, action, access.context)
                response = await endpoint(request)
            except Exception as error:
                self._tell(access, request, error=error)
                raise
            self._tell(access, request, response=response)
            return response

        return guarded

    async def admit(self, request: HTTPConnection) -> Principal | None:
        """Who asks, also for `principal_of`; None without a gate. Raises Refused."""
        if self._gate is None:
            return None
        principal = await self._gate.principal(request.headers, _peer(request))
        request.scope[PRINCIPAL] = principal
        return principal

    def note(self, access: Access, error: Exception | None = None) -> None:
        """A line for the audit, where one is kept: it was answered, unless there is an error."""
        if self._audit is not None:
            self._audit.tell(access, 200 if error is None else None, error)

    def _tell(
        self, access: Access, request: Request, response: Response | None = None, error: Exception | None = None
    ) -> None:
        if self._audit is None:
            return
        key = request.path_params.get("key")
        access.keys = request.scope.get(AUDITED_KEYS) or ([] if key is None else [key])
        if response is not None:
            access.answered = response.headers.get("x-context-status", "")
        self._audit.tell(access, None if response is None else response.status_code, error)


def principal_of(request: HTTPConnection) -> Principal | None:
    """Who asks; None where nothing guards."""
    principal: Principal | None = request.scope.get(PRINCIPAL)
    return principal


def refuse_without_scope(principal: Principal | None, action: str, context: str | None) -> None:
    """Raises NotAllowed; the same words for a context that is served and one that is not. None may do everything."""
    if principal is not None and not principal.may(action, context):
        scope = action if context is None else f"{action}:{context}"
        raise NotAllowed(f"this credential lacks the scope {scope}")


def _context_of(request: Request) -> str | None:
    context: str | None = request.path_params.get("context")
    return context


def address_of(request: HTTPConnection) -> str | None:
    return None if request.client is None else request.client.host


def _peer(request: HTTPConnection) -> Peer:
    return Peer(address_of(request), request.scope.get("extensions", {}).get(CERTIFICATE))
