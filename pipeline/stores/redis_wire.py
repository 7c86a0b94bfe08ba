"""One connection to Redis that all callers of a process share: what they ask in one turn of the event loop goes out as
one write, and answers come back in the order of asking.

redis-py makes the connection (address, login, TLS, database); from then on its bytes are read and written here, because
waiting for answers one by one took more time than Redis took to give them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import hiredis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection

_NOT_YET = object()


def packed(*words: Any) -> bytes:
    """One command in Redis' protocol."""
    command: bytes = hiredis.pack_command(words)
    return command


class _Question:
    """`count` answers are wanted; what Redis refuses among them is given back as an exception, not raised."""

    __slots__ = ("answers", "asked_at_s", "count", "done", "packed")

    def __init__(self, packed: bytes, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self.packed, self.count = packed, count
        self.answers: list[Any] = []
        self.done: asyncio.Future[list[Any]] = loop.create_future()
        self.asked_at_s = loop.time()

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class RedisWire:
    """Call `ask`, await what it gives. Redis executes in the order of the calls of `ask`, also over tasks: who asks
    first is served first, and a caller that gives up disturbs nobody.

    When the connection is lost, every question on its way fails with redis-py's ConnectionError or TimeoutError, and
    the next `ask` connects again. Belongs to one event loop.

    With `pushed` it is for one connection, and closed when that is lost. What the server says unasked (RESP3) is handed
    to `pushed` between the answers, in the order in which it came.
    """

    def __init__(
        self,
        make: Callable[[], AbstractConnection],
        timeout_s: float,
        pushed: Callable[[list[Any]], None] | None = None,
    ) -> None:
        """`make` gives a new, unconnected connection. `timeout_s`: the longest wait for the first unanswered."""
        self._make, self._timeout_s, self._pushed = make, timeout_s, pushed
        self._loop = asyncio.get_running_loop()
        self._line: _Line | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: deque[_Question] = deque()
        self._flushing = False
        self._clock: asyncio.TimerHandle | None = None
        self._closed = False
        self.connections = 0
        """How many there have been: what was read over an earlier one says nothing of what a later one reads."""

    def ask(self, commands: bytes, count: int) -> asyncio.Future[list[Any]]:
        """`commands` are `count` of them in Redis' protocol. Never blocks; raises ConnectionError after `close`."""
        if self._closed:
            raise exceptions.ConnectionError("the connection has been closed")
        question = _Question(commands, count, self._loop)
        self._unsent.append(question)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        if self._clock is None:
            self._clock = self._loop.call_later(self._timeout_s, self._look_at_clock)
        return question.done

    def close(self) -> None:
        """Questions without an answer fail."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._clock is not None:
            self._clock.cancel()
        self._fail(exceptions.ConnectionError("the connection has been closed"))

    def _flush(self) -> None:
        self._flushing = False
        if self._line is not None and self._line.lost:
            self._line = None
        if self._line is not None:
            self._line.send(self._unsent)
            self._unsent.clear()
        elif self._connecting is None and self._unsent and not self._closed:
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        connection = self._make()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except (exceptions.RedisError, OSError) as error:
            self._fail(error)
        else:
            self.connections += 1
            self._line = _Line(connection, self._pushed, None if self._pushed is None else self.close)
        finally:
            self._connecting = None
        self._flush()

    def _fail(self, error: Exception) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.lose(error)
        while self._unsent:
            self._unsent.popleft().fail(error)

    def _look_at_clock(self) -> None:
        """One timer for all: a server that does not answer the oldest question answers none."""
        self._clock = None
        asked_at_s = [q[0].asked_at_s for q in (self._line.sent if self._line else (), self._unsent) if q]
        if not asked_at_s:
            return
        left_s = min(asked_at_s) + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._clock = self._loop.call_later(left_s, self._look_at_clock)
        else:
            self._fail(exceptions.TimeoutError(f"no answer within {self._timeout_s:g} s"))


class _Line(asyncio.Protocol):
    """One connection, from its login to its loss."""

    def __init__(
        self,
        connection: AbstractConnection,
        pushed: Callable[[list[Any]], None] | None,
        ended: Callable[[], None] | None,
    ) -> None:
        made: Any = connection
        self._pushed, self._ended = pushed, ended
        self.sent: deque[_Question] = deque()
        self.lost = False
        self._parser: Any = hiredis.Reader(replyError=made._parser.parse_error, notEnoughData=_NOT_YET)
        self._writer: Any = made._writer  # kept: a writer that nobody holds closes its transport
        self._transport: Any = self._writer.transport
        self._transport.set_protocol(self)
        # redis-py forgets its streams, so that it neither reads from them nor complains that they were not closed.
        made._reader = made._writer = None

    def send(self, questions: Collection[_Question]) -> None:
        self.sent.extend(questions)
        self._transport.write(b"".join([question.packed for question in questions]))

    def data_received(self, data: bytes) -> None:
        parser, sent = self._parser, self.sent
        parser.feed(data)
        while (answer := parser.gets()) is not _NOT_YET:
            if type(answer) is hiredis.PushNotification:
                if self._pushed is not None:
                    self._pushed(answer)
                continue
            if not sent:
                return
            question = sent[0]
            question.answers.append(answer)
            if len(question.answers) == question.count:
                sent.popleft()
                if not question.done.done():
                    question.done.set_result(question.answers)

    def connection_lost(self, error: Exception | None) -> None:
        self.lose(exceptions.ConnectionError(f"connection lost: {error or 'closed by the server'}"))

    def lose(self, error: Exception) -> None:
        """Whether a question was carried out is not known: all of them fail, in order."""
        if self.lost:
            return
        self.lost = True
        self._transport.abort()
        while self.sent:
            self.sent.popleft().fail(error)
        if self._ended is not None:
            self._ended()
