"""One HTTP connection that is kept open: just enough for many clients in one process to ask `ctxpipe serve`."""

from __future__ import annotations

import asyncio

TIMEOUT_S = 30.0


class HttpConnection:
    """`ask` one request at a time; it connects when needed. Raises OSError where no whole answer comes."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body. A POST where there is a `body`, else a GET."""
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-length: {len(body or b'')}\r\n\r\n"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._host, self._port)
                reader, writer = self._streams
                writer.write(head.encode() + (body or b""))
                return await _answer(reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            self.close()
            raise ConnectionError(f"{method} {path}: {type(error).__name__} {error}".rstrip()) from error

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    status = int(lines[0].split(b" ")[1])
    length = next(int(line[15:]) for line in lines[1:] if line[:15].lower() == b"content-length:")
    return status, await reader.readexactly(length)
