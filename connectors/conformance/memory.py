"""Kafka and the position store of the suite, in memory: deliveries can be held back and failed at will."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from connectors.conformance.harness import Rows
from connectors.source import Position, SourceRecord
from schemas.debezium_values import PLACEHOLDER
from schemas.mutation import OWN_KEY

HEARTBEAT_KEY = msgspec.json.encode({OWN_KEY: "heartbeat"})
TRUNCATED = "truncated"
"""Under this key `apply` keeps the newest truncate: whatever is older than it is refused."""

Versioned = dict[str, tuple[tuple[int, int], dict[str, Any] | None]]


class MemorySink:
    """Keeps what is delivered. While `hold` is set nothing is delivered; `failures` are raised, one per publish."""

    def __init__(self) -> None:
        self.records: list[SourceRecord] = []
        self.handed_over = 0
        self.failures: list[Exception] = []
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def publish(self, records: list[SourceRecord]) -> asyncio.Future[None]:
        self.handed_over += len(records)
        if self.failures:
            raise self.failures.pop()
        return asyncio.ensure_future(self._deliver(records))

    async def _deliver(self, records: list[SourceRecord]) -> None:
        await self._open.wait()
        self.records.extend(records)

    def fold(self) -> Rows:
        return fold_rows(self.records)


class MemoryPositions:
    """Every position that was saved, in order; `events` tells what came before what.

    While `hold` is set nothing is saved; `held` are those that wait.
    """

    def __init__(self, events: list[tuple[str, Any]] | None = None) -> None:
        self.saved: list[Position] = []
        self.held: list[Position] = []
        self.events = events if events is not None else []
        self._open = asyncio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def load(self) -> Position | None:
        return self.saved[-1] if self.saved else None

    async def save(self, position: Position) -> None:
        if not self._open.is_set():
            self.held.append(position)
        await self._open.wait()
        self.events.append(("saved", position))
        self.saved.append(position)


def fold_rows(records: Sequence[SourceRecord]) -> Rows:
    """The rows after all records: never backwards, deletes included."""
    rows: Versioned = {}
    for record in records:
        apply(rows, record)
    return {key: row for key, (_, row) in rows.items() if row is not None}


def apply(rows: Versioned, record: SourceRecord) -> None:
    """One record on top of what is known, as a consumer that keeps versions would do it."""
    if record.value is None:
        return
    event = msgspec.json.decode(record.value)
    if "source" not in event:  # a letter: a row that was set aside
        return
    first, second = msgspec.json.decode(event["source"]["sequence"])
    version = (int(first), int(second))
    floor = rows.get(TRUNCATED, ((0, 0), None))[0]
    if event["op"] == "t":
        rows[TRUNCATED] = (max(floor, version), None)
        rows.update({key: (version, None) for key, (old, _) in rows.items() if old < version})
        return
    known, before = rows.get(record.key.decode(), ((0, 0), None))
    if event["op"] in "crud" and version >= max(floor, known):
        after = event["after"]
        if after is not None and before is not None:
            after = {name: before.get(name) if value == PLACEHOLDER else value for name, value in after.items()}
        rows[record.key.decode()] = (version, after)


def is_heartbeat(record: SourceRecord) -> bool:
    return record.key == HEARTBEAT_KEY


def change_of(record: SourceRecord) -> tuple[str, str, Any] | None:
    """(operation, key, state after it) of a change of a row; None for heartbeats, messages, truncates, tombstones."""
    if record.value is None or is_heartbeat(record):
        return None
    event = msgspec.json.decode(record.value)
    return None if event.get("op") in (None, "m", "t") else (event["op"], record.key.decode(), event.get("after"))


def changes_of(records: Sequence[SourceRecord]) -> list[tuple[str, str, Any]]:
    return [change for record in records if (change := change_of(record)) is not None]


def from_snapshot(record: SourceRecord) -> bool | None:
    """Whether it says that it comes from a snapshot; None for what is no change of a row."""
    if record.value is None or change_of(record) is None:
        return None
    return bool(msgspec.json.decode(record.value)["source"]["snapshot"] != "false")
