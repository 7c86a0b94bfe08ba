"""Streaming replication inside asyncio: raw messages in, confirmed positions out, and a connection that stays alive.

psycopg's libpq wrapper does login, TLS and framing. What arrives waits in a queue bounded in bytes: when it is full the
socket is not read, and Postgres waits; the feedback goes on from its own task, whatever the consumer does.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from contextlib import suppress

import psycopg
from psycopg import pq

from connectors.postgres.errors import mapped_errors
from connectors.postgres.pgoutput import POSTGRES_EPOCH_US
from connectors.postgres.server import Connection, Server, lsn_text, quote_name, quote_text
from pipeline.core.errors import CtxpipeError, Fatal, Retryable

FEEDBACK_INTERVAL_S_MAX = 10.0
READ_BYTES_MAX = 1 << 17
"""What one call of `read` returns at most, but for a single larger message."""

StreamItem = tuple[int, bytes | None]
"""(LSN, message), or (end of the server's log, None): a keepalive, everything before it has been sent."""

_HEADER = struct.Struct(">cQ").unpack_from
_HEADER_SIZE = 25
_WAL_DATA, _KEEPALIVE = b"w"[0], b"k"[0]
_STATUS = struct.Struct(">cQQQqB").pack


class ReplicationStream:
    """One running START_REPLICATION. Call `open`, then `read` from one task; `confirm` at any time; `close`."""

    def __init__(self, server: Server, queue_bytes_max: int) -> None:
        self._server = server
        self._queue_bytes_max = queue_bytes_max
        self._queue: deque[StreamItem] = deque()
        self.queue_bytes = 0
        self._connection: Connection | None = None
        self._arrived = asyncio.Event()
        self._feedback_due = asyncio.Event()
        self._feedback_task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._reading = False
        self._received = 0
        self._confirmed = 0
        self._heard_s = 0.0
        self._interval_s = FEEDBACK_INTERVAL_S_MAX
        self.feedback_count = 0

    async def open(self, slot: str, publication: str, start_lsn: int) -> None:
        """Starts streaming behind `start_lsn`. Raises SlotInUse, PositionLost, Retryable."""
        self._connection = await self._server.connect_replication()
        with mapped_errors(self._server.where):
            self._interval_s = await self._feedback_interval()
            await self._start(slot, publication, start_lsn)
        self._received = self._confirmed = start_lsn
        self._heard_s = time.monotonic()
        self._resume_reading()
        self._feedback_task = asyncio.create_task(self._give_feedback(), name="postgres-feedback")
        self._drain()

    async def _feedback_interval(self) -> float:
        assert self._connection is not None
        cursor = await self._connection.execute(
            "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout'"
        )
        row = await cursor.fetchone()
        timeout_ms = int(row[0]) if row else 0
        return min(FEEDBACK_INTERVAL_S_MAX, timeout_ms / 3000) if timeout_ms else FEEDBACK_INTERVAL_S_MAX

    async def _start(self, slot: str, publication: str, start_lsn: int) -> None:
        assert self._connection is not None
        names = quote_text(quote_name(publication))
        options = f"proto_version '2', publication_names {names}, messages 'true', streaming 'on'"
        command = f"START_REPLICATION SLOT {quote_name(slot)} LOGICAL {lsn_text(start_lsn)} ({options})"
        libpq = self._connection.pgconn
        libpq.send_query(command.encode())
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(libpq.socket, ready.set)
        try:
            while libpq.flush() or libpq.is_busy():
                await ready.wait()
                ready.clear()
                libpq.consume_input()
        finally:
            loop.remove_reader(libpq.socket)
        result = libpq.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            if result is None:
                raise Retryable(f"{self._server.where} closed the connection instead of streaming.")
            raise psycopg.errors.error_from_result(result)

    async def read(self) -> list[StreamItem]:
        """Everything that has arrived, up to READ_BYTES_MAX; waits for at least one item."""
        while not self._queue:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            await self._arrived.wait()
        queue, items, size = self._queue, [], 0
        while queue and size < READ_BYTES_MAX:
            item = queue.popleft()
            items.append(item)
            size += _cost(item)
        self.queue_bytes -= size
        if not self._reading and self._failure is None and self.queue_bytes < self._queue_bytes_max // 2:
            self._resume_reading()
            self._drain()
        return items

    def confirm(self, lsn: int) -> None:
        """Everything before `lsn` is durable behind us: the server may forget it. Never goes back."""
        if lsn > self._confirmed:
            self._confirmed = lsn
            self._feedback_due.set()

    async def close(self) -> None:
        """Sends the last confirmation, then gives up the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._stop_reading(connection)  # before anything is awaited: what arrives meanwhile is nobody's
        if self._feedback_task is not None:
            self._feedback_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._feedback_task
        if connection is not None:
            if self._failure is None and self._feedback_task is not None:
                with suppress(psycopg.Error):
                    self._send_status(connection, reply=False)
            await connection.close()

    def _resume_reading(self) -> None:
        if self._connection is not None and not self._reading:
            self._reading = True
            self._heard_s = time.monotonic()
            asyncio.get_running_loop().add_reader(self._connection.pgconn.socket, self._on_readable)

    def _stop_reading(self, connection: Connection) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(connection.pgconn.socket)

    def _on_readable(self) -> None:
        assert self._connection is not None
        try:
            with mapped_errors(self._server.where):
                self._connection.pgconn.consume_input()
        except CtxpipeError as error:
            self._fail(error)
        else:
            self._drain()

    def _drain(self) -> None:
        """Moves what libpq has received into the queue, until it is full."""
        assert self._connection is not None
        get, queue = self._connection.pgconn.get_copy_data, self._queue
        size = self.queue_bytes
        try:
            with mapped_errors(self._server.where):
                while size < self._queue_bytes_max:
                    length, data = get(1)
                    if length <= 0:
                        if length < 0:
                            raise self._end()
                        break
                    if data[0] == _WAL_DATA:
                        item = (_HEADER(data)[1], bytes(data[_HEADER_SIZE:]))
                        queue.append(item)
                        size += len(data)
                    else:
                        size += self._keepalive(bytes(data))
                else:
                    self._stop_reading(self._connection)
        except CtxpipeError as error:
            self._fail(error)
        self.queue_bytes = size
        self._heard_s = time.monotonic()
        if queue:
            self._arrived.set()

    def _keepalive(self, data: bytes) -> int:
        if data[0] != _KEEPALIVE:
            raise Fatal(f"The replication stream sent an unknown frame '{chr(data[0])}'.")
        _kind, wal_end = _HEADER(data)
        if data[17]:
            self._feedback_due.set()
        if self._queue and self._queue[-1][1] is None:
            self._queue.pop()  # only the newest of several in a row matters
            self._queue.append((wal_end, None))
            return 0
        self._queue.append((wal_end, None))
        return _cost(self._queue[-1])

    def _end(self) -> Exception:
        """The server ended the stream: its own error if it gave one."""
        assert self._connection is not None
        result = self._connection.pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            return psycopg.errors.error_from_result(result)
        return Retryable(f"{self._server.where} ended the stream.")

    def _fail(self, error: Exception) -> None:
        self._failure = error
        if self._connection is not None:
            self._stop_reading(self._connection)
        self._arrived.set()

    async def _give_feedback(self) -> None:
        """At least every interval, at once after a confirmation or when the server asks; waits for nobody else."""
        while self._failure is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._feedback_due.wait(), timeout=self._interval_s)
            periodic = not self._feedback_due.is_set()
            self._feedback_due.clear()
            if self._reading and time.monotonic() - self._heard_s > 4 * self._interval_s:
                self._fail(Retryable(f"{self._server.where} has been silent for too long."))
                return
            connection = self._connection
            if connection is None:
                return
            try:
                with mapped_errors(self._server.where):
                    self._send_status(connection, reply=periodic)
            except CtxpipeError as error:
                self._fail(error)

    def _send_status(self, connection: Connection, reply: bool) -> None:
        now = int(time.time() * 1_000_000) - POSTGRES_EPOCH_US
        lsn = self._confirmed
        connection.pgconn.put_copy_data(_STATUS(b"r", lsn, lsn, lsn, now, reply))
        self.feedback_count += 1
        if connection.pgconn.flush():
            loop, socket = asyncio.get_running_loop(), connection.pgconn.socket

            def go_on() -> None:
                if connection.closed or connection.pgconn.flush() == 0:
                    loop.remove_writer(socket)

            loop.add_writer(socket, go_on)


def _cost(item: StreamItem) -> int:
    payload = item[1]
    return _HEADER_SIZE + (len(payload) if payload is not None else 0)
