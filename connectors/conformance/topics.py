"""A topic read back as it grows, through the decoder that workers use, and folded to rows as they fold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from connectors.conformance.harness import Rows
from pipeline.core.debezium import DebeziumConfig
from schemas.debezium_values import PLACEHOLDER
from schemas.envelope import decode_record
from schemas.event import ChangeEvent, Operation
from schemas.mutation import Elements
from schemas.record import Record
from schemas.source_format import SourceFormat
from schemas.topics import HEARTBEAT_PREFIX

FETCH_BYTES_MAX = 64 << 20
POLL_MS = 20


class TopicLog:
    """Everything that lies in one topic. `poll` reads on; topics that are made later are found then."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self.topic = topic
        self.records: list[Record] = []
        self._bootstrap_servers = bootstrap_servers
        self._consumer: Any = None
        self._partitions: list[TopicPartition] = []

    @property
    def partitions(self) -> int:
        """How many the topic has; 0 before it is there."""
        return len(self._partitions)

    async def poll(self) -> list[Record]:
        """What has come since the last poll, up to the ends of now."""
        if not self._partitions and not await self._find():
            return []
        consumer, found = self._consumer, []
        ends = await consumer.end_offsets(self._partitions)
        for partition in self._partitions:
            while await consumer.position(partition) < ends[partition]:
                for records in (await consumer.getmany(partition, timeout_ms=POLL_MS)).values():
                    found += [_record(one) for one in records]
        self.records += found
        return found

    async def _find(self) -> bool:
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(
                bootstrap_servers=self._bootstrap_servers,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_partition_fetch_bytes=FETCH_BYTES_MAX,
                fetch_max_bytes=FETCH_BYTES_MAX,
            )
            await self._consumer.start()
        if self.topic not in await self._consumer.topics():  # asks for what is there, and makes nothing
            return False
        numbers = self._consumer.partitions_for_topic(self.topic) or set()
        self._partitions = [TopicPartition(self.topic, number) for number in sorted(numbers)]
        self._consumer.assign(self._partitions)
        return bool(self._partitions)

    async def close(self) -> None:
        """A later `poll` begins anew."""
        consumer, self._consumer, self._partitions = self._consumer, None, []
        self.records.clear()
        if consumer is not None:
            await consumer.stop()


class Told(msgspec.Struct, frozen=True):
    """A record and what it says; None for a tombstone and what carries no change."""

    record: Record
    event: ChangeEvent | None


class Reading:
    """How records of a table become events: the format of the source's section, the types that a context declares."""

    def __init__(self, config: Any, types: Mapping[str, str]) -> None:
        self._form: SourceFormat | None = config.source_format() if isinstance(config, DebeziumConfig) else None
        self._types = types

    def told(self, records: Iterable[Record], table: str) -> list[Told]:
        """Raises DecodeError: a worker would set that record aside."""
        types = {table: self._types}
        return [Told(one, decode_record(one, types, form=self._form, table=table)) for one in records]


def fold_events(events: Sequence[ChangeEvent]) -> Rows:
    """The rows after events that tell whole rows: never backwards, deletes and truncates included."""
    rows: dict[str, tuple[str, dict[str, Any] | None]] = {}
    known: dict[str, dict[str, Any]] = {}
    """The newest row of each key, deleted or not: a changed key names the old one, whose values it does not repeat."""
    floor = ""
    for event in events:
        if event.operation is Operation.TRUNCATE:
            floor = max(floor, event.version)
            rows |= {text: (event.version, None) for text, (old, _) in rows.items() if old < event.version}
            continue
        if event.key is None or event.mutation is not None:
            continue
        text = key_text(event.key)
        if event.version < max(floor, rows.get(text, ("", None))[0]):
            continue
        row = event.row
        if row is not None:
            before = known.get(key_text(event.old_key) if event.old_key is not None else text, {})
            row = {**row, **{column: before.get(column) for column in event.unavailable}}
            known[text] = row
        rows[text] = (event.version, row)
    return {text: row for text, (_, row) in rows.items() if row is not None}


def said_by(event: ChangeEvent) -> dict[str, Any]:
    """What one change says of its row: null, absent, or `__debezium_unavailable_value` for what was not sent."""
    if event.mutation is not None:
        cells = {name: _value(cell) for name, cell in event.mutation.cells.items()}
        return {**(event.key or {}), **cells}
    return {**(event.row or {}), **dict.fromkeys(event.unavailable, PLACEHOLDER)}


def is_write(event: ChangeEvent | None) -> bool:
    """A change that gives values: neither a deletion nor a message, a truncate, a tombstone."""
    if event is None or event.key is None:
        return False
    if event.mutation is not None:
        return event.mutation.scope == "row" and event.mutation.deleted is None
    return event.row is not None


def is_delete(event: ChangeEvent | None) -> bool:
    return event is not None and event.operation is Operation.DELETE


def is_beat(event: ChangeEvent | None) -> bool:
    return event is not None and event.message is not None and event.message[0] == HEARTBEAT_PREFIX


def key_text(key: dict[str, Any]) -> str:
    return msgspec.json.encode(key).decode()


def _value(cell: Any) -> Any:
    return [[key, one.value] for key, one in cell.elements] if isinstance(cell, Elements) else cell.value


def _record(one: Any) -> Record:
    return Record(one.topic, one.partition, one.offset, one.key, one.value, one.timestamp or 0, tuple(one.headers))
