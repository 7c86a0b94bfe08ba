"""What a connector tells of itself, and that it ends in its time when Kafka takes nothing any more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from connectors.conformance.memory import MemoryPositions, MemorySink
from connectors.health import QUIET_S, STANDS_S_MAX, FirstReading, watch_source
from connectors.source import Position
from pipeline.core.errors import Retryable
from pipeline.core.health import Health
from tests.support.eventually import eventually
from tests.unit.test_connector_runtime import runtime


def watched() -> tuple[Any, Any, FirstReading, Health, list[str]]:
    now, shown = SimpleNamespace(s=0.0), list[str]()
    statistics = SimpleNamespace(opened=0, acknowledged=0, records_read=0, records_delivered=0, bytes_in_flight=0)
    running: Any = SimpleNamespace(statistics=statistics, trouble="")
    reading = FirstReading(lambda table, rows, estimate: shown.append(f"{table} {rows}/{estimate}"))
    health = Health("connect")
    watch_source("shop", running, reading, health, lambda: now.s)
    health.started()
    return now, running, reading, health, shown


def test_a_source_has_begun_when_its_first_snapshot_is_in_kafka() -> None:
    _, running, reading, health, shown = watched()
    assert "being opened" in health.startup().text()
    running.trouble = "Postgres does not answer"
    assert "Postgres does not answer" in health.startup().text() and health.live().ok
    running.trouble, running.statistics.opened = "", 1
    assert "nothing of it is in Kafka yet" in health.ready().text() and not health.ready().ok
    running.statistics.records_read = 5
    reading("public.item", 5, 10)
    running.statistics.acknowledged = 1
    assert "public.item: 5 of about 10 rows" in health.startup().text()
    reading("public.item", 10, 10)
    assert health.startup().ok and health.ready().ok and shown == ["public.item 5/10", "public.item 10/10"]
    reading("public.item", 1, 10)
    running.trouble = "Kafka does not answer"
    assert health.ready().ok, "a table that is read again later takes nothing back"
    assert "[~]source shop degraded: Kafka does not answer" in health.ready().text()


def test_a_quiet_source_has_begun_and_one_that_stands_is_not_alive() -> None:
    now, running, _, health, _ = watched()
    running.statistics.opened = 1
    assert not health.startup().ok
    now.s += QUIET_S + 1
    assert health.startup().ok, "nothing was to be read"
    running.statistics.bytes_in_flight = 100
    assert health.live().ok
    now.s += STANDS_S_MAX - 1
    running.statistics.records_delivered = 7
    assert health.live().ok
    now.s += STANDS_S_MAX + 1
    assert "not in Kafka after 301 s" in health.live().text() and not health.live().ok
    running.statistics.bytes_in_flight = 0
    assert health.live().ok


async def test_an_end_waits_for_kafka_only_so_long() -> None:
    class Gone(MemoryPositions):
        async def save(self, position: Position) -> None:
            await asyncio.Event().wait()

    log: list[Any] = []
    for sink, positions in ((MemorySink(), Gone()), (MemorySink(), MemoryPositions())):
        if not isinstance(positions, Gone):
            sink.hold()
        running = runtime(log, sink, positions, [], acknowledge_interval_s=3600, stop_timeout_s=0.2)
        task = asyncio.create_task(running.run())
        await eventually(lambda: running.statistics.opened == 1 and sink.handed_over >= 3)  # noqa: B023
        running.stop()
        done, _ = await asyncio.wait({task}, timeout=20)
        assert done and not positions.saved and log[-1] == ("close", None)


async def test_trouble_is_told_until_something_is_in_kafka_again() -> None:
    log: list[Any] = []
    running = runtime(log, MemorySink(), MemoryPositions(), [Retryable("the source is away")], retry_delay_s=0.05)
    task = asyncio.create_task(running.run())
    await eventually(lambda: running.trouble == "the source is away")
    await eventually(lambda: running.trouble == "" and running.statistics.opened == 2)
    running.stop()
    await task
