"""Says up to when everything that was written to the node is in Kafka, so that "no change since" has an age.

A row is written into a table of our own, with the clock's time; the sidecar reads it in the node's log and sends it to
Kafka, from where it is read back. What then holds, and what it rests on:

- The node logs a write before it answers, so that the log has everything that was answered before the row was written.
- Debezium's connector reads one segment after the other, in one thread, and sends what it read through one queue
  (properties.py holds it to one), and moves it aside then: it has handed all of that to its producer before it handed
  over the row. An older segment that still lies in cdc_raw was passed over.
- Its producer does not keep the order between partitions: deliveries.py tells when Kafka has what it was handed.
- What goes wrong before that is told before: a segment that can't be read, a row that can't be sent, a segment that
  vanished, a schema that the sidecar did not know yet. So a row that came back waits for the next look of watch.py, and
  counts only when it was written, and came back, in one life of the sidecar that is still sound.

A cluster of several nodes has several logs, and none speaks for another: there, nothing is said.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from connectors.cassandra import node as nodes
from connectors.cassandra.companion import Companion
from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.deliveries import Mark
from connectors.cassandra.heartbeat_table import BEAT, insert_statement, require_heartbeat_table
from connectors.cassandra.segments import number_of
from connectors.cql.errors import Undefined
from connectors.cql.session import CqlSession
from connectors.publisher import KafkaSettings, Tail, ensure_topics
from connectors.source import EVERY_PARTITION, SourceRecord
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Retryable
from schemas.mutation import MutationSource, encode_heartbeat

log = logging.getLogger(__name__)

RETENTION_MS = 3600 * 1000
WAITING_MAX = 600
"""Rows that did not come back, or not through yet; older ones are forgotten."""


class _Returned(msgspec.Struct, frozen=True):
    at_us: int
    segment: int
    back_s: float


class Beats:
    """Which rows came back, and when they count. Times are microseconds, `life` numbers the sidecar's lives. Pure."""

    def __init__(self) -> None:
        self._life = 0
        self._written: dict[int, None] = {}
        self._returned: list[_Returned] = []
        self._looked: list[tuple[int, Mark]] = []

    def written(self, at_us: int, life: int) -> None:
        """Before it is sent to the node."""
        self._begin(life)
        self._written[at_us] = None
        while len(self._written) > WAITING_MAX:
            del self._written[next(iter(self._written))]

    def returned(self, at_us: int, segment: int, life: int, now_s: float) -> None:
        """A row came back out of this segment. Those of another life, or of somebody else, say nothing."""
        self._begin(life)
        if self._written.pop(at_us, _UNKNOWN) is None:
            self._returned.append(_Returned(at_us, segment, now_s))

    def looked(self, began_s: float, life: int, mark: Mark, oldest: int | None) -> bool:
        """A look that began then found nothing wrong. `mark` is what the producer had been handed by its end, `oldest`
        the oldest segment that waits. False when rows came back past that one."""
        self._begin(life)
        seen = [one for one in self._returned if one.back_s < began_s]
        counting = [one.at_us for one in seen if oldest is None or one.segment <= oldest]
        self._returned = [one for one in self._returned if one.back_s >= began_s]
        if counting:
            self._looked = [*self._looked[-WAITING_MAX:], (max(counting), mark)]
        return len(counting) == len(seen)

    def waiting(self, life: int) -> list[tuple[int, Mark]]:
        """What is true as soon as Kafka has what was marked with it."""
        self._begin(life)
        return self._looked

    def passed(self, at_us: int) -> None:
        self._looked = [one for one in self._looked if one[0] > at_us]

    def _begin(self, life: int) -> None:
        if life != self._life:
            self._life = life
            self._written.clear()
            self._returned.clear()
            self._looked.clear()


class Heartbeat:
    """`open` before the sidecar starts, `run` beside it; Watch calls `looked`; `records` are what there is to say."""

    def __init__(
        self, config: CassandraConfig, session: CqlSession, kafka: KafkaSettings, companion: Companion, clock: Clock
    ) -> None:
        self._config = config
        self._session = session
        self._kafka = kafka
        self._companion = companion
        self._clock = clock
        self._topic = config.topic(config.heartbeat_name)
        self._tail = Tail(kafka, self._topic)
        self._beats = Beats()
        self._told_us = 0
        self._silent = ""

    async def open(self) -> None:
        """Raises EnvironmentProblem for a table that is missing or not as it must be."""
        await require_heartbeat_table(self._session, self._config)
        await self._session.prepare(insert_statement(self._config))
        await ensure_topics(self._kafka, [self._topic], {"retention.ms": str(RETENTION_MS)})
        await self._tail.open()

    async def run(self) -> None:
        """Until it is cancelled. Raises Retryable when Kafka is away."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_often(), name="cassandra-heartbeat-write")
                tasks.create_task(self._read_back(), name="cassandra-heartbeat-read")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def close(self) -> None:
        await self._tail.close()

    async def looked(self, began_s: float) -> None:
        """After a look at node and cdc_raw that began then and found nothing wrong. Raises Retryable."""
        others = await self._session.other_nodes()
        deliveries, life = self._companion.deliveries, self._life()
        if others:
            self._be_silent(nodes.SEVERAL.format(count=others + 1))
        elif life is not None:
            oldest = await asyncio.to_thread(self._companion.oldest_segment)
            if not self._beats.looked(began_s, life, deliveries.mark(), oldest):
                self._be_silent(f"The sidecar passed over the segment CommitLog-…-{oldest}.")

    def records(self) -> tuple[int, list[SourceRecord]]:
        """(time, records) when everything up to a newer time is known to be in Kafka; (0, []) otherwise."""
        life, deliveries = self._life(), self._companion.deliveries
        if life is None:
            return 0, []
        proven = [at for at, mark in self._beats.waiting(life) if deliveries.reached(mark, self._topic)]
        until_us = max(proven, default=0)
        self._beats.passed(until_us)
        if until_us <= self._told_us:
            return 0, []
        self._told_us, self._silent = until_us, ""
        now_ms = self._clock.now_us() // 1000
        return until_us, [self._record(table, until_us, now_ms) for table in self._config.table_names]

    def _record(self, table: str, until_us: int, now_ms: int) -> SourceRecord:
        source = MutationSource("cassandra", self._config.name, self._config.keyspace, table)
        key, value = encode_heartbeat(source, until_us, now_ms)
        return SourceRecord(self._config.topic(table), key, value, partition=EVERY_PARTITION)

    def _life(self) -> int | None:
        """None while its present work is doubtful: then nothing that came back counts."""
        sidecar = self._companion.sidecar
        return sidecar.starts if sidecar is not None and sidecar.sound else None

    async def _write_often(self) -> None:
        while True:
            await self._clock.sleep(self._config.heartbeat_interval_s)
            life = self._life()
            if life is None:
                continue
            at_us = self._clock.now_us()
            self._beats.written(at_us, life)
            try:
                await self._session.execute(insert_statement(self._config), (self._config.name, at_us))
            except (Retryable, Undefined, EnvironmentProblem) as error:
                self._be_silent(str(error))

    async def _read_back(self) -> None:
        while True:
            for value in await self._tail.next():
                found, life = _found_in(value, self._config.name), self._life()
                if found is not None and life is not None:
                    self._beats.returned(*found, life, self._clock.monotonic_s())

    def _be_silent(self, reason: CtxpipeError | str) -> None:
        if not self._silent:
            log.warning("No heartbeats: %s Until they come again, the age of the tables grows.", reason)
        self._silent = str(reason)


def _found_in(value: bytes, source: str) -> tuple[int, int] | None:
    """(time, number of the segment) in a record that Debezium's connector made of the row of this source."""
    try:
        record: Any = msgspec.json.decode(value)
        after, file = record["after"], record["source"]["file"]
        at_us = after[BEAT]["value"] if after["source"]["value"] == source else None
        return (at_us, number_of(file.removesuffix(".log"))) if isinstance(at_us, int) else None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


_UNKNOWN = object()
