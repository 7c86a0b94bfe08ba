"""A CQL table to write into: each write is made by CQL, and comes back as the record that a connector makes of it."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from connectors.cql.session import CqlSession
from connectors.cql.times import timeuuid
from schemas.mutation import Bound, Cell, Elements, Kind, Marker, Mutation, MutationSource, encode_heartbeat
from schemas.mutation import encode_mutation as encode
from schemas.record import Record
from schemas.topics import table_topic

Row = Mapping[str, Any]
_offsets = itertools.count(1)


class WideTable:
    """`key` are the primary key's columns, `partition` so many of them the partition key; `multi` tells the columns of
    collections that are not frozen. Values are canonical."""

    def __init__(
        self,
        session: CqlSession,
        source: MutationSource,
        key: tuple[str, ...],
        partition: int = 1,
        multi: Mapping[str, Kind] | None = None,
    ) -> None:
        self.session, self.source, self.key = session, source, key
        self.partition, self.multi = partition, dict(multi or {})
        self.name = f"{source.keyspace}.{source.table}"
        self.topic = table_topic(source.name, self.name)

    async def insert(self, row: Row, ts: int, life_s: int | None = None) -> Record:
        """INSERT of these columns; others stay as they are."""
        using = f"USING TIMESTAMP {ts}" + (f" AND TTL {life_s}" if life_s is not None else "")
        text = json.dumps(row)
        await self.session.execute(f"INSERT INTO {self.name} JSON ? DEFAULT UNSET {using}", (text,))
        expires = None if life_s is None else (int(time.time()) + life_s) * 1_000_000
        cells = {name: self._cell(name, value, ts, expires) for name, value in row.items() if name not in self.key}
        return self.record({name: row[name] for name in self.key}, Mutation(marker=Marker(ts, expires), cells=cells))

    async def remove_value(self, key: Row, column: str, ts: int) -> Record:
        await self.session.execute(f"DELETE {column} FROM {self.name} USING TIMESTAMP {ts} WHERE {_where(key)}")
        cell = Elements(self.multi[column], cleared=ts) if column in self.multi else Cell(ts)
        return self.record(key, Mutation(cells={column: cell}))

    async def delete(self, key: Row, ts: int) -> Record:
        """A row, or with the partition key only a partition."""
        await self.session.execute(f"DELETE FROM {self.name} USING TIMESTAMP {ts} WHERE {_where(key)}")
        scope: Any = "row" if len(key) == len(self.key) else "partition"
        return self.record(key, Mutation(scope=scope, deleted=ts))

    async def delete_from(self, partition: Row, column: str, value: Any, ts: int) -> Record:
        """All rows of a partition from this value of the clustering column on."""
        where = f"{_where(partition)} AND {column} >= {_literal(value)}"
        await self.session.execute(f"DELETE FROM {self.name} USING TIMESTAMP {ts} WHERE {where}")
        return self.record(partition, Mutation(scope="range", deleted=ts, lower=Bound((value,), True)))

    def record(self, key: Row, mutation: Mutation) -> Record:
        whole = {name: key.get(name) for name in self.key}
        return Record(self.topic, 0, next(_offsets), *encode(self.source, whole, mutation, int(time.time() * 1000)))

    def heartbeat(self, until_us: int) -> Record:
        return Record(self.topic, 0, next(_offsets), *encode_heartbeat(self.source, until_us, until_us // 1000))

    def _cell(self, column: str, value: Any, ts: int, expires: int | None) -> Cell | Elements:
        if column not in self.multi:
            return Cell(ts, value, None if value is None else expires)
        kind, pairs = self.multi[column], []
        if kind == "set":
            pairs = [(element, True) for element in value]
        elif kind == "list":
            pairs = [(str(uuid.UUID(bytes=timeuuid(place, b"ctxpipe\0"))), item) for place, item in enumerate(value)]
        else:
            pairs = list(value.items())
        return Elements(kind, tuple((name, Cell(ts, item, expires)) for name, item in pairs), cleared=ts - 1)


def postgres_record(source: str, table: str, key: Row, row: Row | None) -> Record:
    """An insert or update (`row`), or a delete (None)."""
    schema, name = table.split(".")
    lsn = next(_offsets)
    origin = {"version": "ctxpipe-test", "connector": "postgresql", "name": source, "schema": schema, "table": name}
    origin |= {"ts_us": lsn, "lsn": lsn, "sequence": f'["{lsn}","{lsn}"]'}
    before = dict(key) if row is None else None
    value = {"before": before, "after": row, "source": origin, "op": "d" if row is None else "c", "ts_ms": 1}
    return Record(table_topic(source, table), 0, lsn, json.dumps(key).encode(), json.dumps(value).encode())


def _where(key: Row) -> str:
    return " AND ".join(f"{name} = {_literal(value)}" for name, value in key.items())


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else "'" + str(value) + "'"
