"""Which keys the records have that wait on the partitions with most lag: read on request only, with a person's rights,
because keys may be personal data and do not belong into metrics or a collector's answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from pipeline.core.errors import Retryable
from pipeline.ops.lag.model import GroupLag, PartitionLag

PARTITIONS_MAX, RECORDS_MAX, KEYS_MAX = 5, 5_000, 5
READ_S = 5.0
KEY_CHARACTERS_MAX = 120


class HotKey(msgspec.Struct, frozen=True):
    """A key's share of the records that were read of those that wait."""

    group: str
    topic: str
    partition: int
    key: str
    records: int
    of_records: int


def places(groups: Iterable[GroupLag]) -> list[tuple[str, str, PartitionLag]]:
    """(group, topic, partition) with most lag, those that are hot first."""
    found = [
        (group.group, topic.topic, one)
        for group in groups
        for topic in group.topics
        for one in topic.partitions
        if one.lag_records and one.committed is not None
    ]
    found.sort(key=lambda place: (not place[2].hot, -(place[2].lag_records or 0)))
    return found[:PARTITIONS_MAX]


async def hot_keys(bootstrap_servers: str, groups: Iterable[GroupLag], **security: Any) -> list[HotKey]:
    """Of the first records that wait, by partition, the most frequent keys first. Raises Retryable."""
    found: list[HotKey] = []
    try:
        async with AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            **security,
        ) as consumer:
            for group, topic, one in places(groups):
                counts = await _count(consumer, TopicPartition(topic, one.partition), one)
                total = sum(counts.values())
                found += [
                    HotKey(group, topic, one.partition, key, records, total)
                    for key, records in counts.most_common(KEYS_MAX)
                ]
    except (KafkaError, OSError) as error:
        raise Retryable(f"the keys of what waits can't be read: {error!r}") from error
    return found


async def _count(consumer: AIOKafkaConsumer, place: TopicPartition, one: PartitionLag) -> Counter[str]:
    counts: Counter[str] = Counter()
    end = one.end or 0
    consumer.assign([place])
    consumer.seek(place, max(one.committed or 0, one.start or 0))
    loop = asyncio.get_running_loop()
    limit_s = loop.time() + READ_S
    while loop.time() < limit_s and counts.total() < RECORDS_MAX and await consumer.position(place) < end:
        for records in (await consumer.getmany(timeout_ms=200, max_records=1000)).values():
            counts.update(_text(record.key) for record in records if record.offset < end)
    return counts


def _text(key: bytes | None) -> str:
    return "(no key)" if key is None else key.decode(errors="backslashreplace")[:KEY_CHARACTERS_MAX]
