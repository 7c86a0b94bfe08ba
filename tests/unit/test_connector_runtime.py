"""The runtime's order of things, over a source that is a list."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from connectors.conformance.memory import MemoryPositions, MemorySink
from connectors.runtime import Attempt, Runtime, RuntimeSettings
from connectors.source import Batch, Position, SourceRecord
from pipeline.core.errors import EnvironmentProblem, Fatal, PositionLost, Retryable
from tests.support.eventually import eventually

SETTINGS = RuntimeSettings(acknowledge_interval_s=0.001, retry_delay_s=0.001, in_flight_bytes_max=250)


class ListSource:
    """Yields numbered records of 100 bytes behind the position; what is in `errors` comes out of open or read."""

    def __init__(self, log: list[Any], errors: list[Exception]) -> None:
        self._log = log
        self._errors = errors
        self._next = 0

    async def open(self, position: Position | None) -> None:
        self._log.append(("open", position))
        if self._errors and isinstance(self._errors[0], PositionLost):
            raise self._errors.pop(0)
        self._next = position["at"] if position else 0

    async def read(self) -> Batch:
        if self._errors and self._next >= 3:
            raise self._errors.pop(0)
        if self._next >= 10:
            await asyncio.Event().wait()
        self._next += 1
        self._log.append(("read", self._next))
        return Batch([SourceRecord("t", b"%d" % self._next, b"v")], {"at": self._next}, 100)

    async def acknowledge(self, position: Position) -> None:
        self._log.append(("acknowledge", position["at"]))

    async def close(self) -> None:
        self._log.append(("close", None))


def runtime(
    log: list[Any], sink: MemorySink, positions: MemoryPositions, errors: list[Exception], **changes: Any
) -> Runtime:
    async def make() -> Attempt:
        return Attempt(ListSource(log, errors), sink, positions)

    values = {name: getattr(SETTINGS, name) for name in SETTINGS.__struct_fields__}
    return Runtime(make, RuntimeSettings(**{**values, **changes}))


async def test_reads_ahead_only_a_bounded_number_of_bytes() -> None:
    log: list[Any] = []
    sink = MemorySink()
    sink.hold()
    running = runtime(log, sink, MemoryPositions(), [])
    task = asyncio.create_task(running.run())
    await eventually(lambda: sink.handed_over >= 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert sink.handed_over == 3 and not [entry for entry in log if entry[0] == "acknowledge"]
    sink.release()
    await eventually(lambda: ("acknowledge", 10) in log)
    running.stop()
    await task
    assert log[-1] == ("close", None)


async def test_goes_on_behind_the_stored_position_after_an_error() -> None:
    log: list[Any] = []
    sink, positions = MemorySink(), MemoryPositions()
    running = runtime(log, sink, positions, [Retryable("away"), Retryable("away again")])
    task = asyncio.create_task(running.run())
    await eventually(lambda: ("acknowledge", 10) in log)
    running.stop()
    await task
    opened = [position for kind, position in log if kind == "open"]
    assert opened[0] is None and len(opened) == 3 and running.statistics.retries == 2
    assert {record.key for record in sink.records} == {b"%d" % number for number in range(1, 11)}


async def test_stop_delivers_and_acknowledges_what_was_read() -> None:
    log: list[Any] = []
    sink, positions = MemorySink(), MemoryPositions()
    running = runtime(log, sink, positions, [], acknowledge_interval_s=3600)
    task = asyncio.create_task(running.run())
    await eventually(lambda: len(sink.records) == 10)
    running.stop()
    await task
    assert positions.saved[-1] == {"at": 10} and ("acknowledge", 10) in log


async def test_what_ends_for_good() -> None:
    with pytest.raises(Fatal, match="never seen"):
        await runtime([], MemorySink(), MemoryPositions(), [Fatal("never seen")]).run()
    positions = MemoryPositions()
    with pytest.raises(PositionLost, match="gap"):
        await runtime([], MemorySink(), positions, [PositionLost("gap")]).run()
    sink = MemorySink()
    sink.failures.append(Retryable("no broker"))
    with pytest.raises(EnvironmentProblem, match="no broker"):
        await runtime([], sink, MemoryPositions(), [], patient_start=False).run()


async def test_a_position_that_moved_meanwhile_is_loaded_again() -> None:
    """A predecessor that is just leaving stores its last position after we have read the one before."""

    class Moving(MemoryPositions):
        async def load(self) -> Position | None:
            found = await super().load()
            if len(self.saved) < 2:
                self.saved.append({"at": 5 + len(self.saved)})
            return found

    log: list[Any] = []
    positions = Moving()
    running = runtime(log, MemorySink(), positions, [PositionLost("moved by somebody")])
    task = asyncio.create_task(running.run())
    await eventually(lambda: ("acknowledge", 10) in log)
    running.stop()
    await task
    assert [position for kind, position in log if kind == "open"] == [None, {"at": 6}]
