"""Mutations: what Cassandra and Scylla write, cell by cell, with the write timestamps that decide who wins.

A change of a wide-column table does not say what the row is now but what was written into it: some cells, the existence
of the row, a deletion of the row, of its partition or of a range. What the row is, merging decides (pipeline/cells.py).

Our own connectors write them into Debezium's envelope, keyed by the full primary key (the clustering columns null for a
whole partition or a range, as Debezium's connector for Cassandra does):

    {"before": null, "op": "i|u|d|r", "ts_ms": …,
     "source": {"version": "ctxpipe-…", "connector": "cassandra|scylla", "name": …, "keyspace": …, "table": …,
                "ts_us": <newest write timestamp>, "ts_ms": …, "snapshot": "true|false"},
     "after": {<key column>: value, <column>: {"value": …, "ts": µs, "expires": µs, "raw": hex}, …},
     "mutation": {"marker": {"ts": µs, "expires": µs}, "deleted": µs, "lower": bound, "upper": bound}}

`i` inserts (there is a marker), `u` updates, `d` deletes a row or, without clustering columns in the key, a partition,
`r` deletes a range. A cell without `value` is a deleted one. A collection that is not frozen, or a user-defined type
that is not, has {"kind": "set|list|map|udt", "cleared": µs, "elements": [[key, value, ts, expires], …]} instead: the
elements written or removed (value null), and the time up to which older ones are gone. A bound is {"values": […],
"inclusive": true}: leading clustering columns, ascending by their values whatever the table's clustering order is.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from schemas.event import Row
from schemas.topics import HEARTBEAT_PREFIX
from schemas.wire import OWN_VERSION

Kind = Literal["set", "list", "map", "udt"]
MUTATION_VERSION = f"{OWN_VERSION}0.1.0"
CONNECTORS = ("cassandra", "scylla")
OWN_KEY = "__ctxpipe"
"""The one column of the keys of records that belong to no row."""


class Cell(msgspec.Struct, frozen=True, gc=False):
    """One written value; None is a deleted cell. Times are microseconds since 1970.

    `raw` is the hex of the value's bytes in CQL's own form, where two values of the same timestamp would not compare
    like those bytes otherwise (Cassandra lets the larger bytes win): decimals, varints, blobs, tuples, frozen
    collections, durations, addresses, times before 1970.
    """

    ts: int
    value: Any = None
    expires: int | None = None
    raw: str | None = None


class Elements(msgspec.Struct, frozen=True, gc=False):
    """A change of a multi-cell column: `elements` are (key, cell); a set's key is its element, its cells hold True, a
    list's key is the timeuuid of its place, a user-defined type's the field's name."""

    kind: Kind
    elements: tuple[tuple[Any, Cell], ...] = ()
    cleared: int | None = None


class Marker(msgspec.Struct, frozen=True, gc=False):
    """INSERT says that the row exists, even when all its cells are null."""

    ts: int
    expires: int | None = None


class Bound(msgspec.Struct, frozen=True, gc=False):
    """Leading clustering columns' values, canonical."""

    values: tuple[Any, ...]
    inclusive: bool


class Mutation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One write into one row (`scope` row), or the deletion of a partition or of a range of its rows.

    `deleted` is the deletion's timestamp: everything written up to it is gone. A range lies between `lower` and
    `upper`; None is no bound.
    """

    scope: Literal["row", "partition", "range"] = "row"
    marker: Marker | None = None
    cells: dict[str, Cell | Elements] = {}
    deleted: int | None = None
    lower: Bound | None = None
    upper: Bound | None = None


class MutationSource(msgspec.Struct, frozen=True, gc=False):
    """What the envelope's `source` says, for `encode_mutation`."""

    connector: str
    name: str
    keyspace: str
    table: str
    snapshot: bool = False


_ENCODE = msgspec.json.Encoder().encode


def encode_mutation(source: MutationSource, key: Row, mutation: Mutation, now_ms: int) -> tuple[bytes, bytes]:
    """(record key, record value). `key` has every primary key column, in order; those that a partition's or range's
    deletion leaves open are None."""
    ts_us = newest_timestamp(mutation)
    value: dict[str, Any] = {
        "before": None,
        "after": {**key, **{column: _cell(cell) for column, cell in mutation.cells.items()}},
        "source": {
            "version": MUTATION_VERSION,
            "connector": source.connector,
            "name": source.name,
            "ts_ms": ts_us // 1000,
            "ts_us": ts_us,
            "snapshot": "true" if source.snapshot else "false",
            "keyspace": source.keyspace,
            "table": source.table,
        },
        "op": _operation(mutation),
        "mutation": _rest(mutation),
        "ts_ms": now_ms,
    }
    return _ENCODE(key), _ENCODE(value)


def encode_heartbeat(source: MutationSource, until_us: int, now_ms: int) -> tuple[bytes, bytes]:
    """(record key, record value) that says: every write up to `until_us` has been published before. It goes into every
    partition of every table's topic."""
    value = {
        "op": "m",
        "source": {
            "version": MUTATION_VERSION,
            "connector": source.connector,
            "name": source.name,
            "ts_ms": until_us // 1000,
            "ts_us": until_us,
            "snapshot": "false",
            "keyspace": source.keyspace,
            "table": source.table,
        },
        "message": {"prefix": HEARTBEAT_PREFIX, "content": ""},
        "ts_ms": now_ms,
    }
    return _ENCODE({OWN_KEY: "heartbeat"}), _ENCODE(value)


def element_text(key: Any) -> str:
    """An element's key as the name in a JSON object: itself, or its JSON."""
    return key if key.__class__ is str else _ENCODE(key).decode()


def newest_timestamp(mutation: Mutation) -> int:
    """The newest write timestamp in it, in microseconds; 0 of nothing."""
    times = [0, mutation.deleted or 0, mutation.marker.ts if mutation.marker else 0]
    for cell in mutation.cells.values():
        if isinstance(cell, Cell):
            times.append(cell.ts)
        else:
            times += [cell.cleared or 0, *(element.ts for _, element in cell.elements)]
    return max(times)


def _operation(mutation: Mutation) -> str:
    if mutation.scope == "range":
        return "r"
    if mutation.scope == "partition" or (mutation.deleted is not None and not mutation.cells and not mutation.marker):
        return "d"
    return "i" if mutation.marker is not None else "u"


def _cell(cell: Cell | Elements) -> dict[str, Any]:
    if isinstance(cell, Elements):
        elements = [[key, element.value, element.ts, element.expires] for key, element in cell.elements]
        return {"kind": cell.kind, "cleared": cell.cleared, "elements": elements}
    found: dict[str, Any] = {"value": cell.value, "ts": cell.ts}
    if cell.expires is not None:
        found["expires"] = cell.expires
    if cell.raw is not None:
        found["raw"] = cell.raw
    return found


def _rest(mutation: Mutation) -> dict[str, Any]:
    marker = mutation.marker
    return {
        "marker": None if marker is None else {"ts": marker.ts, "expires": marker.expires},
        "deleted": mutation.deleted,
        "lower": _bound(mutation.lower),
        "upper": _bound(mutation.upper),
    }


def _bound(bound: Bound | None) -> dict[str, Any] | None:
    return None if bound is None else {"values": list(bound.values), "inclusive": bound.inclusive}
