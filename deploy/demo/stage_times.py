"""When each stage handed a change on, from the times that producers wrote into Kafka's records: exact to a millisecond,
and the measured pipeline does nothing for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from deploy.demo.renaming import Renaming
from pipeline.core.errors import EnvironmentProblem
from pipeline.streams.topics import Topics
from schemas.topics import request_topic, table_topic, text_topic, vector_topic
from schemas.vectors import TextRecord, decode_text, decode_vectors

_STALL_S = 20.0


@dataclass(frozen=True, slots=True)
class StageTimes:
    """When Postgres committed, microseconds since 1970 UTC; and, in milliseconds, when a producer took the change of
    the row, the request for a text (the bundle is in Redis then), the text, and the vector."""

    commit_us: int
    change_ms: int
    request_ms: int
    text_ms: int
    vector_ms: int


async def stage_times(
    bootstrap_servers: str, context: str, space: str, dimension: int, changes: Sequence[Renaming]
) -> dict[str, StageTimes]:
    """By marker, of the changes that left a record in every topic."""
    markers = {change.marker: change for change in changes}
    rows: dict[str, int] = {}
    async for record in _records(bootstrap_servers, table_topic("nyc", "public.planes")):
        model = _model(record.value)
        if model in markers:
            rows.setdefault(model, record.timestamp)
    requests: dict[str, list[int]] = {}
    async for record in _records(bootstrap_servers, request_topic(context, 1)):
        requests.setdefault(record.key.decode(), []).append(record.timestamp)
    texts: dict[str, tuple[TextRecord, int]] = {}
    async for record in _records(bootstrap_servers, text_topic(context, 1, space)):
        if record.value is not None:
            text = decode_text(record.value, space)
            for marker in markers.keys() & _words(text.text):
                texts.setdefault(marker, (text, record.timestamp))
    vectors: dict[str, int] = {}
    async for record in _records(bootstrap_servers, vector_topic(context, 1, space)):
        if record.value is not None:
            vectors.setdefault(decode_vectors(record.value, space, dimension).text_hash, record.timestamp)
    return _joined(markers, rows, requests, texts, vectors)


def _joined(
    markers: Mapping[str, Renaming],
    rows: Mapping[str, int],
    requests: Mapping[str, list[int]],
    texts: Mapping[str, tuple[TextRecord, int]],
    vectors: Mapping[str, int],
) -> dict[str, StageTimes]:
    found: dict[str, StageTimes] = {}
    for marker, (text, text_ms) in texts.items():
        tailnum, change_ms = markers[marker].tailnum, rows.get(marker)
        later = [time_ms for time_ms in requests.get(tailnum, ()) if time_ms >= (change_ms or 0)]
        vector_ms = vectors.get(text.text_hash)
        if change_ms is not None and later and vector_ms is not None:
            found[marker] = StageTimes(text.commit_time_us, change_ms, min(later), text_ms, vector_ms)
    return found


def _words(text: str) -> set[str]:
    return set(text.replace(",", " ").split())


def _model(value: bytes | None) -> str:
    """The last word of the model, which is the marker where the row has one."""
    after = None if value is None else msgspec.json.decode(value).get("after")
    words = str((after or {}).get("model") or "").split()
    return words[-1] if words else ""


async def _records(bootstrap_servers: str, topic: str) -> AsyncIterator[Any]:
    """All that the topic holds now."""
    from aiokafka import AIOKafkaConsumer
    from aiokafka.structs import TopicPartition

    topics = Topics(bootstrap_servers, "")
    try:
        places = [TopicPartition(*partition) for partition in sorted(await topics.partitions([topic]))]
    finally:
        await topics.stop()
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=None, auto_offset_reset="earliest")
    await consumer.start()
    try:
        ends = await consumer.end_offsets(places)
        consumer.assign(places)
        left = {place for place in places if await consumer.position(place) < ends[place]}
        while left:
            found = await consumer.getmany(timeout_ms=int(_STALL_S * 1000), max_records=5_000)
            if not found:
                raise EnvironmentProblem(f"Kafka gives no records of {topic}, which it says are there")
            for records in found.values():
                for record in records:
                    yield record
            left = {place for place in left if await consumer.position(place) < ends[place]}
    finally:
        await consumer.stop()
