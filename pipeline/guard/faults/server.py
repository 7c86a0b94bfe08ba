"""The scripted server: HTTP by hand, because much of what it does no HTTP server would."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.guard.faults.answers import FAULTS, Exchange

CONTENT = '{"answer": 42}'
_HEAD_BYTES_MAX = 64 * 1024
_BODY_BYTES_MAX = 64 * 1024 * 1024


class FaultServer:
    """`async with` it; then `url(script)` is the base address of an endpoint that follows the script.

    A script is names of FAULTS with commas between: the first request gets the first, and so on, the last for ever.
    Endpoints of the same script with different `key` count for themselves. `content` is what valid answers say. With
    `tls` it speaks HTTPS only. `asked` counts requests by script and key, `bodies` keeps the last one of each.
    """

    def __init__(
        self,
        content: str = CONTENT,
        delay_s: float = 0.1,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.content, self.delay_s = content, delay_s
        self.host, self.port = host, port
        self.asked: Counter[tuple[str, str]] = Counter()
        self.bodies: dict[tuple[str, str], Mapping[str, Any]] = {}
        self.headers: dict[tuple[str, str], str] = {}
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def url(self, script: str, key: str = "0") -> str:
        """Raises ConfigError for a fault that there is not."""
        unknown = [name for name in script.split(",") if name not in FAULTS]
        if unknown:
            raise ConfigError(
                [f"there is no fault {name!r}; there are {', '.join(sorted(FAULTS))}" for name in unknown]
            )
        return f"{'http' if self._tls is None else 'https'}://{self.host}:{self.port}/{script}/{key}/v1"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._begun, self.host, self.port, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(set(self._connections))

    async def __aenter__(self) -> FaultServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _begun(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # whoever asked has gone, or the server ends
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n"))[:_HEAD_BYTES_MAX].decode("latin-1")
        first, *lines = head.split("\r\n")
        length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
        raw = await reader.readexactly(min(length, _BODY_BYTES_MAX))
        words = first.split(" ")[1].split("/") if " " in first else []
        script, key = (words[1], words[2]) if len(words) > 2 else ("valid", "0")
        steps = script.split(",")
        number = self.asked[script, key]
        self.asked[script, key] += 1
        self.headers[script, key] = head
        body = _read(raw)
        self.bodies[script, key] = body
        fault = FAULTS.get(steps[min(number, len(steps) - 1)], FAULTS["valid"])
        return await fault(Exchange(writer, body, self.content, self.delay_s))


def _read(raw: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
