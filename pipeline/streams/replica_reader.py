"""Reads the topics of an embedding space for a replica: all partitions, without a group, from given positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import TopicPartition

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import Retryable
from pipeline.stores.store import Partition
from pipeline.streams.kafka_clients import rest_between_metadata, stop_consumer
from pipeline.streams.kafka_errors import answered, ours
from pipeline.streams.offsets import Extent
from pipeline.streams.topics import Topics

STOP_LIMIT_S = 1.0
LEADERLESS_LIMIT_S = 5.0
"""A topic without a leader for so long was deleted, or its brokers are down; the client itself would wait for ever."""
POLL_TIMEOUT_MS = 200
RECORDS_MAX = 1000
PARTITION_BYTES_MAX = 4 * 1024 * 1024


class PositionGone(Retryable):
    """The log no longer has what comes after these positions: the topic's index starts anew."""

    def __init__(self, topic: str, text: str) -> None:
        super().__init__(text)
        self.topic = topic


@dataclass(frozen=True, slots=True)
class Progress:
    """`behind_records` of one topic's partitions together. `loaded`: where they ended at the opening is reached.
    `as_of_us`: their end was reached then in all of them, microseconds since 1970 UTC; None before."""

    behind_records: int
    loaded: bool
    as_of_us: int | None


class SpaceReader:
    """`open`, `seek`, then `read` again and again; `stop` at the end, also after an error, and it may be opened again.

    All methods raise Retryable while Kafka is away or has not made the topics, and EnvironmentProblem when it refuses.
    """

    def __init__(
        self, bootstrap_servers: str, topics: Sequence[str], clock: Clock | None = None, **security: Any
    ) -> None:
        self._address, self._topics = bootstrap_servers, tuple(topics)
        self._settings = {"bootstrap_servers": bootstrap_servers, **security}
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions: list[TopicPartition] = []
        self._ends: dict[TopicPartition, int] = {}
        self._at_end_ms: dict[TopicPartition, int] = {}
        self._clock, self._led_s = clock or SystemClock(), 0.0

    async def open(self) -> dict[Partition, Extent]:
        """What Kafka holds of each partition now. Asking never makes a topic."""
        partitions = await self._existing()
        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=PARTITION_BYTES_MAX,
            **self._settings,
        )
        self._consumer = consumer
        rest_between_metadata(consumer._client)
        await answered(self._address, consumer.start())
        self._partitions = [TopicPartition(*partition) for partition in sorted(partitions)]
        beginnings = await answered(self._address, consumer.beginning_offsets(self._partitions))
        self._ends = await answered(self._address, consumer.end_offsets(self._partitions))
        self._at_end_ms = {}
        return {
            (place.topic, place.partition): Extent(beginnings[place], self._ends[place]) for place in self._partitions
        }

    async def first_since(self, time_ms: int) -> dict[Partition, int]:
        """The first offset of each partition that was written at this time or later; the end where there is none."""
        asked = dict.fromkeys(self._partitions, time_ms)
        found = await answered(self._address, self._started().offsets_for_times(asked))
        return {
            (place.topic, place.partition): self._ends[place] if found.get(place) is None else found[place].offset
            for place in self._partitions
        }

    async def seek(self, starts: Mapping[Partition, int]) -> None:
        """Reads on from here: an offset for every partition."""
        consumer = self._started()
        consumer.assign(self._partitions)
        for place in self._partitions:
            consumer.seek(place, starts[place.topic, place.partition])
        self._led_s = self._clock.monotonic_s()

    async def read(self) -> list[tuple[str, int, list[Any]]]:
        """(topic, partition, records in order), [] when there is nothing new for a moment. Raises PositionGone."""
        try:
            found = await self._started().getmany(timeout_ms=POLL_TIMEOUT_MS, max_records=RECORDS_MAX)
        except OffsetOutOfRangeError as error:
            place = next(iter(error.args[0]), None) if error.args and isinstance(error.args[0], dict) else None
            topic = place.topic if place is not None else self._topics[0]
            raise PositionGone(topic, f"{topic} no longer has what comes next") from error
        except (KafkaError, OSError) as error:
            raise ours(self._address, error) from error
        self._look_for_leaders()
        return [(place.topic, place.partition, records) for place, records in found.items()]

    def _look_for_leaders(self) -> None:
        cluster, now_s = self._started()._client.cluster, self._clock.monotonic_s()
        gone = sorted({place.topic for place in self._partitions if cluster.leader_for_partition(place) in (None, -1)})
        if not gone:
            self._led_s = now_s
        elif now_s - self._led_s > LEADERLESS_LIMIT_S:
            raise Retryable(f"Kafka has no leader for {' and '.join(gone)}: deleted, or the brokers are down")

    async def progress(self, topic: str) -> Progress:
        """As of the last answers of the brokers."""
        consumer, behind, loaded = self._started(), 0, True
        as_of_ms: list[int | None] = []
        for place in self._partitions:
            if place.topic != topic:
                continue
            position = await answered(self._address, consumer.position(place))
            end = max(self._ends[place], consumer.highwater(place) or 0)
            behind += max(0, end - position)
            loaded = loaded and position >= self._ends[place]
            if position >= end:
                # An idle partition is asked for news all the time; that there are none is news, too.
                told_ms = consumer.last_poll_timestamp(place)
                if told_ms is not None:
                    self._at_end_ms[place] = int(told_ms)
            as_of_ms.append(self._at_end_ms.get(place))
        known = [time_ms for time_ms in as_of_ms if time_ms is not None]
        return Progress(behind, loaded, min(known) * 1000 if known and len(known) == len(as_of_ms) else None)

    async def stop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop_consumer(consumer, STOP_LIMIT_S)

    async def _existing(self) -> frozenset[Partition]:
        topics = Topics(self._address, "", **{k: v for k, v in self._settings.items() if k != "bootstrap_servers"})
        try:
            missing = [topic for topic in self._topics if topic not in await topics.existing()]
            if missing:
                raise Retryable(f"Kafka has no topic {' and no topic '.join(missing)} yet")
            return await topics.partitions(self._topics)
        finally:
            await topics.stop()

    def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise Retryable("the reader is not open")
        return self._consumer


def reason_to_start_anew(
    topic: str, positions: Mapping[int, int], extents: Mapping[Partition, Extent], first_since: Mapping[Partition, int]
) -> str | None:
    """Why an index with these positions cannot go on, None where it can. Pure.

    `first_since`: what was written later than deletions are certain to be kept; who is behind it may have missed some.
    """
    here = {partition: extent for (name, partition), extent in extents.items() if name == topic}
    for partition, position in sorted(positions.items()):
        if partition not in here:
            return f"{topic} has no partition {partition} any more"
        extent = here[partition]
        if position > extent.end:
            return f"{topic}/{partition} ends at offset {extent.end}, before {position}: it was made anew"
        if position < extent.beginning:
            return f"{topic}/{partition} begins at offset {extent.beginning}, after {position}"
        if position < min(first_since[topic, partition], extent.end):
            return f"{topic}/{partition} was read to offset {position} so long ago that deletions may be gone"
    return None


def starts(
    topics: Iterable[tuple[str, Mapping[int, int]]], extents: Mapping[Partition, Extent]
) -> dict[Partition, int]:
    """Where to read on: at the index's position, else at the beginning."""
    known = {(topic, partition): at for topic, positions in topics for partition, at in positions.items()}
    return {place: known.get(place, extent.beginning) for place, extent in extents.items()}
