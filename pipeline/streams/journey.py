"""What batches tell of their way: freshness of their changes, spans of those that are traced, ids for log lines.

All of it is told per batch, after the work and beside it: no stage waits for it, and none knows of it but by the times
in its report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipeline.core.clock import Clock
from pipeline.core.freshness import Freshness
from pipeline.core.logging import log_fields
from pipeline.core.telemetry import Mark, Received, Traces, traced
from pipeline.report import BatchReport
from pipeline.stores.store import Partition
from pipeline.streams.lanes import RecordBatch
from schemas.headers import Headers, commit_time_header, commit_time_of, trace_of
from schemas.record import Record

TRACED_KEYS_MAX = 16
"""So many texts of one traced change are followed on their way to vectors."""


class Journeys:
    """Of the workers of one context version. `live`: the version serves, so that somebody waits for its updates; until
    then everything is a backfill and counts as no update.

    `root_key` tells the bundle whose own row a record is about, None for rows of other tables.
    """

    def __init__(
        self,
        context: str,
        clock: Clock,
        freshness: Freshness | None = None,
        traces: Traces | None = None,
        root_key: Callable[[Record], str | None] = lambda record: None,
        group: str = "",
    ) -> None:
        self._context, self._clock, self._group = context, clock, group
        self._freshness, self._traces, self._root_key = freshness, traces, root_key
        self._finished: dict[Partition, int] = {}
        self.live = False

    @contextmanager
    def of(self, batches: Sequence[RecordBatch]) -> Iterator[Journey]:
        """Around all that is done for some batches. What was finished here before and comes again after a rewind is no
        update a second time."""
        again = any(
            batch.records[0].offset < self._finished.get(batch.partition, 0) for batch in batches if batch.records
        )
        freshness = self._freshness if self.live and not again else None
        marks = self._begin(batches) if self._traces is not None else []
        journey = Journey(self._clock, freshness, self._traces, marks, self._root_key)
        with log_fields(context=self._context, **(marks[0][1].fields if marks else {})):
            try:
                yield journey
            except BaseException as error:
                for _, mark in marks:
                    mark.end(problem=type(error).__name__)
                raise
        for _, mark in marks:
            mark.end()
        for batch in batches:
            self._finished[batch.partition] = max(batch.next_offset, self._finished.get(batch.partition, 0))

    def _begin(self, batches: Sequence[RecordBatch]) -> list[tuple[Record, Mark]]:
        """Each traced record gets a span in its own trace, linked to those that went with it."""
        assert self._traces is not None
        found = traced(record for batch in batches for record in batch.records)
        links = [headers for _, headers in found]
        count = sum(len(batch.records) for batch in batches)
        about: dict[str, str | int] = {"context": self._context, "group": self._group, "records": count}
        begin = self._traces.begin
        return [
            (record, begin(f"process {record.topic}", "consumer", headers, _place(record) | about, links=links))
            for record, headers in found
        ]


class Journey:
    """Of some batches that go together; `stored` once, when all of it is in the stores."""

    def __init__(
        self,
        clock: Clock,
        freshness: Freshness | None,
        traces: Traces | None,
        marks: Sequence[tuple[Record, Mark]],
        root_key: Callable[[Record], str | None],
    ) -> None:
        self._clock, self._freshness, self._traces = clock, freshness, traces
        self._marks, self._root_key = marks, root_key
        self._began_us = clock.now_us()

    def stored(self, report: BatchReport) -> None:
        """Tells of it, and gives the report the headers for what it leads to."""
        times, now_us = report.times, self._clock.now_us()
        stored_us = times.stored or now_us
        assembled_us = times.assembled or stored_us
        if self._freshness is not None and times.live_us:
            if times.applied:
                self._freshness.note("applied", times.live_us, times.applied)
            self._freshness.note_ages("in_kafka", times.to_kafka_us)
            self._freshness.note("assembled", times.live_us, assembled_us)
            self._freshness.note("in_redis", times.live_us, stored_us)
            if not times.snapshot_rows:
                # Which of them a text comes from is not known any more: with rows of a snapshot among them, none does.
                report.headers = (commit_time_header(min(times.live_us)),)
        for record, mark in self._marks:
            self._steps(mark, report, times.applied, assembled_us, stored_us)
            self._follow(record, mark, report)

    def _steps(self, mark: Mark, report: BatchReport, applied_us: int, assembled_us: int, stored_us: int) -> None:
        assert self._traces is not None
        began_us = self._began_us
        if applied_us:
            self._traces.step("apply", mark, began_us, applied_us, {"changes": report.events})
            began_us = applied_us
        if report.times.assembled:
            written = {"bundles": report.bundles_written + report.fragments_written}
            self._traces.step("assemble", mark, began_us, assembled_us, written)
            self._traces.step("put", mark, assembled_us, stored_us, written)

    def _follow(self, record: Record, mark: Mark, report: BatchReport) -> None:
        """What a change led to is certain where it came alone, and of its own bundle; else the trace ends here."""
        if report.events <= 1:
            report.trace = mark.headers
            for key, _ in zip(report.texts_wanted, range(TRACED_KEYS_MAX), strict=False):
                report.traces.setdefault(key, mark.headers)
            return
        root_key = self._root_key(record)
        if root_key is not None and root_key in report.texts_wanted:
            report.traces[root_key] = mark.headers


def times_of_chunks(records: Iterable[Received]) -> list[int]:
    """When the changes were committed that left these chunks to the dirty lane; without those of backfills."""
    return [time_us for record in records if record.headers and (time_us := commit_time_of(record.headers))]


class SpaceJourneys:
    """Of the workers of one embedding space, on the way from requests to vectors. `live`: the space serves."""

    def __init__(
        self,
        context: str,
        space: str,
        clock: Clock,
        freshness: Freshness | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._context, self._space, self._clock = context, space, clock
        self._freshness, self._traces = freshness, traces
        self.live = False

    def passed_on(self, requests: Sequence[Record]) -> Headers:
        """Headers of the text that answers these requests for one bundle: the oldest commit, the newest trace. None
        while the space does not serve: nobody waits for what is built beside."""
        if not self.live:
            return ()
        times = times_of_chunks(requests)
        found: list[tuple[str, bytes]] = [commit_time_header(min(times))] if times else []
        trace = next((trace for one in reversed(requests) if one.headers and (trace := trace_of(one.headers))), ())
        return (*found, *trace)

    @contextmanager
    def embedding(self, records: Mapping[str, Record]) -> Iterator[Embedding]:
        """Around what makes vectors of the texts in these records and brings them to Kafka."""
        marks = self._begin(records) if self._traces is not None else {}
        embedding = Embedding(records, marks, self._clock)
        with log_fields(**(next(iter(marks.values())).fields if marks else {})):
            try:
                yield embedding
            except BaseException as error:
                for mark in marks.values():
                    mark.end(problem=type(error).__name__)
                raise
        for mark in marks.values():
            mark.end(embedding.sent_us)
        if self._freshness is not None and self.live and embedding.sent_us is not None:
            self._freshness.note("embedded", embedding.times_us, embedding.sent_us)

    def _begin(self, records: Mapping[str, Record]) -> dict[str, Mark]:
        assert self._traces is not None
        keys = {(record.topic, record.partition, record.offset): key for key, record in records.items()}
        found = traced(records.values())
        links = [headers for _, headers in found]
        about: dict[str, str | int] = {"context": self._context, "space": self._space, "records": len(records)}
        begin = self._traces.begin
        return {
            keys[record.topic, record.partition, record.offset]: begin(
                "embed", "consumer", headers, _place(record) | about, links=links
            )
            for record, headers in found
        }


class Embedding:
    """Texts on their way to vectors; see SpaceJourneys.embedding."""

    def __init__(self, records: Mapping[str, Record], marks: Mapping[str, Mark], clock: Clock) -> None:
        self._records, self._marks, self._clock = records, marks, clock
        self.times_us: list[int] = []
        self.sent_us: int | None = None

    def headers(self) -> dict[str, Headers]:
        """Of the records that the vectors travel in, by key."""
        found: dict[str, Headers] = {}
        for key, record in self._records.items():
            if record.headers:
                time_us, mark = commit_time_of(record.headers), self._marks.get(key)
                given = [commit_time_header(time_us)] if time_us else []
                found[key] = (*given, *(mark.headers if mark is not None else trace_of(record.headers)))
        return found

    def sent(self, keys: Iterable[str]) -> None:
        """The vectors of these are in Kafka."""
        self.times_us += times_of_chunks(self._records[key] for key in keys)
        self.sent_us = self._clock.now_us()


class IndexJourneys:
    """Of a replica of one space, where the way ends: searches find the vectors."""

    def __init__(
        self,
        context: str,
        space: str,
        clock: Clock,
        freshness: Freshness | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._context, self._space, self._clock = context, space, clock
        self._freshness, self._traces = freshness, traces

    @contextmanager
    def indexing(self, records: Sequence[Received]) -> Iterator[None]:
        """Around what brings these records of the vector topic into the index."""
        began_us = self._clock.now_us()
        yield
        told = [record for record in records if record.headers]
        if not told:
            return
        now_us = self._clock.now_us()
        if self._freshness is not None:
            self._freshness.note("in_faiss", times_of_chunks(told), now_us)
        if self._traces is not None:
            about: dict[str, str | int] = {"context": self._context, "space": self._space, "records": len(records)}
            found = traced(told)
            links = [headers for _, headers in found]
            for record, headers in found:
                mark = self._traces.begin(
                    "index", "consumer", headers, _place(record) | about, at_us=began_us, links=links
                )
                mark.end(now_us)


def _place(record: Received) -> dict[str, str | int]:
    return {
        "system": "kafka",
        "operation": "process",
        "operation_type": "process",
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": record.offset,
    }
