"""One connection of `serve`, on uvicorn's HTTP: with limits on what a client may send and how slowly, and with its
certificate where it has one."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipeline.lookup.admission import Ticket
from pipeline.lookup.at_once import TICKET, AtOnceOf, at_once_of
from pipeline.lookup.guarding import CERTIFICATE

HEAD_BYTES_MAX = 32 * 1024
HEAD_S, BODY_S, UNREAD_S = 10.0, 60.0, 30.0
"""For all of a request's head, all of its body, and for a client that does not take what it asked for."""
_TOO_LARGE, _TOO_SLOW = 431, 408
_OF_BODIES = frozenset((b"content-length", b"transfer-encoding", b"expect"))
_PHRASES = {_TOO_LARGE: "Request Header Fields Too Large", _TOO_SLOW: "Request Timeout"}


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn itself has no limit on the size of a head, and none on the time for a head or a body. A request that
    comes in one piece, as nearly all do, starts no clock."""

    head_s, body_s, unread_s = HEAD_S, BODY_S, UNREAD_S
    head_bytes_max = HEAD_BYTES_MAX

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._certificate: dict[Any, Any] | None = transport.get_extra_info("peercert")
        self._in_head, self._in_body, self._head_bytes = True, False, 0
        self._at_once, self._at_once_left, self._answered = at_once_of(self.app), 1, False
        self._clock: asyncio.TimerHandle | None = None
        self._unread_clock: asyncio.TimerHandle | None = None
        self._start_clock(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        if self._unread_clock is not None:
            self._unread_clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # One for each time that its turn comes: who sends a thousand in one piece has to wait with the others.
        self._at_once_left = 1
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.head_bytes_max:
                self._refuse(_TOO_LARGE)
        if self._clock is None and (self._in_head or self._in_body or self._idle):
            self._start_clock(self.body_s if self._in_body else self.head_s)

    @property
    def _idle(self) -> bool:
        """Between two requests, with a byte that began none but ended uvicorn's own clock."""
        return self.cycle is not None and self.cycle.response_complete and self.timeout_keep_alive_task is None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._answered = True, 0, False
        if self._certificate:
            self.scope["extensions"] = {CERTIFICATE: self._certificate}

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body = False, True
        self._stop_clock()
        too_large = len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.head_bytes_max
        if not too_large and self._at_once is not None and self._tell_at_once(self._at_once):
            return
        application = self.app
        if too_large:
            self.app = _too_large
        super().on_headers_complete()
        self.app = application

    def on_message_complete(self) -> None:
        self._in_body = False
        self._stop_clock()
        if not self._answered:
            super().on_message_complete()

    def _tell_at_once(self, at_once: AtOnceOf) -> bool:
        """Whether it was answered."""
        if not self._at_once_left or not self._is_usual():
            return False
        path, _, query = self.url.partition(b"?")
        found = at_once(unquote(path.decode("latin-1")), query, self.headers, self.scheme == "https")
        if isinstance(found, Ticket):
            self.scope[TICKET] = found  # type: ignore[literal-required]
            return False
        if found is None:
            return False
        self._at_once_left, self._answered = 0, True
        status, headers, body = found
        parts = [STATUS_LINE[status]]
        for name, value in chain(self.server_state.default_headers, headers):
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n", body)
        self.transport.write(b"".join(parts))
        self.on_response_complete()
        return True

    def _is_usual(self) -> bool:
        """A GET without a body, on a connection that stays and that nobody else writes to now."""
        parser, cycle, most = self.parser, self.cycle, self.limit_concurrency
        if not self.url.startswith(b"/") or b"#" in self.url or not self.url.isascii():
            return False
        if parser.get_method() != b"GET" or parser.get_http_version() != "1.1" or parser.should_upgrade():
            return False
        if not parser.should_keep_alive() or self.flow.write_paused or self.transport.is_closing():
            return False
        if cycle is not None and not cycle.response_complete:
            return False
        if most is not None and (len(self.connections) >= most or len(self.tasks) >= most):
            return False
        return all(name not in _OF_BODIES for name, _ in self.headers)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_clock = self.loop.call_later(self.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread_clock is not None:
            self._unread_clock.cancel()
            self._unread_clock = None
        super().resume_writing()

    def _start_clock(self, after_s: float) -> None:
        self._clock = self.loop.call_later(after_s, self._refuse, _TOO_SLOW)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _refuse(self, status: int) -> None:
        """Closes, with a word where no answer is on its way."""
        self._stop_clock()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(b"HTTP/1.1 %d %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % _status(status))
        self.transport.close()


def _status(status: int) -> tuple[int, bytes]:
    return status, _PHRASES[status].encode()


async def _too_large(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": _TOO_LARGE, "headers": headers})
    await send({"type": "http.response.body"})
