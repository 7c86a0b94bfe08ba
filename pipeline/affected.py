"""A record that could not be applied → the bundles that are wrong because of it, and what its row is by now.

Of a record that nobody can read as a whole, its key may be readable, or single columns: what joins the row to others is
taken from there, from the row that is stored, and from both where they differ. Pure: stores are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from pipeline import rows
from pipeline.core.errors import Poison
from pipeline.dirty import Climb
from pipeline.plan import Plan, TablePlan, Values
from pipeline.relations import Links, links_of
from pipeline.stores.store import RelationStore, RowStore, StoredRow
from schemas import debezium_values
from schemas.debezium_schema import row_converters
from schemas.errors import DecodeError
from schemas.keys import key_text, plain_decimal
from schemas.record import Record
from schemas.types import UnknownValue
from schemas.wire import OWN_VERSION, parse, parse_key, parse_object

_BROKEN = (ValueError, TypeError, KeyError, ArithmeticError, msgspec.MsgspecError, RecursionError)

RowState = Literal["unknown", "missing", "older", "newer"]


class Affected(msgspec.Struct, frozen=True, kw_only=True):
    """`keys`: bundles by their key, fragments as `section:key`; `more`: there are others. `table` and `key` name the
    row, as far as the record tells. `row`: what is stored of it beside the record's change; "newer" makes the record
    needless, "unknown" where the record does not say how old it is."""

    keys: list[str] = []
    more: bool = False
    table: str = ""
    key: str | None = None
    row: RowState = "unknown"


async def affected_by(
    plan: Plan,
    row_store: RowStore,
    relation_store: RelationStore,
    record: Record,
    keys_max: int = 100,
    children_max: int = 1000,
    compared: bool = True,
) -> Affected:
    """Of a parent with more than `children_max` children, none of their bundles is named. Not `compared`: nobody asks
    what the row is by now. Raises Retryable when a store is away."""
    table = plan.topics.get(record.topic)
    if table is None:
        return Affected()
    loose = _loose_values(table, record)
    key = rows.key_of_record(table, record) or _key_in_row(table, loose)
    if key is None:
        return Affected(table=table.table)
    stored = (await row_store.read([(table.name, key)]))[0]
    climb = Climb(plan)
    here = links_of(table, stored.values) if stored is not None and stored.live else ()
    there = None if loose is None else _links(table, loose)
    climb.changed(table, key, here, [] if there is None else [there])
    await _climb(climb, row_store, relation_store, children_max)
    keys = [f"{unit.unit}:{unit.key}" if unit.unit else unit.key for unit in climb.keys]
    more = len(keys) > keys_max or bool(climb.hot)
    row = _row_state(plan, record, key, stored) if compared else "unknown"
    return Affected(keys=keys[:keys_max], more=more, table=table.table, key=key, row=row)


async def _climb(climb: Climb, row_store: RowStore, relation_store: RelationStore, children_max: int) -> None:
    while True:
        members, row_keys = climb.needed()
        if not members and not row_keys:
            return
        found = [(await relation_store.members(relation, [link], children_max))[0] for relation, link in members]
        climb.supply(found, await row_store.read(row_keys) if row_keys else [])


def _row_state(plan: Plan, record: Record, key: str, stored: StoredRow | None) -> RowState:
    """Only a record that can be read by now tells its version."""
    decoded = rows.decode_batch(plan, [record])
    versions = [one.version for one in decoded.changes if isinstance(one, rows.Change) and one.key == key]
    if stored is None:
        return "missing"
    if not versions:
        return "unknown"
    return "newer" if stored.version > versions[-1] else "older"


def _loose_values(table: TablePlan, record: Record) -> Values | None:
    """The row's columns that can be read, None in place of the others; None where nothing can."""
    row, convert = _tried(_loose_row, table, record)
    key, _ = _tried(_loose_key, table, record)
    if row is None and key is None:
        return None
    values = {name: _loose(value, convert.get(name, debezium_values.plain)) for name, value in (row or {}).items()}
    return [values[name] if values.get(name) is not None else (key or {}).get(name) for name in table.columns]


Loose = tuple[Mapping[str, Any] | None, Mapping[str, Any]]
"""A row, and converters by column."""


def _tried(read: Callable[[TablePlan, Record], Loose], table: TablePlan, record: Record) -> Loose:
    try:
        return read(table, record)
    except (DecodeError, Poison, RecursionError):
        return None, {}


def _loose_key(table: TablePlan, record: Record) -> Loose:
    return parse_key(_translated(table, msgspec.structs.replace(record, value=None)).key)[0], {}


def _translated(table: TablePlan, record: Record) -> Record:
    if table.format is None or table.format.translate is None:
        return record
    return table.format.translate(record)


def _loose_row(table: TablePlan, record: Record) -> Loose:
    record = _translated(table, record)
    if table.format is not None and table.format.flattened:
        row, schema = parse_object(record.value)
        return row, {} if schema is None else row_converters(schema, table.types).by_column
    envelope = parse(record)
    if envelope is None or envelope.source is None:
        return None, {}
    if envelope.source.version.startswith(OWN_VERSION):
        return envelope.after, dict.fromkeys(table.columns)
    return envelope.after, row_converters(envelope.schema, table.types).by_column


def _loose(value: Any, convert: Any) -> Any:
    if value is None or convert is None:
        return value
    try:
        converted = convert(value)
    except _BROKEN:
        return None
    return None if isinstance(converted, UnknownValue) else converted


def _key_in_row(table: TablePlan, values: Values | None) -> str | None:
    """Where the record has no key that can be read."""
    if values is None or not set(table.key_columns) <= set(table.columns):
        return None
    row = dict(zip(table.columns, values, strict=True))
    parts = [plain_decimal(row[name]) if name in table.decimals else row[name] for name in table.key_columns]
    return None if None in parts else key_text(parts)


def _links(table: TablePlan, values: Values) -> Links | None:
    try:
        return links_of(table, values)
    except _BROKEN:
        return None


def named(affected: Affected, letter_keys: Sequence[str]) -> list[str]:
    """With those that were known when the letter was written."""
    return list(dict.fromkeys([*affected.keys, *letter_keys]))
