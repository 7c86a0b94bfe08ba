"""A TCP link in the test's own event loop: it can be switched to another server, and hand on what comes from there in
pieces, each a moment later, as a network may."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

PIECE_DELAY_S_MAX = 0.002


class Link:
    """Listens on a port of its own. `chopped` decides about the pieces; without, all is handed on at once."""

    def __init__(self, target_port: int, chopped: Random | None = None, piece_bytes_max: int = 4_096) -> None:
        self._target_port, self._chopped, self._piece_bytes_max = target_port, chopped, piece_bytes_max
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def switch(self, target_port: int) -> None:
        """Ends all connections; new ones go to this port."""
        self._target_port = target_port
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            with contextlib.suppress(OSError):
                onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
                writers.append(onward_writer)
                there = asyncio.create_task(self._copy(reader, onward_writer, None))
                back = asyncio.create_task(self._copy(onward_reader, writer, self._chopped))
                try:
                    await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    there.cancel()
                    back.cancel()
        finally:
            for one in writers:
                one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chopped: Random | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if chopped is None:
                    writer.write(data)
                    await writer.drain()
                    continue
                while data:
                    size = chopped.randint(1, min(self._piece_bytes_max, 2 * len(data)))
                    writer.write(data[:size])
                    await writer.drain()
                    data = data[size:]
                    await asyncio.sleep(chopped.random() * PIECE_DELAY_S_MAX)
