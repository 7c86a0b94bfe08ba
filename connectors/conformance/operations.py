"""The suite's tests of a long life: idle, blocked, restarted, altered under way, with large and repeated rows."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from connectors.conformance.harness import (
    NAME,
    Altering,
    Duplicating,
    Exclusive,
    Late,
    Restarting,
    Switching,
    needs,
)
from connectors.conformance.limits import Limits
from connectors.conformance.memory import is_heartbeat
from connectors.conformance.running import IN_FLIGHT_BYTES_MAX, Running, Subject
from connectors.source import EVERY_PARTITION, Topics
from pipeline.core.errors import EnvironmentProblem, Retryable

LARGE_ROW_BYTES = 10_000_000
DESCRIPTORS, THREADS = Path("/proc/self/fd"), Path("/proc/self/task")


class OperationTests:
    """Nothing ends the run but a person, nothing is left behind, memory is bounded."""

    async def test_an_idle_source_says_that_time_goes_by(self, subject: Subject) -> None:
        async with subject.running() as running:
            await running.until(lambda: sum(map(is_heartbeat, running.sink.records)) >= 3, "three heartbeats")
            beats = [record for record in running.sink.records if is_heartbeat(record)]
        assert {record.partition for record in beats} == {EVERY_PARTITION}, "every reader hears of it"
        source = subject.source()
        assert isinstance(source, Topics)
        assert {record.topic for record in beats} <= set(source.table_topics())
        await source.close()

    async def test_every_record_goes_to_a_topic_that_was_announced(self, subject: Subject) -> None:
        await subject.write({1: "a row"})
        async with subject.running() as running:
            await running.until_equal()
        source = subject.source()
        assert isinstance(source, Topics)
        announced = {*source.table_topics(), *source.other_topics(), f"ctxpipe.{NAME}.dead-letter"}
        await source.close()
        assert {record.topic for record in running.sink.records} <= announced

    async def test_cancelled_while_idle_it_leaves_nothing(
        self, subject: Subject, conformance_stop_timeout_s: float
    ) -> None:
        position = await subject.streaming_position()
        gc.collect()
        tasks, sockets, processes = asyncio.all_tasks(), _sockets(), _processes()
        source = subject.source()
        await source.open(position)
        reading = asyncio.create_task(_read_on(source))
        await asyncio.sleep(0.5)  # until it waits
        reading.cancel()
        async with asyncio.timeout(conformance_stop_timeout_s):
            with suppress(asyncio.CancelledError):
                await reading
            await source.close()
        await asyncio.sleep(0)
        gc.collect()
        left = [task.get_name() for task in asyncio.all_tasks() - tasks if not task.done()]
        assert not left, "tasks left behind"
        assert not _sockets() - sockets, "connections left open"
        assert not _processes() - processes, "processes left behind"

    async def test_a_source_that_was_never_opened_can_be_closed(self, subject: Subject) -> None:
        tasks = asyncio.all_tasks()
        source = subject.source()
        await source.close()
        await source.close()
        assert not [task for task in asyncio.all_tasks() - tasks if not task.done()]

    async def test_a_blocked_sink_is_waited_for(self, subject: Subject, conformance_blocked_s: float) -> None:
        large = "x" * 20_000
        async with subject.running() as running:
            await running.until_equal()
            running.sink.hold()
            loop = asyncio.get_running_loop()
            until, number, most = loop.time() + conformance_blocked_s, 0, 0
            while loop.time() < until or number < 10:
                await subject.write({number * 50 + row: f"{large} {number}" for row in range(10)})
                number += 1
                running.alive()
                most = max(most, running.runtime.statistics.bytes_in_flight)
                await asyncio.sleep(min(0.05 * number, conformance_blocked_s / 20))
            largest = max(batch.bytes_total for batch in running.batches)
            assert most <= IN_FLIGHT_BYTES_MAX + largest, "it goes on reading without an end"
            running.sink.release()
            await running.until_equal()
            assert len(running.sources) == 1, "its connection did not survive the wait"

    async def test_a_row_of_10_mb(self, subject: Subject) -> None:
        await subject.write({1: "a" * LARGE_ROW_BYTES})
        async with subject.running() as running:
            await running.until_equal()
            await subject.write({2: "b" * LARGE_ROW_BYTES, 3: "small"})
            await running.until_equal()
        assert all(batch.bytes_total >= LARGE_ROW_BYTES for batch in running.batches if _large(batch.records))

    @needs(Restarting)
    async def test_a_restarted_server_is_found_again(self, subject: Subject, harness: Any) -> None:
        async with subject.running() as running:
            for number in range(2):
                await subject.write({number: "before", 10: f"round {number}"})
                await running.until_equal()
                await subject.write({20 + number: "on its way"})
                await harness.restart()
                await subject.write({number: "after"})
            await running.until_equal()

    @needs(Altering)
    async def test_a_table_may_change_under_way(self, subject: Subject, harness: Any) -> None:
        await subject.write({1: "before"})
        async with subject.running() as running:
            await running.until_equal()
            step = 0
            while await harness.alter(step):
                await subject.write({1: f"after step {step}", 2: "rows untouched since keep their old shape"})
                await subject.write({2: f"after step {step}"})
                await running.until_equal()
                step += 1
            assert step, "no step at all"

    @needs(Exclusive)
    async def test_a_second_reader_is_refused(self, subject: Subject, harness: Any) -> None:
        async with subject.running() as running:
            await running.until_equal()
            await subject.write({2: "in the stream"})
            await running.until_equal()
            await running.until(lambda: _stored(running), "the position of what was read is stored")
            second = subject.source()
            try:
                await second.open(running.positions.saved[-1])
                await asyncio.wait_for(second.read(), Limits.patience_s)
            except (EnvironmentProblem, Retryable) as error:  # it may wait for the first one's end
                assert harness.refusal() in str(error)
            else:
                raise AssertionError("a second reader was let in")
            finally:
                await second.close()
            await subject.write({1: "still read by the first"})
            await running.until_equal()
            assert len(running.sources) == 1, "the first was disturbed"

    @needs(Duplicating)
    async def test_copies_of_a_change_are_one(self, subject: Subject, harness: Any) -> None:
        async with subject.running() as running:
            for number in range(5):
                await harness.write_copies({1: f"copy {number}", 2 + number: "copied"})
            await running.until_equal()

    @needs(Late)
    async def test_late_writes_are_read_and_win_over_nothing_newer(self, subject: Subject, harness: Any) -> None:
        async with subject.running() as running:
            await subject.write({1: "new"})
            await running.until_equal()
            await harness.write_late({1: "late", 2: "late"})
            await running.until_equal()
            await subject.write({2: "newer"})
            await running.until_equal()

    @needs(Switching)
    async def test_a_log_that_moves_is_followed(self, subject: Subject, harness: Any) -> None:
        await subject.write({1: "before"})
        async with subject.running() as running:
            await running.until_equal()
            for number in range(2):
                await subject.write({1: f"before {number}"})
                await harness.switch()
                await subject.write({1: f"after {number}", 10 + number: "new"})
                await running.until_equal()
        position = running.positions.saved[-1]
        await harness.switch()
        await subject.write({2: "while nobody reads"})
        running.positions.saved.append(position)
        async with subject.running(running.sink, running.positions) as again:
            await again.until_equal()


async def _read_on(source: Any) -> None:
    while True:
        await source.read()


def _large(records: list[Any]) -> bool:
    return any(len(record.value or b"") >= LARGE_ROW_BYTES for record in records)


def _stored(running: Running) -> bool:
    read = [batch.position for batch in running.batches if batch.position is not None]
    return bool(read) and running.positions.saved[-1:] == read[-1:]


def _processes() -> set[str]:
    """Processes that this one has started, as far as the system tells them."""
    found: set[str] = set()
    with suppress(OSError):
        for entry in THREADS.iterdir():
            with suppress(OSError):
                found |= {*(entry / "children").read_text().split()}
    return found


def _sockets() -> set[str]:
    """Open connections of this process, as far as the system tells them."""
    found = set()
    with suppress(OSError):
        for entry in DESCRIPTORS.iterdir():
            with suppress(OSError):
                found.add(os.readlink(entry))
    return {one for one in found if one.startswith("socket:")}
