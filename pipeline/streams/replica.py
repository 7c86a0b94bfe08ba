"""A replica of one embedding space: its vector and text topics replayed into the indexes that answer searches.

Kafka is the truth; the indexes are caches of it. Whatever they cannot be sure of, they read again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.core import metrics
from pipeline.core.clock import Clock
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.stores.spaces import Placed, PlacedText, TextIndex, VectorIndex
from pipeline.stores.store import Partition
from pipeline.streams.backoff import Backoff
from pipeline.streams.index_proof import IndexProofs
from pipeline.streams.journey import IndexJourneys
from pipeline.streams.offsets import Extent
from pipeline.streams.replica_reader import PositionGone, Progress, reason_to_start_anew, starts
from schemas.errors import DecodeError
from schemas.topics import text_topic, vector_topic
from schemas.vectors import FilterValue, TextRecord, VectorRecord, decode_text, decode_vectors

REFRESH_EVERY_S = 0.03
REFRESH_LONGEST_S = 0.5
REFRESH_REST = 4
"""So many times as long as a refresh took is rested after it, between the two: words of new texts may not take the
machine from searches and vectors."""
MAINTAIN_EVERY_S = 5.0
DELETIONS_KEPT_MS = 7 * 24 * 3600 * 1000
"""Half of what the topics keep them (delete.retention.ms): an index that is further behind starts anew."""
INLINE_RECORDS_MAX = 32
"""So few are applied in the event loop; more go to a thread, so that lookups beside them are not held up."""
PENDING_TEXTS_MAX = 20_000
HOLDS_EVERY_S = 0.01

_LOG = logging.getLogger("ctxpipe.replica")


class KeptVectors(VectorIndex, Protocol):
    """A VectorIndex with its upkeep."""

    def maintain(self) -> None:
        """See VectorIndex; blocks."""

    def close(self) -> None:
        """Blocks; ends the upkeep and writes what a later start needs."""


class KeptTexts(TextIndex, Protocol):
    """A TextIndex whose changes are seen after `refresh`, which blocks."""

    @property
    def pending(self) -> int: ...

    def refresh(self) -> None: ...

    def text_of(self, key: str) -> str | None: ...

    def state_of(self, key: str) -> Any:
        """With `counter` and `filters` of the newest text; None without one."""


class Reader(Protocol):
    """See pipeline.streams.replica_reader.SpaceReader."""

    async def open(self) -> dict[Partition, Extent]: ...

    async def first_since(self, time_ms: int) -> dict[Partition, int]: ...

    async def seek(self, starts: Mapping[Partition, int]) -> None: ...

    async def read(self) -> list[tuple[str, int, list[Any]]]: ...

    async def progress(self, topic: str) -> Progress: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ReplicatedSpace:
    """Which space: vectors of other spaces or other dimensions are refused."""

    context: str
    version: int
    space: str
    dimension: int

    @property
    def vector_topic(self) -> str:
        return vector_topic(self.context, self.version, self.space)

    @property
    def text_topic(self) -> str:
        return text_topic(self.context, self.version, self.space)


@dataclass(frozen=True, slots=True)
class OpenIndexes:
    """How the indexes are opened; both block. `vectors(True)` begins without what is on disk."""

    vectors: Callable[[bool], KeptVectors]
    texts: Callable[[], KeptTexts]


class Replica:
    """`start` once, then `run` until it is cancelled, then `close`. Searches read `vectors` and `texts`; take each
    reference once per search, because an index that starts anew takes the other's place.

    `vectors_loaded` and `texts_loaded`: the index has reached the end that its topic had at the start. `problem` says
    why nothing is read at the moment; empty while all is well.
    """

    def __init__(
        self,
        space: ReplicatedSpace,
        reader: Reader,
        indexes: OpenIndexes,
        clock: Clock,
        proofs: IndexProofs | None = None,
        journeys: IndexJourneys | None = None,
    ) -> None:
        """Without `proofs` nobody can tell what is still on its way to the topics: `holds_now` is False."""
        self.space, self._reader, self._indexes, self._clock = space, reader, indexes, clock
        self._proofs, self._journeys = proofs, journeys or IndexJourneys(space.context, space.space, clock)
        self.vectors_loaded = self.texts_loaded = False
        self.problem = "it has not begun"
        self.behind_records: int | None = None
        self.as_of_us: int | None = None
        self._refused_told: set[str] = set()
        self._ending = False
        self.vectors: KeptVectors
        self.texts: KeptTexts

    @property
    def caught_up(self) -> bool:
        return self.vectors_loaded and self.texts_loaded

    async def start(self) -> None:
        """Opens the indexes: what is on disk is there afterwards. Raises EnvironmentProblem."""
        self.texts = await asyncio.to_thread(self._indexes.texts)
        self.vectors = await asyncio.to_thread(self._indexes.vectors, False)

    async def run(self) -> None:
        """Reads, and keeps up the indexes. Trouble with Kafka is waited out."""
        loops = (self._refresh_forever(), self._maintain_forever(), self._read_forever())
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            # Kafka's client forgets a cancellation now and then: a loop that waited for nothing else would never end.
            self._ending = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def holds_now(self, limit_s: float) -> bool:
        """Waits until the next search finds every bundle that had been written before this call; False when it may not
        after the limit."""
        if self._proofs is None:
            return False
        until_s = self._clock.monotonic_s() + limit_s
        wanted = await self._proofs.wanted(limit_s)
        while wanted is not None and not self._came_to(wanted):
            if self._clock.monotonic_s() >= until_s:
                return False
            await self._clock.sleep(HOLDS_EVERY_S)
        if wanted is None:
            return False
        await asyncio.to_thread(self.texts.refresh)
        return True

    def _came_to(self, wanted: Mapping[Partition, int]) -> bool:
        positions = {topic: index.positions() for topic, index in self._topics()}
        return all(positions[topic].get(number, 0) >= end for (topic, number), end in wanted.items())

    async def close(self) -> None:
        """After `run` has ended."""
        if self._proofs is not None:
            await self._proofs.close()
        await self._reader.stop()
        await asyncio.to_thread(self.vectors.close)

    async def _read_forever(self) -> None:
        backoff = Backoff()
        while not self._ending:
            try:
                await self._begin()
                backoff.reset()
                while not self._ending:
                    await self._read_once()
            except PositionGone as error:
                await self._start_anew(error.topic, str(error))
            except (Retryable, EnvironmentProblem) as error:
                self._tell_trouble(str(error))
                await self._reader.stop()
                await self._clock.sleep(backoff.next_s())

    async def _begin(self) -> None:
        await self._reader.stop()
        extents = await self._reader.open()
        since = await self._reader.first_since(self._clock.now_us() // 1000 - DELETIONS_KEPT_MS)
        for topic, index in self._topics():
            reason = reason_to_start_anew(topic, index.positions(), extents, since)
            if reason is not None:
                await self._start_anew(topic, reason)
        await self._reader.seek(starts([(topic, index.positions()) for topic, index in self._topics()], extents))
        await self._note_progress()

    def _topics(self) -> list[tuple[str, VectorIndex | TextIndex]]:
        return [(self.space.vector_topic, self.vectors), (self.space.text_topic, self.texts)]

    async def _start_anew(self, topic: str, reason: str) -> None:
        metrics.replica_anew.labels(self.space.context, self.space.space).inc()
        _LOG.warning("space %s of %s: its index starts anew: %s", self.space.space, self.space.context, reason)
        if topic == self.space.text_topic:
            self.texts_loaded = False
            self.texts = await asyncio.to_thread(self._indexes.texts)
        else:
            self.vectors_loaded = False
            await asyncio.to_thread(self.vectors.close)
            self.vectors = await asyncio.to_thread(self._indexes.vectors, True)

    async def _read_once(self) -> None:
        found = await self._reader.read()
        # What the topic held before the start is no news, however long it takes to read it.
        news = self.vectors_loaded and [
            record for topic, _, records in found if topic == self.space.vector_topic for record in records
        ]
        with self._journeys.indexing(news or ()):
            await self._take(found)
        await self._note_progress()

    async def _take(self, found: Sequence[tuple[str, int, Sequence[Any]]]) -> None:
        vectors: list[Placed] = []
        texts: list[PlacedText] = []
        for topic, partition, records in found:
            if topic == self.space.vector_topic:
                vectors += [
                    Placed(partition, at, key, value) for at, key, value in self._decoded(records, self._vectors)
                ]
            else:
                texts += [
                    PlacedText(partition, at, key, value) for at, key, value in self._decoded(records, self._text)
                ]
        if len(vectors) + len(texts) > INLINE_RECORDS_MAX:
            await asyncio.to_thread(self._apply, vectors, texts)
        else:
            self._apply(vectors, texts)
        if self.texts.pending > PENDING_TEXTS_MAX:
            await asyncio.to_thread(self.texts.refresh)

    def _apply(self, vectors: Sequence[Placed], texts: Sequence[PlacedText]) -> None:
        if texts:
            self.texts.apply(texts)
        if vectors:
            self.vectors.apply(vectors)
        # Values to narrow by change without a new vector, and the topics are read side by side: the newest text's
        # values count, whichever of the two came first.
        for key in {placed.key for placed in vectors} | {placed.key for placed in texts}:
            state = self.texts.state_of(key)
            if state is not None:
                filters: Mapping[str, FilterValue | list[FilterValue]] = state.filters
                self.vectors.note_filters(key, state.counter, filters)
        metrics.replica_records.labels(self.space.context, self.space.space).inc(len(vectors) + len(texts))

    def _decoded(self, records: Sequence[Any], decode: Callable[[bytes], Any]) -> list[tuple[int, str, Any]]:
        found = []
        for record in records:
            try:
                key = (record.key or b"").decode()
                found.append((record.offset, key, None if record.value is None else decode(record.value)))
            except (DecodeError, UnicodeDecodeError) as error:
                self._refuse(f"{record.topic}/{record.partition} offset {record.offset}", str(error))
        return found

    def _vectors(self, value: bytes) -> VectorRecord:
        import numpy

        record = decode_vectors(value, self.space.space, self.space.dimension)
        if not numpy.isfinite(numpy.frombuffer(record.vectors, "<f4")).all():
            raise DecodeError("vectors with NaN or infinity")
        return record

    def _text(self, value: bytes) -> TextRecord:
        return decode_text(value, self.space.space)

    def _refuse(self, place: str, reason: str) -> None:
        """Counted, and each reason told once: a topic full of them would fill the log."""
        metrics.replica_refused.labels(self.space.context, self.space.space).inc()
        if reason not in self._refused_told and len(self._refused_told) < 100:
            self._refused_told.add(reason)
            _LOG.warning("space %s of %s: %s is left out: %s", self.space.space, self.space.context, place, reason)

    async def _note_progress(self) -> None:
        vectors = await self._reader.progress(self.space.vector_topic)
        texts = await self._reader.progress(self.space.text_topic)
        if self.problem:
            _LOG.info("space %s of %s is being read", self.space.space, self.space.context)
        self.problem = ""
        self.behind_records = vectors.behind_records + texts.behind_records
        times = (vectors.as_of_us, texts.as_of_us)
        self.as_of_us = None if None in times else min(time for time in times if time is not None)
        metrics.replica_lag_records.labels(self.space.context, self.space.space).set(self.behind_records)
        self.vectors_loaded = self.vectors_loaded or vectors.loaded
        if not self.texts_loaded and texts.loaded:
            await asyncio.to_thread(self.texts.refresh)
            self.texts_loaded = True

    async def _refresh_forever(self) -> None:
        pause_s = REFRESH_EVERY_S
        while True:
            await self._clock.sleep(pause_s)
            if self.texts.pending:
                began_s = self._clock.monotonic_s()
                await asyncio.to_thread(self.texts.refresh)
                took_s = self._clock.monotonic_s() - began_s
                pause_s = min(max(REFRESH_EVERY_S, REFRESH_REST * took_s), REFRESH_LONGEST_S)

    async def _maintain_forever(self) -> None:
        while True:
            await self._clock.sleep(MAINTAIN_EVERY_S)
            await asyncio.to_thread(self.vectors.maintain)

    def _tell_trouble(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            _LOG.warning("space %s of %s: %s", self.space.space, self.space.context, problem)
