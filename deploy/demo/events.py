"""The demo's tables as change events on topics, as the connector would write them; for benchmarks without Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from deploy.demo.data import Table, read_rows
from schemas.topics import table_topic

SOURCE = "nyc"


def table_events(table: Table, limit: int | None = None, position: int = 1000) -> Iterator[tuple[str, bytes, bytes]]:
    """(topic, key, value) per row: a `c` in own envelope each, ten rows to a transaction."""
    for number, row in enumerate(typed_rows(table, limit)):
        yield row_event(table, row, position + (number // 10 + 1) * 1000, position + number * 100)


def typed_rows(table: Table, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """With numbers as numbers."""
    convert = [(name, _converter(kind)) for name, kind in table.columns]
    for values in read_rows(table, limit):
        yield {name: None if value is None else c(value) for (name, c), value in zip(convert, values, strict=True)}


def row_event(table: Table, row: dict[str, Any], commit: int, lsn: int) -> tuple[str, bytes, bytes]:
    """(topic, key, value): the row as it is since the transaction that `commit` ends, where it was written at `lsn`."""
    time_us = 1_700_000_000_000_000 + commit
    source = {
        "version": "ctxpipe-0.1.0",
        "connector": "postgresql",
        "name": SOURCE,
        "ts_ms": time_us // 1000,
        "ts_us": time_us,
        "snapshot": "false",
        "db": "demo",
        "schema": "public",
        "table": table.name,
        "txId": commit,
        "lsn": lsn,
        "sequence": f'["{commit}","{lsn}"]',
    }
    value = {"before": None, "after": row, "source": source, "op": "c", "ts_ms": time_us // 1000}
    key = {name: row[name] for name in table.key}
    return table_topic(SOURCE, f"public.{table.name}"), msgspec.json.encode(key), msgspec.json.encode(value)


def _converter(kind: str) -> type:
    return {"integer": int, "double precision": float}.get(kind, str)
