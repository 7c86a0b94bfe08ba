"""A log as a connector writes it: changes of rows, each with its place in the write-ahead log; and tables beside it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec

from tests.evals.generate.flights import Row

BEGAN_US = 1_700_000_000_000_000
_STEP = 100


@dataclass(frozen=True)
class Moment:
    """After `until` records the tables are these; `why`: what a wrong bundle then would mean."""

    until: int
    name: str
    why: str
    tables: dict[str, dict[tuple[Any, ...], Row]]


@dataclass
class Log:
    """Records in the order in which they arrive; `tables` holds what the source holds once it has all of them. What
    comes again (`again`) changes no table: that is the point of it."""

    source: str
    partitions: int = 2
    records: list[dict[str, Any]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    tables: dict[str, dict[tuple[Any, ...], Row]] = field(default_factory=dict)
    _position: int = 1_000

    def put(self, table: str, key: tuple[str, ...], row: Row) -> int:
        """Gives the number of its record, for `again`."""
        rows = self.tables.setdefault(table, {})
        name = tuple(row[column] for column in key)
        operation = "u" if name in rows else "c"
        rows[name] = row
        return self._append(table, {column: row[column] for column in key}, operation, None, row)

    def delete(self, table: str, key: tuple[str, ...], row: Row) -> int:
        """And the tombstone that follows it."""
        del self.tables[table][tuple(row[column] for column in key)]
        name = {column: row[column] for column in key}
        number = self._append(table, name, "d", row, None)
        self._record(self.records[number]["topic"], name, None)
        return number

    def again(self, number: int) -> None:
        """The same record once more, at the end of its partition: a connector that died before it noted its place."""
        record = self.records[number]
        self._record(record["topic"], record["key"], record["value"])

    def moment(self, name: str, why: str) -> None:
        """What is true now."""
        self.moments.append(Moment(len(self.records), name, why, copy.deepcopy(self.tables)))

    def lines(self) -> list[dict[str, Any]]:
        return self.records

    def _append(self, table: str, key: Row, operation: str, before: Row | None, after: Row | None) -> int:
        self._position += _STEP
        time_us = BEGAN_US + self._position
        source = {
            "version": "ctxpipe-0.1.0",
            "connector": "postgresql",
            "name": self.source,
            "ts_ms": time_us // 1000,
            "ts_us": time_us,
            "snapshot": "false",
            "db": "demo",
            "schema": "public",
            "table": table,
            "txId": self._position,
            "lsn": self._position,
            "sequence": f'["{self._position + 1}","{self._position}"]',
        }
        value = {"before": before, "after": after, "source": source, "op": operation, "ts_ms": time_us // 1000}
        return self._record(f"{self.source}.public.{table}", key, value)

    def _record(self, topic: str, key: Row, value: Any) -> int:
        partition = crc32(msgspec.json.encode(key)) % self.partitions
        offset = sum(record["topic"] == topic and record["partition"] == partition for record in self.records)
        self.records.append(
            {
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "timestamp_ms": BEGAN_US // 1000 + len(self.records),
                "key": key,
                "value": value,
            }
        )
        return len(self.records) - 1
