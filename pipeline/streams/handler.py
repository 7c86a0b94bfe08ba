"""What happens to a group of batches, in the order that keeps promise 1: apply, publish what it led to, note it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from mode import get_logger
from msgspec.structs import replace

from pipeline.core.clock import Clock, SystemClock
from pipeline.report import BatchReport, DeadLetter
from pipeline.stores.store import AppliedPosition, MarkStore
from pipeline.streams.journey import Journeys, times_of_chunks
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.letters import decode_chunk
from pipeline.streams.outages import persistently
from pipeline.streams.reporting import WorkerMetrics
from schemas.bundle import UnitKey
from schemas.record import Record

logger = get_logger(__name__)

LETTERS_TOLD = 3
"""Of each batch; a topic full of broken records must not fill the disk with log lines."""

Result = TypeVar("Result")


class Stages(Protocol):
    """What the handler needs of pipeline.flow.Flow."""

    async def process(self, records: Sequence[Record]) -> BatchReport: ...

    async def rebuild(self, keys: Sequence[UnitKey]) -> BatchReport: ...


class Outlet(Protocol):
    """What the handler needs of pipeline.streams.publisher.Publisher."""

    async def publish(self, report: BatchReport) -> None: ...


class BatchHandler:
    """Handles batches of table topics and of the dirty topic. Waits out outages, however long, inside the batch.

    Raises ShardChanged when a store lost recent writes (the caller goes back to the marks); anything else that it
    raises is not understood here.
    """

    def __init__(
        self,
        flow: Stages,
        outlet: Outlet,
        marks: MarkStore,
        *,
        clock: Clock | None = None,
        shown: WorkerMetrics | None = None,
        on_report: Callable[[BatchReport, float], None] | None = None,
        journeys: Journeys | None = None,
    ) -> None:
        self._flow, self._outlet, self._marks = flow, outlet, marks
        self._clock = clock or SystemClock()
        self._shown, self._on_report = shown, on_report
        self.journeys = journeys or Journeys("", self._clock)

    async def denormalise(self, batches: Sequence[RecordBatch]) -> None:
        """Table records become bundles; each batch is of another partition."""
        records = [record for batch in batches for record in batch.records]
        await self._handle(batches, lambda: self._flow.process(records))

    async def rebuild(self, batches: Sequence[RecordBatch]) -> None:
        """Chunks of dirty keys become bundles."""
        keys: list[UnitKey] = []
        unreadable: list[DeadLetter] = []
        for record in (record for batch in batches for record in batch.records):
            try:
                keys += decode_chunk(record.value)
            except ValueError as error:
                unreadable.append(DeadLetter(record, str(error), "dirty-chunk"))
        distinct = list(dict.fromkeys(keys))

        async def work() -> BatchReport:
            report = await self._flow.rebuild(distinct)
            report.dead_letters = [*unreadable, *report.dead_letters]
            report.times.live_us = times_of_chunks(record for batch in batches for record in batch.records)
            # Positions that await these chunks count from now on.
            report.applied = {batch.partition: AppliedPosition("", batch.next_offset, "", 0) for batch in batches}
            return report

        await self._handle(batches, work)

    async def expire(self, work: Callable[[int], Awaitable[BatchReport]], limit: int) -> int:
        """Values that have lived their time leave their rows; in how many rows."""
        report = await self._persistently((), lambda: work(limit))
        if report.fan_out or report.texts_wanted:
            await self._persistently((), lambda: self._outlet.publish(report))
        return report.events

    async def _handle(self, batches: Sequence[RecordBatch], work: Callable[[], Awaitable[BatchReport]]) -> None:
        started_s = self._clock.monotonic_s()
        with self.journeys.of(batches) as journey:
            report = await self._persistently(batches, work)
            journey.stored(report)
            await self._follow_up(batches, report)
        duration_s = self._clock.monotonic_s() - started_s
        if self._shown is not None:
            self._shown.stored(sum(len(batch.records) for batch in batches), report, duration_s)
        if self._on_report is not None:
            self._on_report(report, duration_s)

    async def _follow_up(self, batches: Sequence[RecordBatch], report: BatchReport) -> None:
        """What the report led to, and how far the partitions are with it."""
        _tell(report.dead_letters)
        if report.dead_letters or report.fan_out or report.texts_wanted:
            await self._persistently(batches, lambda: self._outlet.publish(report))
        if report.fan_out_ends:
            # Not known of which of these partitions: all of them await it.
            awaits = dict(report.fan_out_ends)
            report.applied = {place: replace(one, awaits=awaits) for place, one in report.applied.items()}
        if report.applied:
            await self._persistently(batches, lambda: self._marks.write_applied(report.applied))

    async def _persistently(self, batches: Sequence[RecordBatch], work: Callable[[], Awaitable[Result]]) -> Result:
        retried = None if self._shown is None else self._shown.retried
        return await persistently(batches, work, self._clock, retried)


def _tell(letters: Sequence[DeadLetter]) -> None:
    for letter in letters[:LETTERS_TOLD]:
        record = letter.record
        place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        where = f"{record.topic}/{record.partition}@{record.offset}"
        logger.warning(
            "set aside %s: %s (affects %d bundles)", where, letter.reason, len(letter.bundle_keys), extra=place
        )
    if len(letters) > LETTERS_TOLD:
        logger.warning("set aside %d more of this batch; `ctxpipe dlq` lists them", len(letters) - LETTERS_TOLD)
