"""A Cassandra source with its sidecar for tests: run as `ctxpipe connect` runs it, and what came out merged to rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from connectors.assembly import attempts
from connectors.cassandra.plugin import PLUGIN
from connectors.cql.session import CqlSession
from connectors.publisher import KafkaSettings
from connectors.registry import Configured, configure_one
from connectors.runtime import Runtime, RuntimeSettings
from connectors.source import ShowProgress
from deploy.local.cassandra import CassandraServer
from deploy.local.processes import HOST
from pipeline import cells
from schemas.envelope import decode_record
from schemas.record import Record
from tests.support.cassandra import PATIENT
from tests.support.kafka_records import read_all

Rows = dict[str, dict[str, Any]]


def configured(
    server: CassandraServer, name: str, keyspace: str, tables: Sequence[str], directory: Path, **settings: Any
) -> Configured:
    """`sidecar` None leaves it out; a mapping adds to its section."""
    sidecar = settings.pop("sidecar", {})
    section = {
        "connector": "cassandra",
        "hosts": [HOST],
        "port": server.port,
        "keyspace": keyspace,
        "tables": list(tables),
        "data_directory": str(directory),
        "consistency": "ONE",
        "snapshot_ranges": 8,
        **PATIENT,
        "watch_interval_s": 0.3,
        **settings,
    }
    if sidecar is not None:
        own = {"cassandra_yaml": str(server.config_file), "heap_mib": 256, "poll_interval_ms": 100}
        section["sidecar"] = {**own, "restart_delay_s": 0.2, **sidecar}
    return configure_one(PLUGIN, name, section)


@asynccontextmanager
async def running(
    source: Configured, bootstrap: str, progress: ShowProgress | None = None
) -> AsyncIterator[tuple[Runtime, asyncio.Task[None]]]:
    """Its connector, until the end of the block; what the connector raises is the block's to look at."""
    kafka = KafkaSettings(bootstrap_servers=bootstrap, partitions=3)
    runtime = Runtime(attempts(source, kafka, progress), RuntimeSettings(patient_start=False))
    task = asyncio.create_task(runtime.run())
    try:
        yield runtime, task
    finally:
        runtime.stop()
        await asyncio.gather(task, return_exceptions=True)


def sidecar_of(runtime: Runtime) -> Any:
    """The sidecar of the source that runs now, None before it starts."""
    companion = getattr(runtime.source, "_companion", None)
    return companion.sidecar if companion is not None else None


async def mutations(bootstrap: str, source: Configured) -> list[Any]:
    """Everything on the topics, decoded; heartbeats left out."""
    events = [
        decode_record(Record(found.topic, found.partition, found.offset, found.key, found.value))
        for found in await read_all(bootstrap, source.topics())
    ]
    return [event for event in events if event is not None and event.mutation is not None]


async def merged_rows(bootstrap: str, source: Configured, columns: Sequence[str]) -> Rows:
    """The rows that all of it makes, by the key's JSON, with these columns."""
    return merge(await mutations(bootstrap, source), columns)


def merge(events: Iterable[Any], columns: Sequence[str]) -> Rows:
    """The rows that these events make, in whatever order they come."""
    states: dict[str, tuple[dict[str, Any], cells.RowState]] = {}
    deletions: list[tuple[dict[str, Any], Any]] = []
    listed = frozenset(columns)
    for event in events:
        if event.mutation.scope != "row":
            deletions.append((event.key, event.mutation))
            continue
        text = json.dumps(event.key)
        _, state = states.get(text, (event.key, cells.EMPTY))
        states[text] = (event.key, cells.merged(state, event.mutation, listed))
    found = {}
    for text, (key, state) in states.items():
        for open_key, mutation in deletions:
            if _covers(open_key, mutation, key):
                state = cells.merged(state, mutation, listed)
        if cells.exists(state):
            found[text] = {name: key[name] if name in key else _value(state, name) for name in columns}
    return found


def _value(state: cells.RowState, column: str) -> Any:
    cell = state.cells.get(column)
    return None if cell is None else cell.value


async def table_rows(session: CqlSession, table: str, columns: Sequence[str], key: Sequence[str]) -> Rows:
    """What Cassandra itself says."""
    rows = (await session.rows(f"SELECT {', '.join(columns)} FROM {table}")).dicts()
    return {json.dumps({name: row[name] for name in key}): row for row in rows}


def _covers(open_key: dict[str, Any], mutation: Any, key: dict[str, Any]) -> bool:
    fixed = {name: value for name, value in open_key.items() if value is not None}
    if any(key[name] != value for name, value in fixed.items()):
        return False
    clustering = [key[name] for name, value in open_key.items() if value is None]
    stone = cells.Tombstone(mutation.deleted, mutation.lower, mutation.upper)
    return cells.covers(stone, clustering, [None] * len(clustering))
