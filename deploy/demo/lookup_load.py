"""The load of lookups over HTTP, in a process of its own: requests go out when they are due, whether or not the server
has answered those before. Run as `python -m deploy.demo.lookup_load PLAN`, the plan as JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from deploy.demo.lookup_keys import ZipfKeys
from deploy.demo.lookup_samples import LOST, TIMED_OUT, Sample, write_samples

HOST = "127.0.0.1"
CLOSED_CONNECTIONS = 64
IDLE_S_MAX = 4.0
"""A connection that was not used for longer may be about to be closed by the server."""
_LOOK_EVERY_S = 0.05
_REMEMBERED_REQUESTS = 100_000
_KEYS_DRAWN_MAX = 400_000
_NANOSECONDS = 1_000_000_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`path` and `body` have `{key}` where the key goes; without a body it is a GET. With `rate_per_s` requests are due
    at random times of this rate; without one, each connection sends the next as soon as it has an answer (closed loop,
    `connections` of them). `connections` is the most at once, opened as needed, used last in, first out."""

    port: int
    path: str
    samples: str
    keys: int
    hottest: int | None = None
    body: str = ""
    headers: dict[str, str] = {}
    rate_per_s: float | None = None
    connections: int = CLOSED_CONNECTIONS
    warm_up_s: float = 1.0
    seconds: float = 5.0
    timeout_s: float = 2.0
    seed: int = 1

    def request(self, key: int) -> bytes:
        body = self.body.replace("{key}", str(key)).encode()
        lines = [f"{'POST' if body else 'GET'} {self.path.replace('{key}', str(key))} HTTP/1.1", f"host: {HOST}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += ["content-type: application/json", f"content-length: {len(body)}"] if body else []
        return "\r\n".join([*lines, "", ""]).encode() + body


class Outcome(msgspec.Struct, frozen=True):
    """`samples` are in the plan's file, those due in the warm-up left out. `cpu_share`: of one core, what the generator
    used; near 1 it was the generator that set the limit. `began_s`: when the warm-up had ended. `hurried`: the system
    lets it go before others."""

    began_s: float
    seconds: float
    cpu_share: float
    hurried: bool


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    _hurry()
    try:
        import uvloop

        outcome = uvloop.run(_run(plan))
    except ImportError:
        outcome = asyncio.run(_run(plan))
    print(msgspec.json.encode(outcome).decode())


async def _run(plan: Plan) -> Outcome:
    load = _Load(plan)
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would be the generator's lateness, not the server's
    began_s, computed_s = time.monotonic() + plan.warm_up_s, time.process_time()
    await load.run(began_s - plan.warm_up_s)
    cpu_share = (time.process_time() - computed_s) / (plan.warm_up_s + plan.seconds)
    write_samples(Path(plan.samples), [sample for sample in load.samples if sample.due_s >= began_s])
    return Outcome(began_s, plan.seconds, round(cpu_share, 3), os.sched_getscheduler(0) == os.SCHED_RR)


def _hurry() -> None:
    """It sleeps most of the time and shares its core: whoever else is there shall not make it late."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return  # its lateness is told in any case


class _Load:
    """All that is under way. Requests wait for a connection in the order in which they were due."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.samples: list[Sample] = []
        self.free: list[_Connection] = []
        self.all: set[_Connection] = set()
        self._opening = 0
        self._waiting: deque[tuple[float, float]] = deque()
        self._request = lru_cache(_REMEMBERED_REQUESTS)(plan.request)
        self._keys = self._draw_keys()
        self._end_s = 0.0
        self._idle = asyncio.Event()

    def _draw_keys(self) -> Iterator[int]:
        expected = int((self.plan.rate_per_s or 20_000) * (self.plan.seconds + self.plan.warm_up_s)) + 1_000
        drawn = ZipfKeys(self.plan.keys, self.plan.seed, self.plan.hottest).draw(min(expected, _KEYS_DRAWN_MAX))
        while True:
            yield from drawn

    async def run(self, now_s: float) -> None:
        plan = self.plan
        self._end_s = now_s + plan.warm_up_s + plan.seconds
        await asyncio.gather(*(self._open() for _ in range(min(plan.connections, CLOSED_CONNECTIONS))))
        watching = asyncio.create_task(self._look_at_clock())
        if plan.rate_per_s is None:
            for connection in list(self.free):
                self._next(connection)
            await asyncio.sleep(self._end_s - time.monotonic())
        else:
            await _Schedule(_times(plan, now_s), self.due).done
        self._idle.clear()
        await self._idle.wait()
        watching.cancel()
        for connection in list(self.all):
            connection.abort()

    def due(self, due_s: float, now_s: float) -> None:
        """Sends what is due, or keeps it waiting where all connections are taken."""
        if not self._waiting and (connection := self._take(now_s)) is not None:
            self._send(connection, due_s, now_s, now_s)
            return
        self._waiting.append((due_s, now_s))
        if len(self.all) + self._opening < self.plan.connections:
            asyncio.get_running_loop().create_task(self._open())

    def freed(self, connection: _Connection, now_s: float) -> None:
        if self.plan.rate_per_s is None:
            self.free.append(connection)
            self._next(connection)
        elif self._waiting:
            due_s, seen_s = self._waiting.popleft()
            self._send(connection, due_s, seen_s, now_s)
        else:
            self.free.append(connection)

    def lost(self, connection: _Connection) -> None:
        self.all.discard(connection)
        if connection in self.free:
            self.free.remove(connection)
        wanted = self._waiting or self.plan.rate_per_s is None
        if wanted and time.monotonic() < self._end_s and len(self.all) + self._opening < self.plan.connections:
            asyncio.get_running_loop().create_task(self._open())

    def _take(self, now_s: float) -> _Connection | None:
        while self.free:
            connection = self.free.pop()
            if now_s - connection.freed_s < IDLE_S_MAX:
                return connection
            self.all.discard(connection)
            connection.abort()
        return None

    def _next(self, connection: _Connection) -> None:
        """Closed loop: due when it can be sent."""
        now_s = time.monotonic()
        if now_s < self._end_s and connection in self.free:
            self.free.remove(connection)
            self._send(connection, now_s, now_s, now_s)

    def _send(self, connection: _Connection, due_s: float, seen_s: float, now_s: float) -> None:
        connection.send(self._request(next(self._keys)), Sample(due_s, seen_s, now_s, 0.0, TIMED_OUT))

    async def _open(self) -> None:
        self._opening += 1
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: _Connection(self), HOST, self.plan.port)
        except OSError:
            return
        finally:
            self._opening -= 1
        self.all.add(connection)
        self.freed(connection, time.monotonic())

    async def _look_at_clock(self) -> None:
        """What has waited for longer than the limit gets no answer any more; it counts with the time it waited."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now_s = time.monotonic()
            limit_s = now_s - self.plan.timeout_s
            while self._waiting and self._waiting[0][0] < limit_s:
                due_s, seen_s = self._waiting.popleft()
                self.samples.append(Sample(due_s, seen_s, now_s, now_s, TIMED_OUT))
            for connection in [one for one in self.all if one.busy and one.sample.due_s < limit_s]:
                connection.give_up(now_s)
            if not self._waiting and not any(one.busy for one in self.all):
                self._idle.set()


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self.busy = False
        self.freed_s = time.monotonic()
        self.sample = Sample(0.0, 0.0, 0.0, 0.0, TIMED_OUT)
        self._received = b""
        self._wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is none of asyncio's kinds

    def send(self, request: bytes, sample: Sample) -> None:
        self.busy, self.sample, self._received, self._wanted = True, sample, b"", 0
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            return
        self._received = received = self._received + data if self._received else data
        if not self._wanted:
            end = received.find(b"\r\n\r\n")
            if end < 0:
                return
            self._wanted = end + 4 + _read_head(received[:end].lower(), self.sample)
        if len(received) < self._wanted:
            return
        sample = self.sample
        sample.done_s = self.freed_s = now_s = time.monotonic()
        if sample.label:
            sample.label = f"{sample.label}/{_rung(received)}"
        self._load.samples.append(sample)
        self.busy = False
        self._load.freed(self, now_s)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self._end(time.monotonic(), LOST)
        self._load.lost(self)

    def give_up(self, now_s: float) -> None:
        self._end(now_s, TIMED_OUT)
        self.abort()

    def abort(self) -> None:
        self._transport.abort()

    def _end(self, now_s: float, code: int) -> None:
        self.busy = False
        self.sample.done_s, self.sample.code, self.sample.label = now_s, code, ""
        self._load.samples.append(self.sample)


def _read_head(head: bytes, sample: Sample) -> int:
    """Fills in what the head (lower case) says; the length of the body."""
    sample.code = int(head[9:12])
    length = 0
    for line in head.split(b"\r\n")[1:]:
        if line.startswith(b"content-length:"):
            length = int(line[15:])
        elif line.startswith(b"x-context-status:"):
            sample.label = line[17:].strip().decode()
        elif line.startswith(b"server-timing:"):
            duration = line.partition(b"dur=")[2]
            sample.server_ms = float(duration.partition(b",")[0].partition(b";")[0] or -1)
    return length


def _rung(answer: bytes) -> str:
    start = answer.find(b'"rung":"')
    return answer[start + 8 : answer.index(b'"', start + 8)].decode() if start >= 0 else ""


def _times(plan: Plan, began_s: float) -> list[float]:
    """When requests are due: a Poisson process of the plan's rate."""
    chance, rate = random.Random(plan.seed + 1), plan.rate_per_s or 1.0
    times, at_s, end_s = [], began_s + 0.05, began_s + plan.warm_up_s + plan.seconds
    while at_s < end_s:
        times.append(at_s)
        at_s += chance.expovariate(rate)
    return times


class _Schedule:
    """Calls `due(when, now)` at each of the times, woken by a timer of the kernel: those of event loops count in
    milliseconds, which is longer than most answers take."""

    def __init__(self, times: list[float], due: Callable[[float, float], None]) -> None:
        self._times, self._due, self._place = times, due, 0
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._timer = _KernelTimer()
        self._loop.add_reader(self._timer.number, self._wake)
        self._timer.set(times[0])

    def _wake(self) -> None:
        self._timer.clear()
        times = self._times
        now_s = time.monotonic()
        while self._place < len(times) and times[self._place] <= now_s:
            self._due(times[self._place], now_s)
            self._place += 1
            now_s = time.monotonic()
        if self._place < len(times):
            self._timer.set(times[self._place])
        else:
            self._loop.remove_reader(self._timer.number)
            self._timer.close()
            self.done.set_result(None)


class _KernelTimer:
    """Linux' timerfd on the monotonic clock; Python has it from 3.13 on."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self.number: int = self._library.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.number < 0:
            raise OSError(ctypes.get_errno(), "the kernel gives no timer")

    def set(self, at_s: float) -> None:
        """Readable from then on."""
        whole = int(at_s * _NANOSECONDS)
        setting = (ctypes.c_long * 4)(0, 0, whole // _NANOSECONDS, whole % _NANOSECONDS)
        self._library.timerfd_settime(self.number, 1, setting, None)

    def clear(self) -> None:
        try:
            os.read(self.number, 8)
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self.number)


if __name__ == "__main__":
    main()
