"""In front of the routes: a lookup of one key without credentials to ask for, answered by as little as can be.

Of a lookup over HTTP, routing, the objects of a web framework and its exception handlers took longer than the lookup.
What is here answers what almost all requests are, with the same bytes; whatever is unusual goes on to the routes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.core import metrics
from pipeline.core.errors import CtxpipeError
from pipeline.lookup.admission import Admission, Ticket
from pipeline.lookup.admitting import Shed, admit, admitted, late, shed_answer, shed_problem
from pipeline.lookup.answer import Answer
from pipeline.lookup.at_once import TICKET, AtOnce, Headers, Told
from pipeline.lookup.options import NO_OPTIONS, LookupOptions, read_options
from pipeline.lookup.outcomes import Outcomes
from pipeline.lookup.security_headers import secured, secured_at_once
from pipeline.lookup.service import LookupService, LookupUnavailable

PREFIX = "/v1/contexts/"
ASKED = ("near", "store", "replica")
"""Answers of these rungs tell how long answers take, unless they waited for a position; those of others only where they
did not wait for the store."""
Refuse = Callable[[None, Exception], Awaitable[Response]]


class HotPath:
    """ASGI. `refuse` makes the answer where there is no bundle in time."""

    def __init__(self, app: ASGIApp, service: LookupService, refuse: Refuse, admission: Admission | None) -> None:
        self._app, self._service, self._refuse, self._admission = app, service, refuse, admission
        self._counts: dict[tuple[str, str], Callable[[], None]] = {}
        self._seconds = metrics.lookup_seconds.labels("get").observe
        self._outcomes = Outcomes("get")

    def at_once(self, path: str, query: bytes, headers: Headers, over_tls: bool) -> AtOnce:
        """What memory has, or that there is no time for this one. Whatever is wrong with a request, or not here, goes
        the way of the routes, with its ticket."""
        context, key = _of_path(path)
        if not context:
            return None
        began_s = time.perf_counter()
        try:
            options, known = _options(query, headers)
            budget_ms = self._service.budget_ms(context, options)
        except CtxpipeError:
            return None
        refusal = late(self._admission, budget_ms)
        if refusal is None:
            answer = self._service.at_hand(context, key, budget_ms) if options.plain else None
            if answer is not None:
                return self._told(answer, known, None, options, began_s, budget_ms, over_tls)
            if self._admission is None:
                return None
            found = admit(self._admission, None, budget_ms)
            if isinstance(found, Ticket):
                return found
            refusal = found
        self._outcomes.shed()
        return secured_at_once(shed_answer(refusal), over_tls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            context, key = _of_path(scope["path"])
            if context:
                await self._get(context, key, scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _get(self, context: str, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.perf_counter()
        ticket: Ticket | None = scope.pop(TICKET, None)
        looked = ticket is not None
        try:
            options, known = _options(scope["query_string"], scope["headers"])
            budget_ms = self._service.budget_ms(context, options)
            if ticket is None and self._admission is not None:
                ticket = admitted(self._admission, None, budget_ms)
            answer = await self._service.get(context, key, options, looked)
        except (LookupUnavailable, Shed) as error:
            self._leave(ticket, typical=False)
            if isinstance(error, Shed):
                self._outcomes.shed()
                response = await shed_problem(None, error)
            else:
                self._outcomes.failed()
                response = await self._refuse(None, error)
            await response(scope, receive, secured(send, scope))
            return
        except BaseException as error:
            self._leave(ticket, typical=False)
            if not isinstance(error, Exception):
                raise
            # The routes meet it again, and have an answer to each.
            await self._app(scope, receive, send)
            return
        over_tls = scope.get("scheme") == "https"
        status, headers, body = self._told(answer, known, ticket, options, began_s, budget_ms, over_tls)
        start: Message = {"type": "http.response.start", "status": status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    def _told(
        self,
        answer: Answer,
        known: str | None,
        ticket: Ticket | None,
        options: LookupOptions,
        began_s: float,
        budget_ms: float,
        over_tls: bool,
    ) -> Told:
        """Counted, with all headers."""
        self._leave(ticket, False if options.positions else True if answer.rung in ASKED else None)
        count = self._counts.get((answer.context, answer.status))
        if count is None:
            count = metrics.lookup_answers.labels(answer.context, answer.status).inc
            self._counts[answer.context, answer.status] = count
        count()
        duration_s = time.perf_counter() - began_s
        self._seconds(duration_s)
        self._outcomes.answered(duration_s, budget_ms)
        return secured_at_once(told(answer, known, duration_s), over_tls)

    def _leave(self, ticket: Ticket | None, typical: bool | None) -> None:
        if ticket is not None and self._admission is not None:
            self._admission.done(ticket, typical)


def _of_path(path: str) -> tuple[str, str]:
    """(context, key); empty where it is another path."""
    if path.startswith(PREFIX):
        context, slash, key = path[len(PREFIX) :].partition("/")
        if slash and ":" not in context:
            return context, key
    return "", ""


_JSON = (b"content-type", b"application/json")
_CACHE = (b"cache-control", b"private, no-cache")


def told(answer: Answer, known: str | None, duration_s: float) -> Told:
    """(status, headers, body) of an answer over HTTP: with what a client may want to know without reading the body, and
    without one where `known`, an If-None-Match, has these bytes."""
    age_ms: float | None = 0.0
    for age in answer.age_ms.values():
        age_ms = None if age is None or age_ms is None else max(age, age_ms)
    headers = [
        _CACHE,
        (b"server-timing", b"lookup;dur=%.2f" % (duration_s * 1000)),
        (b"x-context-status", answer.status.encode()),
        (b"x-context-age-ms", b"unknown" if age_ms is None else b"%.0f" % age_ms),
    ]
    if answer.hash is not None:
        headers.append((b"etag", b'"%b"' % answer.hash.encode()))
        if known is not None and _matches(known, answer.hash):
            return 304, headers, b""
    body = answer.to_json()
    headers += (_JSON, (b"content-length", b"%d" % len(body)))
    return 404 if answer.bundle is None else 200, headers, body


def _matches(known: str, etag: str) -> bool:
    """If-None-Match: a list of tags, weak ones too, or *."""
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in known.split(",")]
    return etag in tags or "*" in tags


def _options(query: bytes, headers: Headers) -> tuple[LookupOptions, str | None]:
    """And the If-None-Match. Raises BadOptions."""
    known, timeout, grpc_timeout = None, None, None
    for name, value in headers:
        if name == b"if-none-match":
            known = value.decode("latin-1")
        elif name == b"x-request-timeout-ms":
            timeout = timeout or value
        elif name == b"grpc-timeout":
            grpc_timeout = grpc_timeout or value
    if not query and timeout is None and grpc_timeout is None:
        return NO_OPTIONS, known
    return _read_options(query, timeout, grpc_timeout), known


@lru_cache(1_000)
def _read_options(query: bytes, timeout: bytes | None, grpc_timeout: bytes | None) -> LookupOptions:
    """Most callers ask for the same all the time. Raises BadOptions."""
    given = {"x-request-timeout-ms": timeout, "grpc-timeout": grpc_timeout}
    headers = {name: value.decode("latin-1") for name, value in given.items() if value is not None}
    return read_options(headers, parse_qsl(query.decode("latin-1"), keep_blank_values=True))
