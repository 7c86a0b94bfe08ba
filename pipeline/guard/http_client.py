"""The client of OpenAI-compatible endpoints over HTTP: one request, with limits on everything, and no exception.

Foreign errors become the kinds of `values.Failure` in one table below. Redirects are not followed, proxies and cookies
of the environment not used, compressed answers not taken (a small one can be a large one), and the key is in no text.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from types import TracebackType

import aiohttp
import msgspec

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import ConfigError
from pipeline.core.tls import client_context
from pipeline.guard.config import Endpoint
from pipeline.guard.values import Failure, ModelRequest, RawAnswer
from pipeline.guard.wire import PATH, body_of

HEADERS_KEPT = (
    "content-type",
    "retry-after",
    "retry-after-ms",
    "x-request-id",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
)
ERROR_BYTES_MAX = 64 * 1024
"""Of an answer that is no 200: enough for its message."""
MODELS_PATH = "/models"
_CHUNK_BYTES = 64 * 1024
_DETAIL_CHARACTERS_MAX = 300
_KEEP_ALIVE_S = 30.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_KINDS: tuple[tuple[type[BaseException], Failure], ...] = (
    (TimeoutError, "timeout"),
    (aiohttp.ClientSSLError, "tls"),
    (ssl.SSLError, "tls"),
    (aiohttp.ClientConnectorDNSError, "unresolved"),
    (aiohttp.ClientConnectorError, "unreachable"),
    (aiohttp.ServerDisconnectedError, "reset"),
    (aiohttp.ClientPayloadError, "cut"),
    (aiohttp.ClientOSError, "reset"),
    (aiohttp.ClientError, "protocol"),
    (OSError, "reset"),
    (ValueError, "protocol"),
    (ConfigError, "tls"),
)
"""The first that fits. ValueError: a key or an address that no header can hold.
ConfigError: files of TLS that can't be used."""
_FOREIGN = tuple(kind for kind, _ in _KINDS)


class HttpClient:
    """See ModelClient. `async with` it, or `close` it: it holds connections."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._session: aiohttp.ClientSession | None = None
        self._tls: dict[str | None, ssl.SSLContext] = {}

    async def send(self, request: ModelRequest, endpoint: Endpoint, until_s: float) -> RawAnswer:
        try:
            content = msgspec.json.encode(body_of(request, endpoint))
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            return RawAnswer(failure="bad_request", detail=f"the request can't be written as JSON: {error}"[:300])
        return await self.send_content(content, endpoint, until_s)

    async def send_content(self, content: bytes, endpoint: Endpoint, until_s: float) -> RawAnswer:
        """As `send`, for a body that somebody else has written."""
        return await self._within(until_s, "POST", PATH, content, endpoint)

    async def models(self, endpoint: Endpoint, until_s: float) -> RawAnswer:
        """What the endpoint lists, which costs nothing: whether it is there, and knows the key and the model."""
        return await self._within(until_s, "GET", MODELS_PATH, None, endpoint)

    async def _within(
        self, until_s: float, method: str, path: str, content: bytes | None, endpoint: Endpoint
    ) -> RawAnswer:
        began_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(until_s - began_s):
                return await self._ask(method, path, content, endpoint, began_s)
        except _FOREIGN as error:
            kind = next(failure for foreign, failure in _KINDS if isinstance(error, foreign))
            detail = "it did not answer in time" if kind == "timeout" else _told(error, endpoint)
            return RawAnswer(failure=kind, detail=detail, took_s=self._clock.monotonic_s() - began_s)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(
        self, method: str, path: str, content: bytes | None, endpoint: Endpoint, began_s: float
    ) -> RawAnswer:
        async with self._open_session().request(
            method,
            endpoint.url + path,
            data=content,
            headers=_headers(endpoint),
            allow_redirects=False,
            ssl=self._context(endpoint),
        ) as response:
            first_s = self._clock.monotonic_s() - began_s
            failure, detail, body = await _read(response, endpoint)
            headers = {name: response.headers[name] for name in HEADERS_KEPT if name in response.headers}
            took_s = self._clock.monotonic_s() - began_s
            return RawAnswer(
                status=response.status,
                headers=headers,
                body=body,
                failure=failure,
                detail=detail,
                first_byte_s=first_s,
                took_s=took_s,
            )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _context(self, endpoint: Endpoint) -> ssl.SSLContext | bool:
        if not endpoint.url.startswith("https:"):
            return True
        authority = endpoint.certificate_authority
        if authority not in self._tls:
            self._tls[authority] = client_context(f"guard endpoint {endpoint.name}", authority, None, None, None)
        return self._tls[authority]


def _headers(endpoint: Endpoint) -> Mapping[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
    if endpoint.api_key is not None:
        headers["authorization"] = f"Bearer {endpoint.api_key.get_secret_value()}"
    return headers


async def _read(response: aiohttp.ClientResponse, endpoint: Endpoint) -> tuple[Failure | None, str, bytes]:
    """(failure, detail, body): a body that is not wanted is not read."""
    encoding = response.headers.get("content-encoding", "identity")
    unwanted = not_read(response.status, response.content_type, encoding, response.content_length or 0, endpoint)
    if unwanted is not None:
        return *unwanted, b""
    good = response.status == 200
    most = endpoint.answer_bytes_max if good else ERROR_BYTES_MAX
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > most:
            if good:
                return "too_large", f"its answer has more than {most} bytes", b""
            break
    return None, "", bytes(body[:most])


def not_read(status: int, kind: str, encoding: str, length: int, endpoint: Endpoint) -> tuple[Failure, str] | None:
    """Why the body of an answer is not read, by its head: its status, content type without parameters, content
    encoding and length; None: it is."""
    if status in _REDIRECTS:
        return "redirect", f"it redirects ({status}), which is not followed; give the final address"
    good = status == 200
    if good and kind != "application/json" and not kind.endswith("+json"):
        return "content_type", f"it answers {kind[:60]}, not application/json; is this the API's address?"
    if encoding != "identity":
        return "protocol", "it answers compressed, which it was asked not to do"
    most = endpoint.answer_bytes_max if good else ERROR_BYTES_MAX
    if good and length > most:
        return "too_large", f"its answer has {length} bytes, at most {most} are taken"
    return None


def _told(error: BaseException, endpoint: Endpoint) -> str:
    text = str(error) or type(error).__name__
    if endpoint.api_key is not None:
        text = text.replace(endpoint.api_key.get_secret_value(), "**********")
    return text[:_DETAIL_CHARACTERS_MAX]
