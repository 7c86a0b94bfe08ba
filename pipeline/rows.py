"""Record → change of a row: decoding, projection to the plan's columns, unchanged TOAST columns completed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.core.errors import Poison
from pipeline.plan import Plan, TablePlan, Values
from pipeline.relations import Links, links_of
from pipeline.report import DeadLetter, digest_of
from pipeline.stores.store import AppliedPosition, Partition, RowWrite, StoredRow
from schemas.envelope import decode_record
from schemas.errors import DecodeError
from schemas.event import VERSION_LENGTH, ChangeEvent, Operation, Row, version_of
from schemas.keys import key_text, plain_decimal
from schemas.mutation import Cell, Mutation
from schemas.record import Record
from schemas.topics import HEARTBEAT_PREFIX
from schemas.types import NESTING_MAX, UnknownValue, nested_too_deep

_EXAMINED = frozenset({list, dict, UnknownValue})


class Change(msgspec.Struct, gc=False):
    """One version of one row. `values` None is a delete; `missing` are positions that the source did not send.

    The halves of a primary-key change name each other: the row under its `new_key` comes from `former_key`.
    """

    record: Record
    table: TablePlan
    key: str
    version: str
    values: Values | None
    commit_time_us: int
    missing: tuple[int, ...] = ()
    former_key: str | None = None
    links: Links = ()
    new_key: Row | None = None
    snapshot: bool = False

    @property
    def to_kafka_us(self) -> int:
        """From the commit to the time that the record has in Kafka."""
        return max(0, self.record.timestamp_ms * 1000 - self.commit_time_us)


class Truncation(msgspec.Struct, gc=False):
    """All rows of the table below this version are gone."""

    table: TablePlan
    version: str
    commit_time_us: int


class Write(msgspec.Struct, gc=False):
    """A mutation of a wide-column table. `key` is the row's key text, None for a partition's or a range's deletion;
    `partition` the partition key's, None where the table has no clustering columns."""

    record: Record
    table: TablePlan
    key_row: Row
    key: str | None
    partition: str | None
    mutation: Mutation
    commit_time_us: int
    snapshot: bool = False

    @property
    def to_kafka_us(self) -> int:
        """As of a Change."""
        return max(0, self.record.timestamp_ms * 1000 - self.commit_time_us)


class Decoded(msgspec.Struct):
    """A batch of records as changes, in order, with what could not be read set aside; `writes` of wide-column tables
    in no order that matters."""

    changes: list[Change | Truncation] = []
    writes: list[Write] = []
    dead_letters: list[DeadLetter] = []
    applied: dict[Partition, AppliedPosition] = {}


def decode_batch(plan: Plan, records: Sequence[Record]) -> Decoded:
    """Decodes each record by its topic's table; a broken one becomes a dead letter and the next go on."""
    types = {table.table: table.types for table in plan.tables.values()}
    decoded = Decoded()
    for record in records:
        table = plan.topics.get(record.topic)
        event = None
        try:
            if table is None:
                raise Poison(f"topic {record.topic} belongs to no table of context {plan.spec.context}")
            event = decode_record(record, types, form=table.format, table=table.table)
            if event is not None and event.mutation is not None:
                decoded.writes.append(_write_of(table, event, event.mutation, record))
            elif event is not None:
                change = _change_of(table, event, record)
                if change is not None:
                    decoded.changes.append(change)
        except (DecodeError, Poison, RecursionError) as error:
            decoded.dead_letters.append(DeadLetter(record, str(error), digest_of(error)))
        if table is not None:
            _advance(decoded.applied, table, record, event)
    return decoded


def _change_of(table: TablePlan, event: ChangeEvent, record: Record) -> Change | Truncation | None:
    operation = event.operation
    if operation is Operation.MESSAGE:
        return None
    if event.table != table.table:
        raise Poison(f"an event of table {event.table} on topic {record.topic}, which carries {table.table}")
    if operation is Operation.TRUNCATE:
        return Truncation(table, event.version, event.commit_time_us)
    key = _key(table, event.key if event.key is not None else event.row)
    if operation is Operation.DELETE:
        return Change(record, table, key, event.version, None, event.commit_time_us, new_key=event.new_key)
    row = event.row
    if row is None:
        raise Poison(f"operation {operation.value!r} without 'after'")
    values = [row.get(column) for column in table.columns]
    for value, column in zip(values, table.columns, strict=True):
        if value.__class__ in _EXAMINED:
            _examine(value, column)
    missing: tuple[int, ...] = ()
    if event.unavailable:
        missing = tuple(number for number, column in enumerate(table.columns) if column in event.unavailable)
    former_key = _key(table, event.old_key) if event.old_key is not None else None
    change = Change(record, table, key, event.version, values, event.commit_time_us, missing, former_key)
    change.snapshot = operation is Operation.SNAPSHOT
    return change


def _examine(value: Any, column: str) -> None:
    if isinstance(value, UnknownValue):
        raise Poison(value.refusal(column))
    if nested_too_deep(value):
        raise Poison(f"a value that is nested more than {NESTING_MAX} levels deep")


def _write_of(table: TablePlan, event: ChangeEvent, mutation: Mutation, record: Record) -> Write:
    if event.table != table.table:
        raise Poison(f"an event of table {event.table} on topic {record.topic}, which carries {table.table}")
    key_row = event.key or {}
    columns, leading = table.key_columns, table.key_columns[: table.partition_columns]
    clustered = len(leading) < len(columns)
    known = columns if mutation.scope == "row" or not clustered else leading
    given = tuple(column for column in columns if key_row.get(column) is not None)
    if given != known:
        raise Poison(
            f"the key names {', '.join(given) or 'no column'} of {table.table}, where {', '.join(known)} should be; "
            "write the columns of the table's partition key as partition_key of the entity"
        )
    for column, cell in mutation.cells.items():
        if isinstance(cell, Cell) and column in table.columns:
            _examine(cell.value, column)
    key = _key(table, key_row) if known == columns else None
    partition = key_text([key_row[column] for column in leading]) if clustered else None
    is_snapshot = event.operation is Operation.SNAPSHOT
    return Write(record, table, key_row, key, partition, mutation, event.commit_time_us, is_snapshot)


def _key(table: TablePlan, row: Mapping[str, Any] | None) -> str:
    try:
        if row is None:
            raise KeyError(", ".join(table.key_columns))
        decimals = table.decimals
        if not decimals:
            return key_text([row[column] for column in table.key_columns])
        named = [(column, row[column]) for column in table.key_columns]
        return key_text([plain_decimal(value) if column in decimals else value for column, value in named])
    except KeyError as error:
        raise Poison(f"the record's key lacks column {error.args[0]}, part of the key of {table.table}") from error


def key_of_record(table: TablePlan, record: Record) -> str | None:
    """The key text of a record that could not be read as a whole, if at least its key can be."""
    try:
        if table.format is not None and table.format.translate is not None:
            record = table.format.translate(msgspec.structs.replace(record, value=None))
        key = msgspec.json.decode(record.key) if record.key else None
        if isinstance(key, dict):
            return _key(table, key["payload"] if set(key) == {"schema", "payload"} else key)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DecodeError, Poison, TypeError):
        pass
    return None


def _advance(
    applied: dict[Partition, AppliedPosition], table: TablePlan, record: Record, event: ChangeEvent | None
) -> None:
    """Only streamed changes and heartbeats say that everything before them has been seen; snapshot rows do not, and
    writes of wide-column tables do not either: their timestamps are their writers', in no order."""
    partition = (record.topic, record.partition)
    known = applied.get(partition)
    version, time_us, cluster = (known.version, known.commit_time_us, known.cluster) if known else ("", 0, "")
    if event is not None and event.operation is not Operation.SNAPSHOT and event.mutation is None:
        is_message = event.operation is Operation.MESSAGE
        if not is_message or (event.message is not None and event.message[0] == HEARTBEAT_PREFIX):
            version, time_us = max(version, event.version), max(time_us, event.commit_time_us)
            cluster = event.cluster or cluster
    applied[partition] = AppliedPosition(table.source, record.offset + 1, version, time_us, cluster)


def rows_to_complete(changes: Sequence[Change]) -> list[tuple[str, str]]:
    """(table, key) of stored rows that partial changes need, in order and without repetition."""
    needed: dict[tuple[str, str], None] = {}
    for change in changes:
        if change.missing:
            needed[change.table.name, change.key] = None
            if change.former_key is not None:
                needed[change.table.name, change.former_key] = None
        elif change.new_key is not None:
            needed[change.table.name, change.key] = None
            needed[change.table.name, _key(change.table, change.new_key)] = None
    return list(needed)


def _heir(change: Change, values: Values) -> Change:
    """The row of a key change under its new key, as it was before.

    Debezium's other half may leave large values out, and by the time that it arrives, perhaps in another partition,
    the old row is gone. So the deletion hands its values over, in a version that is older than the other half's:
    offsets of two partitions can't be compared, there the oldest of all.
    """
    table = change.table
    key_row = change.new_key or {}
    inherited = [*(key_row[column] for column in table.key_columns), *values[len(table.key_columns) :]]
    version = f"{int(change.version, 16) - 1:0{VERSION_LENGTH}x}" if int(change.version[:16], 16) else version_of(0, 0)
    return Change(change.record, table, _key(table, key_row), version, inherited, change.commit_time_us)


def complete(
    changes: Sequence[Change], stored: Mapping[tuple[str, str], StoredRow | None]
) -> tuple[list[Change], list[DeadLetter]]:
    """Fills what the source did not send from the row before it: earlier in this batch, or stored.

    A partial change without any row before it can't be completed: it is set aside, never guessed.
    """
    latest: dict[tuple[str, str], Values | None]
    latest = {key: row.values if row.live else None for key, row in stored.items() if row is not None}
    versions = {key: row.version for key, row in stored.items() if row is not None}
    completed, dead_letters = [], []
    for change in changes:
        name = change.table.name
        if change.missing and change.values is not None:
            before = latest.get((name, change.key))
            if before is None and change.former_key is not None:
                before = latest.get((name, change.former_key))
            if before is None and versions.get((name, change.key), "") >= change.version:
                continue  # it is stale: the row has been deleted since
            if before is None:
                columns = ", ".join(change.table.columns[position] for position in change.missing)
                reason = f"unchanged large value of {columns} was not sent, and no earlier row {change.key} is known"
                dead_letters.append(DeadLetter(change.record, reason, "incomplete-row", []))
                continue
            for position in change.missing:
                change.values[position] = before[position]
        moved = latest.get((name, change.key)) if change.new_key is not None else None
        for one in (change,) if moved is None else (_heir(change, moved), change):
            if one.version >= versions.get((name, one.key), ""):
                latest[name, one.key] = one.values
                versions[name, one.key] = one.version
            completed.append(one)
    return completed, dead_letters


def write_of(change: Change) -> RowWrite:
    """The store write of a completed change, whose links are worked out here."""
    if change.values is not None:
        change.links = links_of(change.table, change.values)
    return RowWrite(change.table.name, change.key, change.version, change.values, change.links, change.commit_time_us)
