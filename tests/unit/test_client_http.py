"""What the client makes of statuses, also of those that a proxy in between answers with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pipeline.client import (
    AsyncClient,
    BadRequest,
    ClientError,
    DeadlineExceeded,
    NotAllowed,
    NotOffered,
    Unavailable,
    UnknownContext,
)

PROBLEM = b'{"type":"about:blank","title":"T","status":%d,"detail":"told","mistakes":["one","two"]}'
TABLE: list[tuple[int, type[ClientError]]] = [
    (400, BadRequest),
    (401, NotAllowed),
    (403, NotAllowed),
    (404, UnknownContext),
    (408, DeadlineExceeded),
    (409, BadRequest),
    (413, BadRequest),
    (429, Unavailable),
    (431, BadRequest),
    (500, Unavailable),
    (501, NotOffered),
    (502, Unavailable),
    (503, Unavailable),
    (504, DeadlineExceeded),
    (302, Unavailable),
]


@asynccontextmanager
async def answering(status: int, body: bytes, kind: str = "application/problem+json") -> AsyncIterator[AsyncClient]:
    head = f"HTTP/1.1 {status} S\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nretry-after: 3\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.encode() + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, AsyncClient(url) as client:
        yield client


@pytest.mark.parametrize(("status", "kind"), TABLE)
async def test_statuses_are_errors(status: int, kind: type[ClientError]) -> None:
    async with answering(status, PROBLEM % status) as client:
        with pytest.raises(ClientError) as raised:
            await client.get("flight", "1")
    error = raised.value
    assert type(error) is kind
    if isinstance(error, BadRequest):
        assert error.mistakes == ["one", "two"]
    elif type(error) is Unavailable:
        assert error.retry_after_s == 3
    else:
        assert "told" in str(error)


@pytest.mark.parametrize("status", [200, 400, 403, 404, 502])
async def test_what_stands_between_is_not_believed(status: int) -> None:
    async with answering(status, b"<html>sorry</html>", "text/html") as client:
        with pytest.raises(ClientError) as raised:
            await client.get("flight", "1")
    assert not isinstance(raised.value, UnknownContext)
    assert f"answered {status}" in str(raised.value) or "does not answer as `ctxpipe serve` does" in str(raised.value)


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"status":"missing"}'])
async def test_a_404_that_only_looks_like_an_answer(body: bytes) -> None:
    async with answering(404, body, "application/json") as client:
        with pytest.raises(Unavailable, match="does not answer as"):
            await client.get("flight", "1")
