"""Steady load on `ctxpipe serve` from a process of its own: lookups and searches over HTTP, so many at once that each
waits for its answer and asks the next question at once; every search answer is checked to be of one space."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import Random
from typing import Any
from urllib.parse import quote

import msgspec

from deploy.demo.freshness import percentile
from deploy.demo.http_client import HttpConnection
from deploy.demo.mixed import EXAMPLES_MAX, MixedAnswers
from pipeline.core.errors import EnvironmentProblem

SEARCH_SHARE, BATCH_SHARE = 0.12, 0.08
KEY_SEARCH_SHARE, FILTER_SHARE = 0.15, 0.15
BATCH_KEYS = 10
HITS = 5
SEARCH_BUDGET_MS = 20_000
"""The load takes all of the machine: what is late shall be late, not answered by words alone."""
LOOKUP_BUDGET_MS = 2_000
"""Clients that wait, on a machine that everything shares: a request refused for its budget is none of the swap's."""
_LISTEN_EVERY_S = 0.05
_START_S, _ANSWER_S, _END_S = 60.0, 60.0, 120.0


@dataclass(frozen=True, slots=True)
class TrafficSettings:
    """`keys` are looked up, `questions` searched, by `clients` at once."""

    host: str
    port: int
    context: str
    keys: Sequence[str]
    questions: Sequence[str]
    clients: int = 200


class Told(msgspec.Struct):
    """What the load has seen so far. `latest`: the space of the newest search answer."""

    lookups: int = 0
    searches: int = 0
    errors: int = 0
    degraded: int = 0
    latest: str = ""
    error_examples: list[str] = []


@dataclass
class Ended:
    """The whole of it. `latency_ms`: phase → kind → milliseconds of each answer."""

    told: Told
    mixed: MixedAnswers
    latency_ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)


class Traffic:
    """It asks from when this returns until `stop`. Raises EnvironmentProblem where its process fails.

    `know` tells it a space's template; `phase` names what happens from now on, for the latencies.
    """

    def __init__(self, settings: TrafficSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(settings, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._receive(_START_S)

    def know(self, space: str, template: str) -> None:
        self._send(("know", space, template))

    def phase(self, name: str) -> None:
        self._send(("phase", name))

    def look(self) -> Told:
        """What it has seen up to now."""
        self._send(("look",))
        found = self._receive(_ANSWER_S)
        assert isinstance(found, Told)
        return found

    def stop(self) -> Ended:
        """Waits for what is under way."""
        self._send(("stop",))
        try:
            found = self._receive(_END_S)
        finally:
            self.close()
        assert isinstance(found, Ended)
        return found

    def close(self) -> None:
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()

    def _send(self, message: tuple[str, ...]) -> None:
        try:
            self._ours.send(message)
        except OSError:
            raise EnvironmentProblem("the process that makes the load has ended") from None

    def _receive(self, timeout_s: float) -> Told | Ended:
        try:
            if not self._ours.poll(timeout_s):
                raise EnvironmentProblem(f"the process that makes the load told nothing for {timeout_s:g} s")
            found: Told | Ended = self._ours.recv()
        except (EOFError, OSError):
            raise EnvironmentProblem("the process that makes the load has ended") from None
        return found


def latency_figures(of_phase: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Kind → p50, p99, p99.9 and the slowest, milliseconds."""
    shares = {"p50": 0.5, "p99": 0.99, "p99_9": 0.999, "max": 1.0}
    return {
        kind: {name: round(percentile(values, share), 1) for name, share in shares.items()}
        for kind, values in sorted(of_phase.items())
        if values
    }


def _run(settings: TrafficSettings, pipe: Connection) -> None:
    import uvloop

    uvloop.run(_Load(settings, pipe).run())


_BUDGET = f"?budget_ms={LOOKUP_BUDGET_MS}"


class _Load:
    def __init__(self, settings: TrafficSettings, pipe: Connection) -> None:
        self._settings, self._pipe = settings, pipe
        self._told, self._mixed = Told(), MixedAnswers()
        self._latency_ms: dict[str, dict[str, list[float]]] = {}
        self._phase, self._stopped = "start", False
        self._base = f"/v1/contexts/{settings.context}"

    async def run(self) -> None:
        clients = [asyncio.create_task(self._client(Random(number))) for number in range(self._settings.clients)]
        self._pipe.send(self._told)
        while not self._stopped:
            await asyncio.sleep(_LISTEN_EVERY_S)
            while self._pipe.poll():
                self._obey(self._pipe.recv())
        await asyncio.gather(*clients)
        self._mixed.finish()
        self._pipe.send(Ended(self._told, self._mixed, self._latency_ms))

    def _obey(self, message: tuple[str, ...]) -> None:
        if message[0] == "know":
            self._mixed.know(*message[1:])
        elif message[0] == "phase":
            self._phase = message[1]
        elif message[0] == "look":  # told only when asked: a pipe that nobody reads would stop the load
            self._pipe.send(self._told)
        else:
            self._stopped = True

    async def _client(self, chance: Random) -> None:
        connection = HttpConnection(self._settings.host, self._settings.port)
        while not self._stopped:
            roll, phase, started_s = chance.random(), self._phase, time.perf_counter()
            try:
                if roll < SEARCH_SHARE:
                    kind = "search"
                    await self._search(connection, chance)
                else:
                    kind = "lookup" if roll < 1 - BATCH_SHARE else "batch of ten lookups"
                    await self._look_up(connection, chance, 1 if kind == "lookup" else BATCH_KEYS)
            except (OSError, _Wrong, msgspec.DecodeError, KeyError) as error:
                self._error(error)
                await asyncio.sleep(0.1)
                continue
            of_phase = self._latency_ms.setdefault(phase, {})
            of_phase.setdefault(kind, []).append((time.perf_counter() - started_s) * 1000)
        connection.close()

    async def _look_up(self, connection: HttpConnection, chance: Random, count: int) -> None:
        keys = chance.sample(self._settings.keys, min(count, len(self._settings.keys)))
        if count == 1:
            body = await self._asked(connection, f"{self._base}/{quote(keys[0], safe='')}{_BUDGET}", None)
            answers = [_DECODE_ONE(body)]
        else:
            question = msgspec.json.encode({"keys": keys})
            answers = _DECODE_MANY(await self._asked(connection, f"{self._base}:batchGet{_BUDGET}", question)).answers
        for answer in answers:
            if answer.status not in ("fresh", "stale"):
                raise _Wrong(f"bundle {answer.key} is {answer.status}")
        self._told.lookups += len(answers)

    async def _search(self, connection: HttpConnection, chance: Random) -> None:
        question: str | None = None
        asked: dict[str, Any] = {"k": HITS, "budget_ms": SEARCH_BUDGET_MS}
        if chance.random() < KEY_SEARCH_SHARE:
            asked["key"] = chance.choice(self._settings.keys)
        else:
            question = asked["text"] = chance.choice(self._settings.questions)
            if chance.random() < FILTER_SHARE:
                asked["filter"] = {"year": {"lt": chance.randrange(1985, 2013)}}
        body = await self._asked(connection, f"{self._base}:search", msgspec.json.encode(asked))
        answer = msgspec.json.decode(body)
        self._mixed.look(question, answer)
        self._told.searches += 1
        self._told.degraded += answer["degraded"] is not None
        self._told.latest = answer["space"]

    async def _asked(self, connection: HttpConnection, path: str, body: bytes | None) -> bytes:
        status, found = await connection.ask(path, body)
        if status != 200:
            raise _Wrong(f"{path} answered {status}: {found[:300].decode(errors='replace')}")
        return found

    def _error(self, error: Exception) -> None:
        self._told.errors += 1
        if len(self._told.error_examples) < EXAMPLES_MAX:
            self._told.error_examples.append(str(error))


class _Wrong(Exception):
    """An answer that should have been another one."""


class _Label(msgspec.Struct):
    key: str
    status: str


class _Labels(msgspec.Struct):
    answers: list[_Label]


_DECODE_ONE = msgspec.json.Decoder(_Label).decode
_DECODE_MANY = msgspec.json.Decoder(_Labels).decode
