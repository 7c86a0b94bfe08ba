"""A deployment under test: its table written, its topic read back, both compared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from connectors.conformance.harness import NAME, Rows
from connectors.conformance.limits import Limits
from connectors.conformance.topics import Reading, Told, TopicLog, fold_events, is_write
from connectors.conformance.topics_harness import Merging, TopicsHarness
from connectors.conformance.waiting import eventually
from connectors.registry import configure_one
from schemas.event import ChangeEvent

WRITE_INTERVAL_S = 0.01


class Deployed:
    """The harness with its topic. `told` is everything that was read of it, in the order of its arrival here."""

    def __init__(self, harness: TopicsHarness, bootstrap_servers: str) -> None:
        self.harness = harness
        self.configured = configure_one(harness.plugin, NAME, harness.section())
        self.log = TopicLog(bootstrap_servers, harness.topic())
        self.told: list[Told] = []
        self._reading = Reading(self.configured.config, harness.types())
        self._table = ".".join(harness.topic().split(".")[-2:])

    async def start(self) -> None:
        await self.harness.start()

    async def started(self) -> None:
        """It streams: one row was there before, and one is written after the first has come."""
        await self.write({900_001: "there before"})
        await self.start()
        await self.until_equal()
        await self.write({900_002: "in the stream"})
        await self.until_equal()

    async def write(self, rows: Mapping[int, str]) -> None:
        await self.harness.write(rows)

    async def rows(self) -> Rows:
        return await self.harness.rows()

    async def poll(self) -> list[Told]:
        """What is new, decoded: a DecodeError fails the test, because a worker would set that record aside."""
        found = self._reading.told(await self.log.poll(), self._table)
        self.told += found
        return found

    def events(self) -> list[ChangeEvent]:
        return [one.event for one in self.told if one.event is not None]

    def writes(self) -> list[ChangeEvent]:
        return [event for event in self.events() if is_write(event)]

    def fold(self) -> Rows:
        return self.folded(self.events())

    def folded(self, events: list[ChangeEvent]) -> Rows:
        return self.harness.merge(events) if isinstance(self.harness, Merging) else fold_events(events)

    async def until(self, probe: Callable[[], Awaitable[Any] | Any], what: str) -> None:
        """With everything new read before each try."""

        async def polled() -> Any:
            self.harness.alive()
            await self.poll()
            seen = probe()
            return await seen if asyncio.iscoroutine(seen) else seen

        await eventually(polled, what=what, timeout_s=Limits.patience_s)

    async def until_equal(self) -> None:
        """The topic, folded, is the table."""

        async def difference() -> list[str]:
            self.harness.alive()
            await self.poll()
            found, wanted = self.fold(), await self.rows()
            wrong = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
            shown = [f"{key}: read {found.get(key)!r:.200}, is {wanted.get(key)!r:.200}" for key in wrong[:3]]
            return [f"{len(wrong)} rows differ", *shown] if wrong else []

        await eventually(difference, _nothing, what="the topic equal to the table", timeout_s=Limits.patience_s)

    async def close(self) -> None:
        await self.log.close()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[list[str]]:
        """One row after the other, and row 1 with every one of them, until the block ends; gives row 1's values."""
        written: list[str] = []
        ended = asyncio.Event()

        async def write() -> None:
            while not ended.is_set():
                written.append(f"first {len(written)}.")
                await self.write({1: written[-1], 100 + len(written): "beside"})
                await asyncio.sleep(WRITE_INTERVAL_S)

        task = asyncio.create_task(write())
        try:
            yield written
        finally:
            ended.set()
            await task

    def values_of_first(self) -> list[str]:
        """What the changes of row 1 say of `v`, in the order that they say they have; repeats of one follow it."""
        mine = [event for event in self.writes() if event.key == {"id": 1}]
        ordered = sorted(mine, key=lambda event: event.version)
        values = [_v(event) for event in ordered]
        return [value for place, value in enumerate(values) if place == 0 or values[place - 1] != value]


def _v(event: ChangeEvent) -> str:
    if event.mutation is not None:
        return str(getattr(event.mutation.cells.get("v"), "value", None))
    return str((event.row or {}).get("v"))


def _nothing(seen: list[str]) -> bool:
    return not seen
