"""Freshness as a searcher sees it: from the commit in Postgres to the first search that finds the new text."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from deploy.demo.renaming import Renaming
from pipeline.core.errors import EnvironmentProblem

_PAUSE_S = 0.001
_GIVE_UP_S = 30.0
_START_S = 60.0
_TIMEOUT_S = 10.0
_OK, _UNAVAILABLE = 200, 503


@dataclass(frozen=True, slots=True)
class Found:
    """`found_ns` None: given up on. `asked_ns`: when the search before it, which did not find it, was sent; what is
    between the two is the error of measuring. Nanoseconds since 1970 UTC."""

    marker: str
    committed_ns: int
    asked_ns: int
    found_ns: int | None


@dataclass(slots=True)
class Watched:
    """`searches_ms`: how long each search took, all the time; `unanswered`: how many of them had no vectors to show in
    time, and were asked again."""

    found: list[Found]
    searches_ms: list[float]
    unanswered: int = 0

    def add(self, more: Watched) -> None:
        self.found += more.found
        self.searches_ms += more.searches_ms
        self.unanswered += more.unanswered


class SearchWatcher:
    """A searcher in a process of its own that asks `ctxpipe serve` for one text after the other, one at a time, those
    that it was told of in turn, until each is the best hit; it is ready when this returns.

    `expect` after each commit; `collect` what has been found since the last call; `close` at the end. All on one
    machine's clock.
    """

    def __init__(self, host: str, port: int, context: str) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._ours, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_watch, args=(host, port, context, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            if not self._ours.poll(_START_S):
                raise EOFError
            self._ours.recv()
        except EOFError:
            self._process.terminate()
            raise EnvironmentProblem("the process that searches did not start") from None
        self.expected = 0

    def expect(self, change: Renaming, committed_ns: int) -> None:
        self.expected += 1
        self._ours.send((change, committed_ns))

    def collect(self) -> Watched:
        """Raises EnvironmentProblem where the searches were answered with an error."""
        watched = Watched([], [])
        try:
            while self._ours.poll():
                message = self._ours.recv()
                if isinstance(message, str):
                    raise EnvironmentProblem(message)
                watched.add(message)
        except EOFError:
            raise EnvironmentProblem("the process that searches has ended") from None
        return watched

    def close(self) -> None:
        try:
            self._ours.send(None)
        except OSError:
            return  # it has ended already
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()


@dataclass(slots=True)
class _Expected:
    change: Renaming
    committed_ns: int
    asked_ns: int


def _watch(host: str, port: int, context: str, pipe: Connection) -> None:
    asking = Asking(host, port, context)
    pipe.send("")
    try:
        _search_until_told(asking, pipe)
    except (OSError, http.client.HTTPException, EnvironmentProblem) as error:
        pipe.send(f"a search failed: {error}")


def _search_until_told(asking: Asking, pipe: Connection) -> None:
    waiting: deque[_Expected] = deque()
    while True:
        while pipe.poll(None if not waiting else 0):
            message = pipe.recv()
            if message is None:
                return
            waiting.append(_Expected(message[0], message[1], message[1]))
        one = waiting.popleft()
        asked_ns, started = time.time_ns(), time.perf_counter()
        there = asking.finds(one.change)
        watched = Watched([], [(time.perf_counter() - started) * 1000], there is None)
        now_ns = time.time_ns()
        if there or now_ns - one.committed_ns > _GIVE_UP_S * 1e9:
            found_ns = now_ns if there else None
            watched.found.append(Found(one.change.marker, one.committed_ns, one.asked_ns, found_ns))
        else:
            one.asked_ns = asked_ns
            waiting.append(one)
        pipe.send(watched)
        time.sleep(_PAUSE_S)


class Asking:
    """One connection to `ctxpipe serve`, kept open."""

    def __init__(self, host: str, port: int, context: str) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
        self._path = f"/v1/contexts/{context}:search"

    def finds(self, change: Renaming) -> bool | None:
        """Whether the best hit is this plane with this text; None where no vectors answered in time. Raises
        EnvironmentProblem for an answer that is none."""
        status, answer = self.ask({"text": change.text, "mode": "vector", "k": 1, "bundles": False})
        if status == _UNAVAILABLE or (status == _OK and answer["degraded"]):
            return None
        if status != _OK:
            raise EnvironmentProblem(f"HTTP {status} {answer.get('detail')}")
        hits = answer["hits"]
        if not hits or hits[0]["key"] != change.tailnum or hits[0]["moved_on"]:
            return False
        return change.marker in (hits[0]["passage"]["text"] or "")

    def ask(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self._connection.request("POST", self._path, json.dumps(body))
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def close(self) -> None:
        self._connection.close()
