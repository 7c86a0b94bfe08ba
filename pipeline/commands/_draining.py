"""The end of a server that answers callers: not ready first, then a pause, then what is in flight, then nothing."""

from __future__ import annotations

import math
import signal
import socket
import time
from types import FrameType
from typing import TYPE_CHECKING

from uvicorn import Config, Server

from pipeline.streams.ending import end_late

if TYPE_CHECKING:
    from pipeline.core.health import Health
    from pipeline.core.running import RunningConfig

CLOSE = (b"connection", b"close")
FINISH_SHARE = 0.75
"""Of the time to drain, for requests in flight; the rest is for closing indexes, stores and files."""


async def run_server(settings: Config, listener: socket.socket, health: Health, running: RunningConfig) -> None:
    """Until SIGTERM or SIGINT. uvicorn raises the signal once more when it has answered what was on its way, and its
    default would end the process before anything of ours is closed."""
    signal.signal(signal.SIGTERM, _swallow_one)
    settings.timeout_graceful_shutdown = math.ceil(running.drain_s * FINISH_SHARE)
    health.beats()
    health.started()
    await DrainingServer(settings, health, running).serve(sockets=[listener])


class DrainingServer(Server):
    """The first signal makes it not ready; it answers on for the pause, each answer with the word that the connection
    closes, so that no caller sends its next request into a closing one. The second signal ends the pause."""

    def __init__(self, settings: Config, health: Health, running: RunningConfig) -> None:
        super().__init__(settings)
        self._health, self._running = health, running
        self._asked: int | None = None
        self._stops_at_s = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked is None:
            self._health.stopping()
            self._asked, self._stops_at_s = sig, time.monotonic() + self._running.pause_s
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._asked is not None and CLOSE not in self.config.encoded_headers:
            end_late(self._running.pause_s + self._running.drain_s)
            self.config.encoded_headers = [*self.config.encoded_headers, CLOSE]
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        if self._asked is not None and not self.should_exit and time.monotonic() >= self._stops_at_s:
            super().handle_exit(self._asked, None)
        return await super().on_tick(counter)


def _swallow_one(number: int, _frame: object) -> None:
    """The next one ends a process that hangs while it closes."""
    signal.signal(number, signal.SIG_DFL)
