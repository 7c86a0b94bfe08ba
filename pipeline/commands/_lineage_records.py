"""For `ctxpipe get --lineage`: where in Kafka the change lies that a row of a bundle came with."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.errors import ConfigError
from schemas.errors import DecodeError
from schemas.record import Record

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from connectors.publisher import KafkaSettings
    from pipeline.core.config import Config
    from pipeline.lookup.lineage import FieldLineage, Lineage
    from pipeline.plan import TablePlan
    from pipeline.streams.registry import Registries
    from schemas.context import ContextSpec

SEARCH_S_MAX = 30.0
RECORDS_MAX = 500_000
"""Of one topic, from the time of the oldest row that is looked for."""
CLOCKS_DIFFER_MS = 60_000
"""Kafka's times may be told by another clock than the source's commits."""
POLL_MS, POLL_RECORDS = 200, 5000


class Wanted(NamedTuple):
    """A version of a row, by its table's topic."""

    topic: str
    key: str
    version: str
    commit_time_us: int


class Place(NamedTuple):
    """One record."""

    topic: str
    partition: int
    offset: int


async def records_of(config: Config, spec: ContextSpec, lineage: Lineage) -> dict[str, dict[str, Any]]:
    """Path of a field → `topic`, `partition` and `offset`, or a `reason` where there is none. Raises Retryable when
    Kafka or a schema registry is away."""
    from pipeline.plan import compile_plan
    from pipeline.streams.registry import Registries

    registries = Registries(config)
    plan = compile_plan(spec, mask_secret=config.mask_key, formats=registries.formats)
    tables = {table.name: table for table in plan.tables.values()}
    wanted = {field.path: _wanted(field, tables) for field in lineage.fields}
    topics: dict[str, set[Wanted]] = {}
    for one in wanted.values():
        if one is not None:
            topics.setdefault(one.topic, set()).add(one)
    found: dict[Wanted, Place | str] = {}
    for topic, rows in topics.items():
        found.update(await _search(config, plan.topics[topic], rows, registries))
    return {field.path: _told(field, wanted[field.path], found) for field in lineage.fields}


def _wanted(field: FieldLineage, tables: Mapping[str, TablePlan]) -> Wanted | None:
    row = field.row
    if row is None or row.many:
        return None
    table = tables[f"{field.origin.source}.{field.origin.table}"]
    return Wanted(table.topic, row.key, row.version, row.commit_time_us)


def _told(field: FieldLineage, wanted: Wanted | None, found: Mapping[Wanted, Place | str]) -> dict[str, Any]:
    if wanted is None:
        return {"reason": field.reason or "many rows: each has a record of its own"}
    place = found[wanted]
    return {"topic": wanted.topic, "reason": place} if isinstance(place, str) else place._asdict()


async def _search(
    config: Config, table: TablePlan, rows: set[Wanted], registries: Registries
) -> dict[Wanted, Place | str]:
    from aiokafka import AIOKafkaConsumer

    from connectors.publisher import mapped_errors
    from pipeline.commands._sources import kafka_settings

    settings = kafka_settings(config)
    search, count = _Search(table, rows, registries), await partitions_of(settings, table.topic)
    if not count:
        return dict.fromkeys(rows, "there is no such topic")
    with mapped_errors(settings.bootstrap_servers):
        consumer = AIOKafkaConsumer(**settings.client(), enable_auto_commit=False)
        await consumer.start()
        try:
            async with asyncio.timeout(SEARCH_S_MAX):
                await search.through(consumer, count)
        except TimeoutError:
            search.ended = f"not found within {SEARCH_S_MAX:g} s"
        finally:
            await consumer.stop()
    return {one: search.found.get(one, search.ended) for one in rows}


async def partitions_of(settings: KafkaSettings, topic: str) -> int:
    """How many a topic has; 0 for one that does not exist, which a consumer's question might make."""
    from aiokafka.admin import AIOKafkaAdminClient

    from connectors.publisher import mapped_errors

    admin = AIOKafkaAdminClient(**settings.client())
    with mapped_errors(settings.bootstrap_servers):
        try:
            await admin.start()
            if topic not in await admin.list_topics():
                return 0
            return len((await admin.describe_topics([topic]))[0]["partitions"])
        finally:
            await admin.close()


class _Search:
    """Through one topic, all partitions side by side: which of them has a key is its writer's choice."""

    def __init__(self, table: TablePlan, rows: set[Wanted], registries: Registries) -> None:
        self._table, self._registry = table, registries.of(table.source)
        self._rows = {(one.key, one.version): one for one in rows}
        self._keys = {one.key for one in rows}
        self._from_ms = max(0, min(one.commit_time_us for one in rows) // 1000 - CLOCKS_DIFFER_MS)
        self.found: dict[Wanted, Place | str] = {}
        self.ended = "no longer in the topic"

    async def through(self, consumer: AIOKafkaConsumer, count: int) -> None:
        from aiokafka import TopicPartition

        places = [TopicPartition(self._table.topic, number) for number in range(count)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        starts = await consumer.offsets_for_times(dict.fromkeys(places, self._from_ms))
        left = set()
        for place in places:
            if starts[place] is not None and starts[place].offset < ends[place]:
                consumer.seek(place, starts[place].offset)
                left.add(place)
            else:
                consumer.pause(place)
        await self._read(consumer, left, ends)

    async def _read(
        self, consumer: AIOKafkaConsumer, left: set[TopicPartition], ends: Mapping[TopicPartition, int]
    ) -> None:
        seen = 0
        while left and len(self.found) < len(self._rows):
            batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
            for place, messages in batches.items():
                seen += len(messages)
                await self._look(
                    [Record(m.topic, m.partition, m.offset, m.key, m.value, m.timestamp) for m in messages]
                )
                for message in messages[-1:]:
                    if message.offset + 1 >= ends[place]:
                        left.discard(place)
            for place in [place for place in left if await consumer.position(place) >= ends[place]]:
                left.discard(place)  # a compacted or transactional end has offsets without records
            if seen >= RECORDS_MAX:
                self.ended = f"not found among {seen:,} records"
                return

    async def _look(self, records: list[Record]) -> None:
        from pipeline.rows import key_of_record

        if self._registry is not None:
            await self._registry.load(records)
        for record in records:
            key = key_of_record(self._table, record)
            if key in self._keys:
                wanted = self._rows.get((key or "", self._version(record)))
                if wanted is not None and wanted not in self.found:
                    self.found[wanted] = Place(record.topic, record.partition, record.offset)

    def _version(self, record: Record) -> str:
        """Empty for what can't be read, or holds no change."""
        from schemas.envelope import decode_record

        table = self._table
        try:
            event = decode_record(record, {table.table: table.types}, form=table.format, table=table.table)
        except (DecodeError, RecursionError):
            return ""
        return "" if event is None else event.version


def refuse_unknown(lineage: Lineage, field: str | None) -> list[FieldLineage]:
    """The fields at or below a path, with or without places in lists; all without one. Raises ConfigError."""
    if field is None:
        return lineage.fields
    kept = [
        one
        for one in lineage.fields
        if any(path == field or path.startswith((f"{field}.", f"{field}[")) for path in (one.path, one.origin.path))
    ]
    if not kept:
        from difflib import get_close_matches

        known = list(dict.fromkeys(one.origin.path for one in lineage.fields))
        near = get_close_matches(field, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known[:20])}"
        raise ConfigError([f"{lineage.context} {lineage.key} has no field {field!r}; {hint}"])
    return kept
