"""Lookups over HTTP: the only import of a web framework. Bundles go out as the bytes that are stored."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core import metrics
from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.lookup.answer import Answer
from pipeline.lookup.service import LookupService, MalformedKey, UnknownContext

BODY_BYTES_MAX = 2 * 1024 * 1024
_LOG = logging.getLogger("ctxpipe.lookup")
Endpoint = Callable[[Request], Awaitable[Response]]


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[str]


_DECODE_BATCH = msgspec.json.Decoder(_Batch).decode


def make_app(service: LookupService) -> Starlette:
    """The ASGI application. Routes: /v1/contexts, /v1/contexts/{context}/{key}, /v1/contexts/{context}:batchGet,
    /livez, /readyz, /metrics. Errors are application/problem+json."""
    handlers = _Handlers(service)
    return Starlette(
        routes=[
            Route("/v1/contexts", handlers.contexts, methods=["GET"]),
            Route("/v1/contexts/{context}:batchGet", handlers.batch_get, methods=["POST"]),
            Route("/v1/contexts/{context}/{key:path}", handlers.get, methods=["GET"]),
            Route("/livez", handlers.live, methods=["GET"]),
            Route("/readyz", handlers.ready, methods=["GET"]),
            Route("/metrics", handlers.metrics, methods=["GET"]),
        ],
        exception_handlers={
            HTTPException: _http_problem,
            UnknownContext: _lookup_problem,
            MalformedKey: _lookup_problem,
            CtxpipeError: _lookup_problem,
            Exception: _unexpected,
        },
    )


class _Handlers:
    def __init__(self, service: LookupService) -> None:
        self._service = service

    async def get(self, request: Request) -> Response:
        started_s = time.perf_counter()
        answer = await self._service.get(request.path_params["context"], request.path_params["key"])
        self._count([answer], "get", started_s)
        return _json(answer.to_json(), 404 if answer.bundle is None else 200)

    async def batch_get(self, request: Request) -> Response:
        started_s = time.perf_counter()
        try:
            batch = _DECODE_BATCH(await _limited_body(request))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HTTPException(400, f'the body must be {{"keys": ["…"]}}: {error}') from None
        answers = await self._service.get_many(request.path_params["context"], batch.keys)
        self._count(answers, "batch", started_s)
        return _json(b'{"answers":[%b]}' % b",".join([answer.to_json() for answer in answers]))

    async def contexts(self, request: Request) -> Response:
        listed = [
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
        return _json(msgspec.json.encode({"contexts": listed}))

    async def live(self, request: Request) -> Response:
        return _json(b'{"status":"ok"}')

    async def ready(self, request: Request) -> Response:
        problems = await self._service.ready()
        if problems:
            _LOG.warning("not ready: %s", "; ".join(problems.values()))
            return _problem(503, f"not ready: {', '.join(problems)}; see the server's log")
        return _json(b'{"status":"ok"}')

    async def metrics(self, request: Request) -> Response:
        body, content_type = metrics.expose()
        return Response(body, headers={"content-type": content_type})

    def _count(self, answers: list[Answer], operation: str, started_s: float) -> None:
        for answer in answers:
            metrics.lookup_answers.labels(answer.context, answer.status).inc()
        metrics.lookup_seconds.labels(operation).observe(time.perf_counter() - started_s)


async def _limited_body(request: Request) -> bytes:
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > BODY_BYTES_MAX:
        raise HTTPException(413, f"the body may have {BODY_BYTES_MAX} bytes")
    body = bytearray()
    stream: AsyncIterator[bytes] = request.stream()
    try:
        async for chunk in stream:
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise HTTPException(413, f"the body may have {BODY_BYTES_MAX} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    return bytes(body)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json", headers={"cache-control": "no-store"})


def _problem(status: int, detail: str) -> Response:
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = {"retry-after": "1"} if status == 503 else None
    return Response(msgspec.json.encode(body), status, media_type="application/problem+json", headers=headers)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, error.detail)


async def _lookup_problem(request: Request, error: Exception) -> Response:
    if isinstance(error, UnknownContext):
        return _problem(404, str(error))
    if isinstance(error, MalformedKey):
        return _problem(400, str(error))
    # The text may name hosts and ports inside; it stays in the log.
    _LOG.warning("lookup failed: %s", error)
    if isinstance(error, Retryable):
        return _problem(503, "the store does not answer in time; try again")
    return _problem(503, "the store cannot be read; see the server's log")


async def _unexpected(request: Request, error: Exception) -> Response:
    return _problem(500, "an internal error; see the server's log")
