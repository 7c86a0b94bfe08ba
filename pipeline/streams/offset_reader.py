"""Reading Kafka by offsets, without a group: which offsets a partition has, and what lies in some of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.structs import TopicPartition

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.streams.kafka_clients import stop_consumer
from pipeline.streams.kafka_errors import REQUEST_TIMEOUT_S, answered
from pipeline.streams.topics import Topics

POLL_RECORDS_MAX = 500
POLL_MS = 100
FETCH_WAIT_MS = 20
"""A fetch that waits at the end of a topic holds up the next one, which reads elsewhere."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Extent:
    """Offsets of the records that a partition holds: `first` up to but without `end`. What lay before `first` is
    gone."""

    first: int
    end: int


class OffsetReader:
    """One connection for many topics, one after the other: not for several tasks at once. `close` it.

    Every method raises Retryable while Kafka is away, and EnvironmentProblem where it refuses us.
    """

    def __init__(self, bootstrap_servers: str, **security: Any) -> None:
        self.address = bootstrap_servers
        self._settings = {"bootstrap_servers": bootstrap_servers, **security}
        self.topics = Topics(bootstrap_servers, "", **security)
        self._consumer: AIOKafkaConsumer | None = None
        self._turn = 0

    async def close(self) -> None:
        """Closes the connections; the object may be used again."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer)
        await self.topics.stop()

    async def extent(self, place: TopicPartition) -> Extent:
        """Of a topic that is there."""
        consumer = await self._started()
        first = (await self.mapped(consumer.beginning_offsets([place])))[place]
        end = (await self.mapped(consumer.end_offsets([place])))[place]
        return Extent(first, max(first, end))

    async def offset_at(self, place: TopicPartition, time_ms: int) -> int | None:
        """Of the first record written at that time or later; None where there is none."""
        consumer = await self._started()
        found = (await self.mapped(consumer.offsets_for_times({place: time_ms})))[place]
        return None if found is None else int(found.offset)

    async def records(self, place: TopicPartition, start: int, end: int) -> AsyncIterator[list[ConsumerRecord]]:
        """What lies in these offsets, some at a time; ends early where the topic lost its beginning meanwhile."""
        if start >= end:
            return
        consumer = await self._started()
        consumer.assign([place])
        consumer.seek(place, start)
        self._turn += 1
        turn = self._turn
        try:
            async for records in self._polled(consumer, place, end):
                found = [record for record in records if start <= record.offset < end]
                if found:
                    yield found
        finally:
            # Else it would go on fetching what nobody takes. Who stopped in the middle comes here late, perhaps when
            # somebody else reads.
            if turn == self._turn and place in consumer.assignment():
                consumer.pause(place)

    async def _polled(
        self, consumer: AIOKafkaConsumer, place: TopicPartition, end: int
    ) -> AsyncIterator[list[ConsumerRecord]]:
        quiet_s = 0.0
        while await self.mapped(consumer.position(place)) < end:
            got = await self.mapped(consumer.getmany(place, timeout_ms=POLL_MS, max_records=POLL_RECORDS_MAX))
            records = got.get(place, [])
            quiet_s = 0.0 if records else quiet_s + POLL_MS / 1000
            if quiet_s > REQUEST_TIMEOUT_S:
                raise Retryable(f"Kafka at {self.address} does not give the records of {place.topic}")
            yield records

    async def mapped(self, request: Awaitable[Result]) -> Result:
        """Kafka's answer, or an error of ours."""
        return await answered(self.address, request)

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                fetch_max_wait_ms=FETCH_WAIT_MS,
                **self._settings,
            )
            try:
                await self.mapped(consumer.start())
            except (Retryable, EnvironmentProblem):
                await stop_consumer(consumer)
                raise
            self._consumer = consumer
        return self._consumer
