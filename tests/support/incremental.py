"""Bundles as the pipeline makes them from changes, for comparison with what SQL says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from random import Random
from typing import Any

from pipeline.flow import Flow
from pipeline.plan import compile_plan
from pipeline.stores.memory import MemoryBundles, MemoryRelations, MemoryRows
from schemas.context import ContextSpec
from schemas.record import Record
from tests.simulation.compare import composed

Row = Mapping[str, Any]


async def incremental_bundles(spec: ContextSpec, tables: Mapping[str, Sequence[Row]], seed: int = 0) -> dict[str, Any]:
    """Root key text → bundle. `tables`: `schema.table` → rows, which arrive one by one in an order drawn by `seed`."""
    plan, bundles = compile_plan(spec), MemoryBundles()
    flow = Flow(plan, MemoryRows(), MemoryRelations(), bundles)
    events = [(table, row) for table in plan.tables.values() for row in tables[table.table]]
    Random(seed).shuffle(events)
    for number, (table, row) in enumerate(events, 1):
        key = {column: row[column] for column in table.key_columns}
        report = await flow.process([_record(table.source, table.table, key, row, number)])
        assert not report.dead_letters, report.dead_letters[0].reason
    stored = {unit.key: value for unit, value in bundles.values.items() if not unit.unit and not value.deleted}
    return {
        key: json.loads(composed(plan, bundles, value), parse_float=Decimal) for key, value in sorted(stored.items())
    }


def _record(source: str, table: str, key: Row, row: Row, lsn: int) -> Record:
    schema, name = table.split(".")
    origin = {"version": "ctxpipe-test", "connector": "postgresql", "name": source, "schema": schema, "table": name}
    origin |= {"ts_us": lsn, "lsn": lsn, "sequence": f'["{lsn}","{lsn}"]'}
    value = {"before": None, "after": row, "source": origin, "op": "c", "ts_ms": 1}
    return Record(f"{source}.{table}", 0, lsn, json.dumps(key).encode(), json.dumps(value).encode())
