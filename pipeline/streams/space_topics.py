"""The topics of embedding spaces as a person's commands need them: read to their ends, measured, and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import GroupIdNotFound, NonEmptyGroup, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.structs import TopicPartition

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.streams.kafka_clients import stop_consumer
from pipeline.streams.topics import Topics

FETCH_BYTES = 16 << 20
RECORDS_AT_ONCE = 5_000
STALL_S = 30.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Lag:
    """How many records of a topic a group has before it; `records` are all that are there, those that compaction took
    away too."""

    topic: str
    records: int
    behind: int


class TopicReader:
    """All records of a topic: the first `read_new` from the beginning, each later one from where the last stopped.

    Raises Retryable while Kafka is away, EnvironmentProblem when it refuses us. `close` it afterwards.
    """

    def __init__(self, topics: SpaceTopics, bootstrap_servers: str, topic: str) -> None:
        self._topics, self._address, self._topic = topics, bootstrap_servers, topic
        self._positions: dict[TopicPartition, int] = {}
        self._consumer: AIOKafkaConsumer | None = None

    async def read_new(self) -> AsyncIterator[Sequence[tuple[bytes, bytes | None]]]:
        """(key, value) up to the ends of now; nothing from a topic that is not there. Records without a key are left
        out: compaction knows none."""
        if self._topic not in await self._topics.existing():
            return
        ends = await self._topics.end_offsets(await self._topics.partitions([self._topic]))
        wanted = {TopicPartition(*partition): end for partition, end in ends.items()}
        consumer = await self._started(list(wanted))
        left = {tp for tp, end in wanted.items() if await self._position(consumer, tp) < end}
        consumer.resume(*consumer.assignment())
        consumer.pause(*(consumer.assignment() - left))
        waited_s = 0.0
        while left:
            found = await self._topics._mapped(consumer.getmany(timeout_ms=500, max_records=RECORDS_AT_ONCE))
            waited_s = 0.0 if found else waited_s + 0.5
            if waited_s > STALL_S:
                raise Retryable(f"Kafka at {self._address} gives no records of {self._topic}, which it says are there")
            for tp, records in found.items():
                yield [(record.key, record.value) for record in records if record.key is not None]
                self._positions[tp] = records[-1].offset + 1
            for tp in [tp for tp in left if await self._position(consumer, tp) >= wanted[tp]]:
                left.discard(tp)
                consumer.pause(tp)

    async def close(self) -> None:
        if self._consumer is not None:
            await stop_consumer(self._consumer)
            self._consumer = None

    async def _started(self, partitions: list[TopicPartition]) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **self._topics._settings,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_partition_fetch_bytes=FETCH_BYTES,
                fetch_max_bytes=FETCH_BYTES,
            )
            await self._topics._mapped(consumer.start(), partial(stop_consumer, consumer))
            self._consumer = consumer
        if {*partitions} != self._consumer.assignment():
            self._consumer.assign(partitions)
            for tp in partitions:
                if tp in self._positions:
                    self._consumer.seek(tp, self._positions[tp])
            fresh = [tp for tp in partitions if tp not in self._positions]
            if fresh:
                await self._topics._mapped(self._consumer.seek_to_beginning(*fresh))
        return self._consumer

    async def _position(self, consumer: AIOKafkaConsumer, tp: TopicPartition) -> int:
        position: int = await self._topics._mapped(consumer.position(tp))
        return position


class SpaceTopics(Topics):
    """See Topics; `group` is the space's."""

    def reader(self, topic: str) -> TopicReader:
        return TopicReader(self, self._address, topic)

    async def lags(self, topics: Sequence[str]) -> list[Lag]:
        """Of the topics that exist."""
        existing = await self.existing()
        there = [topic for topic in topics if topic in existing]
        if not there:
            return []
        extents = await self.extents(await self.partitions(there))
        found = []
        for topic in there:
            mine = [extent for (name, _), extent in extents.items() if name == topic]
            records = sum(extent.end - extent.beginning for extent in mine)
            done = (max(extent.committed or 0, extent.beginning) for extent in mine)
            behind = sum(max(0, extent.end - finished) for extent, finished in zip(mine, done, strict=True))
            found.append(Lag(topic, records, behind))
        return found

    async def behind(self, topics: Sequence[str], wait_s: float) -> int:
        """How many records that were there at the call the group has not done after `wait_s`."""
        existing = await self.existing()
        partitions = await self.partitions([topic for topic in topics if topic in existing])
        ends = await self.end_offsets(partitions) if partitions else {}
        waited_s = 0.0
        while True:
            extents = await self.extents(partitions) if partitions else {}
            done = {one: max(extent.committed or 0, extent.beginning) for one, extent in extents.items()}
            left = sum(max(0, end - done[partition]) for partition, end in ends.items())
            if not left or waited_s >= wait_s:
                return left
            await asyncio.sleep(LOOK_EVERY_S)
            waited_s += LOOK_EVERY_S

    async def members(self) -> int:
        """How many workers read in the group."""
        admin = await self._started_admin()
        (response,) = await self._mapped(admin.describe_consumer_groups([self._group]))
        return sum(len(group[5]) for group in response.groups)

    async def delete(self, topics: Sequence[str], wait_s: float) -> list[str]:
        """Deletes the group and then the topics that are there, and returns their names.

        Raises EnvironmentProblem where workers still read in the group after `wait_s`, and nothing is deleted.
        """
        await self._delete_group(wait_s)
        existing = await self.existing()
        there = [topic for topic in topics if topic in existing]
        if there:
            admin = await self._started_admin()
            response = await self._mapped(admin.delete_topics(there))
            wrong = {topic: code for topic, code in response.topic_error_codes if code}
            if wrong:
                told = ", ".join(f"{topic}: {for_code(code).__name__}" for topic, code in wrong.items())
                raise EnvironmentProblem(f"Kafka did not delete {told}")
        return there

    async def _delete_group(self, wait_s: float) -> None:
        waited_s = 0.0
        while (count := await self.members()) and waited_s < wait_s:
            await asyncio.sleep(LOOK_EVERY_S)
            waited_s += LOOK_EVERY_S
        admin = await self._started_admin()
        coordinator = await self._mapped(admin.find_coordinator(self._group))
        # aiokafka has the request, but no method for it yet.
        response: Any = await self._mapped(admin._send_request(DeleteGroupsRequest([self._group]), coordinator))
        for _, code in response.results:
            error = for_code(code)
            if error is NonEmptyGroup:
                raise EnvironmentProblem(
                    f"{count or 'some'} workers still read in group {self._group}; run this again in a moment"
                )
            if code and error is not GroupIdNotFound:
                raise EnvironmentProblem(f"Kafka did not delete group {self._group}: {error.__name__}")
