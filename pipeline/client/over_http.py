"""Asks a running `ctxpipe serve`: kept connections, a deadline of our own beside the server's, one table of errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from pipeline.client import wire
from pipeline.client.bundle import Bundle
from pipeline.client.credential import credential_headers
from pipeline.client.errors import (
    BadRequest,
    DeadlineExceeded,
    NotAllowed,
    NotOffered,
    Unavailable,
    UnknownContext,
)
from pipeline.client.results import ContextInfo, Found, PastBundle
from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.core.tls import client_context
from pipeline.lookup.options import LookupOptions

if TYPE_CHECKING:
    import httpx

KEPT_S = 4.0
"""A connection at rest; the server ends them after 5 s."""
WAY_SHARE, WAY_MS_MAX = 0.2, 25.0
"""What of a budget is for the way there and back, so that a labelled answer at the server's deadline still comes in
time."""
T = TypeVar("T")
_NO_CONTEXT = "no context "
"""How a 404 begins that is not of a bundle."""


class HttpMode:
    """Belongs to one event loop. Every request only reads, so one on a connection that was lost is sent once more."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        token: str | None = None,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        timeout_s: float = 10.0,
        connections_max: int = 100,
    ) -> None:
        """Raises ConfigError for an address or files that can't be used, EnvironmentProblem without httpx."""
        try:
            import httpx
        except ImportError as error:
            raise EnvironmentProblem("this needs one more package: pip install 'ctxpipe[client]'") from error
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError([f"{url!r} is no address; write http://host:port"])
        if token is not None and api_key is not None:
            raise ConfigError(["give one credential, api_key or token"])
        self._httpx, self._base, self._timeout_s = httpx, f"{url.rstrip('/')}/v1/contexts", timeout_s
        self._where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        secured = parts.scheme == "https"
        self._client = httpx.AsyncClient(
            headers=credential_headers(api_key, token),
            verify=client_context("tls", ca, certificate, key, None) if secured else False,
            trust_env=False,  # without proxies of the environment: the server is a neighbour
            timeout=None,  # one deadline for all that a request does
            limits=httpx.Limits(
                max_connections=connections_max, max_keepalive_connections=connections_max, keepalive_expiry=KEPT_S
            ),
        )

    async def get(self, context: str, key: str, options: LookupOptions) -> Bundle:
        url = f"{self._base}/{context}/{_in_path(key)}"
        query, headers, limit_s = self._asked(options)
        response = await self._ask(lambda: self._client.get(url, params=query, headers=headers), limit_s)
        told = response.headers.get("content-type", "")
        if response.status_code == 404 and told.startswith("application/json"):
            return self._read(wire.read_answer, response)  # missing, which is an answer
        return self._read(wire.read_answer, self._fine(response))

    async def get_many(self, context: str, keys: Sequence[str], options: LookupOptions) -> list[Bundle]:
        body = msgspec.json.encode({"keys": list(keys)})
        query, headers, limit_s = self._asked(options)
        url = f"{self._base}/{context}:batchGet"
        response = await self._ask(lambda: self._client.post(url, params=query, headers=headers, content=body), limit_s)
        return self._read(wire.read_answers, self._fine(response))

    async def contexts(self) -> list[ContextInfo]:
        response = await self._ask(lambda: self._client.get(self._base), self._timeout_s)
        return self._read(wire.read_contexts, self._fine(response))

    async def search(self, context: str, question: dict[str, Any], budget_ms: float | None) -> Found:
        """`question` as the interface takes it, without the budget."""
        limit_s = self._timeout_s if budget_ms is None else budget_ms / 1000
        if budget_ms is not None:
            question = {**question, "budget_ms": _for_server_ms(budget_ms)}
        url, body = f"{self._base}/{context}:search", msgspec.json.encode(question)
        response = await self._ask(lambda: self._client.post(url, content=body), limit_s)
        if response.status_code == 404 and "key" in question:
            told = self._told(response)
            if not told.detail.startswith(_NO_CONTEXT):
                raise BadRequest([told.detail])  # of the bundle that others were to be like
        return self._read(wire.read_found, self._fine(response))

    async def by_id(self, context: str, bundle_id: str) -> PastBundle | None:
        url = f"{self._base}/{context}:byId/{quote(bundle_id, safe='')}"
        response = await self._ask(lambda: self._client.get(url), self._timeout_s)
        if response.status_code == 404 and not self._told(response).detail.startswith(_NO_CONTEXT):
            return None
        return self._read(wire.read_past, self._fine(response))

    async def close(self) -> None:
        await self._client.aclose()

    def _asked(self, options: LookupOptions) -> tuple[httpx.QueryParams, dict[str, str], float]:
        """Query, headers, and how long we wait ourselves."""
        asked: list[tuple[str, str | int | float | bool | None]] = [("position", token) for token in options.positions]
        if options.max_age_ms is not None:
            asked.append(("max_age_ms", repr(options.max_age_ms)))
        if options.token_budget is not None:
            asked.append(("token_budget", str(options.token_budget)))
        for name, paths in (("sections", options.sections), ("fields", options.fields)):
            if paths is not None:
                asked.append((name, ",".join(paths)))
        query = self._httpx.QueryParams(asked)
        if options.budget_ms is None:
            return query, {}, self._timeout_s
        return query, {"x-request-timeout-ms": f"{_for_server_ms(options.budget_ms):g}"}, options.budget_ms / 1000

    async def _ask(self, send: Callable[[], Awaitable[httpx.Response]], limit_s: float) -> httpx.Response:
        """The whole answer. Raises Unavailable, DeadlineExceeded."""
        lost = (self._httpx.RemoteProtocolError, self._httpx.ReadError, self._httpx.WriteError)
        try:
            async with asyncio.timeout(limit_s):
                try:
                    return await send()
                except lost:
                    return await send()
        except TimeoutError:
            raise DeadlineExceeded(f"{self._where} gave no answer within {limit_s * 1000:g} ms") from None
        except (self._httpx.HTTPError, OSError) as error:
            raise Unavailable(f"{self._where} does not answer: {error or type(error).__name__}") from error

    def _fine(self, response: httpx.Response) -> httpx.Response:
        """The one table of statuses."""
        status = response.status_code
        if status == 200:
            return response
        told = self._told(response)
        if status == 404 and response.headers.get("content-type", "").startswith("application/problem+json"):
            raise UnknownContext(told.detail)
        if status in (401, 403):
            raise NotAllowed(told.detail)
        if status in (408, 504):
            raise DeadlineExceeded(told.detail)
        if status == 501:
            raise NotOffered(told.detail)
        if 400 <= status < 500 and status not in (404, 429):
            raise BadRequest(told.mistakes or [told.detail])
        raise Unavailable(f"{self._where}: {told.detail}", _seconds(response.headers.get("retry-after")))

    def _told(self, response: httpx.Response) -> wire.Problem:
        """Also of what stands between us, such as a proxy."""
        try:
            problem = wire.read_problem(response.content)
        except wire.NotOurs:
            problem = wire.Problem()
        return problem if problem.detail else wire.Problem(f"{self._where} answered {response.status_code}")

    def _read(self, read: Callable[[bytes], T], response: httpx.Response) -> T:
        try:
            return read(response.content)
        except wire.NotOurs as error:
            raise Unavailable(f"{self._where} does not answer as `ctxpipe serve` does: {error}") from error


def _for_server_ms(budget_ms: float) -> float:
    return max(1.0, budget_ms - min(budget_ms * WAY_SHARE, WAY_MS_MAX))


def _in_path(key: str) -> str:
    """Dots too, where they alone would be taken for a folder."""
    return key.replace(".", "%2E") if key in (".", "..") else quote(key, safe="")


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdigit() else None
