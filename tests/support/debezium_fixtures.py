"""Debezium's records: those of the golden files, which version 3.5.0 really wrote, and made ones of one row."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from schemas.record import Record

FOLDER = Path(__file__).parent.parent / "fixtures"
SCHEMALESS = FOLDER / "debezium-postgres-3.5.0-schemaless.txt"
WITH_SCHEMAS = FOLDER / "debezium-postgres-3.5.0-schemas-enabled.txt"

_REST = (
    '"},"source":{"version":"3.5.0.Final","connector":"postgresql","name":"dbz","ts_ms":1795459664287,'
    '"snapshot":"false","db":"postgres","sequence":"[null,\\"50848400\\"]","ts_us":1795459664287001,'
    '"schema":"public","table":"g","txId":781,"lsn":50848400},"transaction":null,"op":"c","ts_ms":1795459664593}'
)
"""Two lines were cut off by the recorder inside the 12,000 characters of column bg; this ends them again."""


def golden_records(path: Path) -> list[Record]:
    """In the order of the file; offsets count per topic."""
    records, offsets = [], dict[str, int]()
    for line in path.read_text().splitlines():
        if line.startswith("topics "):
            continue
        topic, _, rest = line.partition(" ")
        partition, rest = rest[:1], rest[1:].removeprefix(" K ")
        key_text, _, rest = rest.partition(" H ")
        headers_text, _, value_text = rest.partition(" V ")
        if value_text.endswith("..."):
            value_text = value_text[:-3] + _REST
        offset = offsets.get(topic, 0)
        offsets[topic] = offset + 1
        records.append(
            Record(
                topic=topic,
                partition=int(partition),
                offset=offset,
                key=ast.literal_eval(key_text),
                value=None if value_text == "None" else value_text.encode(),
                headers=tuple(ast.literal_eval(headers_text) or ()),
            )
        )
    return records


def with_schemas(row: dict[str, Any], fields: list[dict[str, Any]], **envelope: Any) -> Record:
    """A record with schemas around key and value, as JsonConverter writes it."""
    struct = {"type": "struct", "fields": fields, "name": "x.Value", "optional": True}
    schema = {
        "type": "struct",
        "name": "x.Envelope",
        "fields": [{**struct, "field": part} for part in ("before", "after")],
    }
    source = {"version": "3.5.0.Final", "connector": "postgresql", "name": "x", "schema": "p", "table": "t", "lsn": 7}
    payload = {"before": None, "after": row, "source": {**source, "ts_ms": 5}, "op": "c", **envelope}
    key = {
        "schema": {"type": "struct", "fields": [fields[0]]},
        "payload": {fields[0]["field"]: row[fields[0]["field"]]},
    }
    return Record("x.p.t", 0, 0, json.dumps(key).encode(), json.dumps({"schema": schema, "payload": payload}).encode())


def column(name: str, kind: str, semantic: str | None = None, **parameters: str) -> dict[str, Any]:
    """A field of a row's schema."""
    return {"field": name, "type": kind, "name": semantic, "parameters": parameters, "optional": True}


def plain(row: dict[str, Any], **source: Any) -> Record:
    """The same without schemas."""
    origin = {"version": "3.5.0.Final", "connector": "postgresql", "name": "x", "schema": "p", "table": "t", "lsn": 7}
    value = {"before": None, "after": row, "source": {**origin, "ts_ms": 5, **source}, "op": "c"}
    return Record("x.p.t", 0, 0, b'{"id":1}', json.dumps(value).encode())
