"""Lookups over HTTP: the only import of a web framework. Bundles go out as the bytes that are stored."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from importlib.metadata import version as package_version
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from pipeline.core import metrics
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.core.health import Health
from pipeline.core.logging import SparseLog
from pipeline.lookup import openapi
from pipeline.lookup.admission import Admission
from pipeline.lookup.admitting import Shed, admission_of, shed_problem
from pipeline.lookup.answer import Answer
from pipeline.lookup.credentials import Refused
from pipeline.lookup.guarding import AUDITED_KEYS, Guard, principal_of
from pipeline.lookup.history import History
from pipeline.lookup.hot_path import HotPath, told
from pipeline.lookup.http_health import Probes
from pipeline.lookup.http_history import HistoryHandlers
from pipeline.lookup.keys import MalformedKey, check_keys
from pipeline.lookup.narrowing import NotAllowed
from pipeline.lookup.options import BadOptions, LookupOptions, read_options
from pipeline.lookup.outcomes import Outcomes
from pipeline.lookup.page_assets import page_routes
from pipeline.lookup.page_fields import origins
from pipeline.lookup.principal import BUNDLES, METRICS, SEARCH
from pipeline.lookup.search import SearchService, SpaceMismatch, UnknownBundle
from pipeline.lookup.search_parts import SearchUnavailable
from pipeline.lookup.search_request import BadSearch, read_request
from pipeline.lookup.security_headers import SecuredApplication
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService, UnknownContext

BODY_BYTES_MAX = 2 * 1024 * 1024
STREAM_BODY_BYTES_MAX = 32 * 1024 * 1024
STREAM_TYPE = "application/x-ndjson"
STREAM_KEYS_AT_ONCE = 250
_LOG = logging.getLogger("ctxpipe.lookup")
_FAILED = SparseLog(_LOG)
Endpoint = Callable[[Request], Awaitable[Response]]
CALLERS_MISTAKES = (
    HTTPException,
    UnknownContext,
    MalformedKey,
    BadOptions,
    BadSearch,
    SpaceMismatch,
    UnknownBundle,
    Refused,
    NotAllowed,
)


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[str]


_DECODE_BATCH = msgspec.json.Decoder(_Batch).decode


def make_app(
    service: LookupService,
    searches: SearchService | None = None,
    guard: Guard | None = None,
    history: History | None = None,
    admission: Admission | None = None,
    health: Health | None = None,
) -> ASGIApp:
    """The ASGI application. Routes: /v1/contexts, /v1/contexts/{context}/{key}, /v1/contexts/{context}:batchGet,
    /v1/contexts/{context}:search, /v1/contexts/{context}:fields, /v1/contexts/{context}:byId/{id}, :lineage/{key} and
    :lineageById/{id} beside it, /livez, /readyz, /startupz, /metrics, /openapi.json, /page/. Errors are problem+json.
    `guard` asks for credentials; without one everybody may read everything.
    Without `history` only versions that serve have one; `admission` refuses what can't be answered in time."""
    guard = guard or Guard()
    handlers = _Handlers(service, searches, admission)
    past = HistoryHandlers(service, history or History(service))
    protect = guard.protect
    app = SecuredApplication(
        routes=[
            Route("/v1/contexts", protect(None, handlers.contexts), methods=["GET"]),
            Route("/v1/contexts/{context}:batchGet", protect(BUNDLES, handlers.batch_get), methods=["POST"]),
            Route("/v1/contexts/{context}:search", protect(SEARCH, handlers.search), methods=["POST"]),
            Route("/v1/contexts/{context}:fields", protect(BUNDLES, handlers.fields), methods=["GET"]),
            Route("/v1/contexts/{context}:byId/{id:path}", protect(BUNDLES, past.by_id), methods=["GET"]),
            Route("/v1/contexts/{context}:lineage/{key:path}", protect(BUNDLES, past.lineage), methods=["GET"]),
            Route(
                "/v1/contexts/{context}:lineageById/{id:path}", protect(BUNDLES, past.lineage_by_id), methods=["GET"]
            ),
            Route("/v1/contexts/{context}/{key:path}", protect(BUNDLES, handlers.get), methods=["GET"]),
            *Probes(health, service, guard.active).routes(),
            Route("/metrics", protect(METRICS, handlers.metrics), methods=["GET"]),
            Route("/openapi.json", handlers.openapi, methods=["GET"]),
            *page_routes(),
        ],
        exception_handlers={
            HTTPException: _http_problem,
            Refused: _access_problem,
            NotAllowed: _access_problem,
            UnknownContext: _lookup_problem,
            MalformedKey: _lookup_problem,
            BadOptions: _search_problem,
            BadSearch: _search_problem,
            SpaceMismatch: _search_problem,
            UnknownBundle: _search_problem,
            SearchUnavailable: _search_problem,
            Shed: shed_problem,
            CtxpipeError: _lookup_problem,
            Exception: _unexpected,
        },
    )
    return app if guard.active else HotPath(app, service, _lookup_problem, admission)


class _Handlers:
    def __init__(self, service: LookupService, searches: SearchService | None, admission: Admission | None) -> None:
        self._service, self._searches, self._admission = service, searches, admission
        self._outcomes = {operation: Outcomes(operation) for operation in ("get", "batch", "search")}

    @contextmanager
    def _admitted(self, operation: str, context: str, options: LookupOptions, keys: int = 1) -> Iterator[None]:
        """Around an answer. Raises UnknownContext, and Shed where it could not be in time."""
        tenant = None if options.principal is None else options.principal.tenant or options.principal.name
        budget_ms = self._service.budget_ms(context, options)
        with (
            self._outcomes[operation].of(budget_ms, CALLERS_MISTAKES),
            admission_of(self._admission, tenant, budget_ms, keys, bool(options.positions)),
        ):
            yield

    async def get(self, request: Request) -> Response:
        started_s = time.perf_counter()
        options = _options(request)
        context = request.path_params["context"]
        with self._admitted("get", context, options):
            answer = await self._service.get(context, request.path_params["key"], options)
        self._count([answer], "get", started_s)
        return _answered(answer, request.headers.get("if-none-match"), time.perf_counter() - started_s)

    async def batch_get(self, request: Request) -> Response:
        started_s = time.perf_counter()
        options = _options(request)
        streamed = STREAM_TYPE in request.headers.get("accept", "")
        try:
            batch = _DECODE_BATCH(await _limited_body(request, STREAM_BODY_BYTES_MAX if streamed else BODY_BYTES_MAX))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HTTPException(400, f'the body must be {{"keys": ["…"]}}: {error}') from None
        request.scope[AUDITED_KEYS] = batch.keys
        if streamed:
            return await self._stream(request.path_params["context"], batch.keys, options)
        context = request.path_params["context"]
        with self._admitted("batch", context, options, max(1, len(batch.keys))):
            answers = await self._service.get_many(context, batch.keys, options)
        self._count(answers, "batch", started_s)
        return _json(b'{"answers":[%b]}' % b",".join([answer.to_json() for answer in answers]))

    async def _stream(self, context: str, keys: list[str], options: LookupOptions) -> Response:
        """The first part is answered before the status is sent, which then tells what is wrong with the request."""
        served = self._service.served(context)
        check_keys(served.spec, keys, openapi.STREAMED_KEYS_MAX)
        parts = [keys[first : first + STREAM_KEYS_AT_ONCE] for first in range(0, len(keys), STREAM_KEYS_AT_ONCE)]
        begun = await self._part(served, parts[0], options) if parts else b""

        async def lines() -> AsyncIterator[bytes]:
            yield begun
            for part in parts[1:]:
                try:
                    yield await self._part(served, part, options)
                except CtxpipeError as error:
                    # The status is gone; whoever reads must see that answers are missing.
                    problem = await _lookup_problem(None, error)
                    yield b'{"error":%b}\n' % bytes(problem.body)
                    return

        return StreamingResponse(lines(), media_type=STREAM_TYPE, headers={"cache-control": "no-store"})

    async def _part(self, served: ServedContext, keys: list[str], options: LookupOptions) -> bytes:
        started_s = time.perf_counter()
        with self._admitted("batch", served.spec.context, options, max(1, len(keys))):
            answers = [found.answer for found in await self._service.find(served, keys, options=options, checked=True)]
        self._count(answers, "batch", started_s)
        return b"".join([answer.to_json() + b"\n" for answer in answers])

    async def search(self, request: Request) -> Response:
        started_s = time.perf_counter()
        asked = read_request(await _limited_body(request))
        if self._searches is None:
            raise HTTPException(501, "this server answers no searches")
        request.scope[AUDITED_KEYS] = [] if asked.key is None else [asked.key]
        with self._outcomes["search"].of(self._searches.budget_ms(asked), CALLERS_MISTAKES):
            answer = await self._searches.search(request.path_params["context"], asked, principal_of(request))
        metrics.lookup_seconds.labels("search").observe(time.perf_counter() - started_s)
        return _json(answer.to_json())

    async def contexts(self, request: Request) -> Response:
        listed: list[dict[str, Any]] = [
            {
                "context": spec.context,
                "version": spec.version,
                "description": spec.description,
                "key": spec.entities[spec.root].key,
                "max_age_ms": spec.serving.max_age_ms,
                "budget_ms": spec.serving.budget_ms,
            }
            for spec in self._service.specs
        ]
        for item, served in zip(listed, self._service.versions, strict=True):
            if served.embeds and self._searches is not None:
                item["space"] = self._searches.space_of(item["context"])
        principal = principal_of(request)
        if principal is not None:
            listed = [item for item in listed if principal.knows(item["context"])]
        return _json(msgspec.json.encode({"contexts": listed}))

    async def fields(self, request: Request) -> Response:
        """Where each field comes from, of those that the caller may see; no bundle is read for it."""
        spec = self._service.served(request.path_params["context"]).spec
        principal = principal_of(request)
        shown = None if principal is None else principal.fields.get(spec.context)
        return _json(msgspec.json.encode(origins(spec, shown)))

    async def metrics(self, request: Request) -> Response:
        if self._admission is not None:
            metrics.lookup_in_flight.set(self._admission.in_flight)
            metrics.lookup_limit.set(self._admission.limit)
        body, content_type = metrics.expose()
        return Response(body, headers={"content-type": content_type})

    async def openapi(self, request: Request) -> Response:
        return _json(msgspec.json.encode(openapi.document(package_version("ctxpipe"))))

    def _count(self, answers: list[Answer], operation: str, started_s: float) -> None:
        for answer in answers:
            metrics.lookup_answers.labels(answer.context, answer.status).inc()
        metrics.lookup_seconds.labels(operation).observe(time.perf_counter() - started_s)


def _options(request: Request) -> LookupOptions:
    options = read_options(request.headers, request.query_params.multi_items())
    principal = principal_of(request)
    return options if principal is None else msgspec.structs.replace(options, principal=principal)


async def _limited_body(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > bytes_max:
        raise HTTPException(413, f"the body may have {bytes_max} bytes")
    body = bytearray()
    stream: AsyncIterator[bytes] = request.stream()
    try:
        async for chunk in stream:
            body += chunk
            if len(body) > bytes_max:
                raise HTTPException(413, f"the body may have {bytes_max} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    return bytes(body)


def _answered(answer: Answer, known: str | None, duration_s: float) -> Response:
    status, headers, body = told(answer, known, duration_s)
    response = Response(body, status)
    response.raw_headers = headers
    return response


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json", headers={"cache-control": "no-store"})


def _problem(status: int, detail: str, **more: Any) -> Response:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    headers = {"cache-control": "no-store", **({"retry-after": "1"} if status == 503 else {})}
    return Response(msgspec.json.encode(body), status, media_type="application/problem+json", headers=headers)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, error.detail)


async def _lookup_problem(request: Request | None, error: Exception) -> Response:
    if isinstance(error, UnknownContext):
        return _problem(404, str(error))
    if isinstance(error, MalformedKey):
        return _problem(400, str(error))
    # The text may name hosts and ports inside; it stays in the log.
    _FAILED.tell("lookup failed: %s", error)
    if isinstance(error, Retryable):
        return _problem(503, "the store does not answer in time; try again")
    return _problem(503, "the store cannot be read; see the server's log")


async def _search_problem(request: Request, error: Exception) -> Response:
    """Their texts are made for callers."""
    if isinstance(error, BadSearch | BadOptions):
        return _problem(400, str(error), mistakes=error.mistakes)
    status = 409 if isinstance(error, SpaceMismatch) else 404 if isinstance(error, UnknownBundle) else 503
    return _problem(status, str(error))


async def _access_problem(request: Request, error: Exception) -> Response:
    """Their texts are made for callers, and say nothing of what is there."""
    if not isinstance(error, Refused):
        return _problem(403, str(error))
    response = _problem(error.status, str(error))
    if error.status == 401:
        response.headers["www-authenticate"] = 'Bearer realm="ctxpipe"'
    return response


async def _unexpected(request: Request, error: Exception) -> Response:
    return _problem(500, "an internal error; see the server's log")
