"""A table of a real Cassandra with a log as Scylla keeps it, for tests of the Scylla source."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from connectors.cql.schema import TableSchema, read_table
from connectors.cql.session import CqlSession
from connectors.cql.times import timeuuid_order
from connectors.scylla.config import ScyllaConfig
from connectors.scylla.log_statements import Write
from connectors.scylla.log_tables import (
    Generation,
    create_log,
    create_metadata,
    new_generation,
    tell_tablets,
    tell_vnodes,
)
from connectors.scylla.log_writer import LogOptions, LogWriter
from connectors.scylla.source import ScyllaSource
from connectors.source import Batch, Position, Source, SourceRecord
from deploy.local.cassandra import CassandraServer
from deploy.local.processes import HOST
from pipeline.cells import EMPTY, RowState, Tombstone, exists, expired, merged, newest_cover, values_of
from schemas.envelope import decode_record
from schemas.mutation import Mutation
from schemas.record import Record
from tests.support.cassandra import PATIENT, cql_session, fresh_keyspace

CONFIDENCE_S = 0.4


def now_us() -> int:
    return time.time_ns() // 1000


class ScyllaTable:
    """Made by `scylla_table`. `writer` writes table and log; `config` reads them."""

    def __init__(self, session: CqlSession, config: ScyllaConfig, table: TableSchema, seed: int) -> None:
        self.session = session
        self.config = config
        self.table = table
        self.generations: list[Generation] = []
        self.ring = (4, 2)
        """Vnodes, and streams in each."""
        self._random = random.Random(seed)
        self.writer = LogWriter(session, table, self.generations, randomness=self._random)

    @property
    def name(self) -> str:
        return f"{self.table.keyspace}.{self.table.table}"

    def use(self, **options: Any) -> None:
        """Other options of the log."""
        self.writer = LogWriter(self.session, self.table, self.generations, LogOptions(**options), self._random)

    async def look_again(self) -> None:
        """After ALTER TABLE."""
        table = await read_table(self.session, self.table.keyspace, self.table.table)
        assert table is not None
        self.table = self.writer.table = table

    async def generation(self, time_ms: int) -> Generation:
        """A new one, told as the server tells it."""
        made = new_generation(time_ms, *self.ring, self._random)
        before = (
            [stream for _, streams in self.generations[-1].vnodes for stream in streams] if self.generations else []
        )
        if self.config.generations == "tablets":
            table = self.table
            await tell_tablets(self.session, self.config.metadata, table.keyspace, table.table, made, before)
        else:
            await tell_vnodes(self.session, self.config.metadata, made)
        self.generations.append(made)
        return made

    def configured(self, **settings: Any) -> ScyllaConfig:
        return ScyllaConfig.model_validate({**self.config.model_dump(), **settings})

    def source(self, **settings: Any) -> ScyllaSource:
        return ScyllaSource(self.configured(**settings))

    async def rows(self) -> dict[str, dict[str, Any]]:
        """What CQL says: key as JSON → row, without static columns."""
        found = (await self.session.rows(f"SELECT * FROM {self.name}")).dicts()
        static = {column.name for column in self.table.columns if column.kind == "static"}
        key = [column.name for column in self.table.key]
        rows = [{name: value for name, value in row.items() if name not in static} for row in found]
        for column in self.table.columns:
            if column.multi_cell and column.type.name == "udt":
                for row in rows:  # fields that are null are left out by merging, and shown by CQL
                    fields = row[column.name] or {}
                    row[column.name] = {name: value for name, value in fields.items() if value is not None} or None
        return {_text([row[name] for name in key]): row for row in rows if all(row[name] is not None for name in key)}

    def folded(self, records: Iterable[SourceRecord]) -> dict[str, dict[str, Any]]:
        """What the records say, merged as the pipeline merges them."""
        return fold(self.table, records)


@asynccontextmanager
async def scylla_table(
    server: CassandraServer,
    columns: str,
    *,
    seed: int = 1,
    before_ddl: str = "",
    options: str = "",
    login: Mapping[str, str] | None = None,
    ring: tuple[int, int] = (4, 2),
    **settings: Any,
) -> AsyncIterator[ScyllaTable]:
    """`columns` as in CREATE TABLE t (…); the log of the first generation is an hour old."""
    async with cql_session(server, **(login or {})) as session, fresh_keyspace(session) as keyspace:
        if before_ddl:
            await session.execute(before_ddl.format(keyspace=keyspace))
        await session.execute(f"CREATE TABLE {keyspace}.t ({columns}) {options}")
        table = await read_table(session, keyspace, "t")
        assert table is not None
        config = ScyllaConfig.model_validate(
            {
                "name": "src",
                "hosts": [HOST],
                "port": server.port,
                "keyspace": keyspace,
                "tables": ["t"],
                "confidence_window_s": CONFIDENCE_S,
                "heartbeat_interval_s": 0.1,
                "pause_s": 0.02,
                "idle_pause_s": 0.02,
                "snapshot": "never",
                **PATIENT,
                "metadata": {"keyspace": keyspace, "tablets_keyspace": keyspace},
                # the log begins an hour ago, so that what a test wrote long ago is read in few windows
                "log_ttl_s": 3600,
                "window_s": 3600,
                **settings,
            }
        )
        await create_metadata(session, config.metadata)
        await create_log(session, table)
        made = ScyllaTable(session, config, table, seed)
        made.ring = ring
        await made.generation((now_us() // 1000) - 7_200_000)
        yield made


async def read_until(source: Source, write: Write, limit_s: float = 30) -> list[Batch]:
    """Batches up to the heartbeat that says: everything up to this write has been published."""
    batches = []
    async with asyncio.timeout(limit_s):
        while True:
            batch = await source.read()
            if batch.position is not None:
                await source.acknowledge(batch.position)
            batches.append(batch)
            if beaten(batch.records) >= write.ts:
                return batches


def beaten(records: Iterable[SourceRecord]) -> int:
    """What the newest heartbeat promises."""
    events = [msgspec.json.decode(record.value or b"{}") for record in records]
    return max((event["source"]["ts_us"] for event in events if event.get("op") == "m"), default=0)


def records_of(batches: Iterable[Batch]) -> list[SourceRecord]:
    return [record for batch in batches for record in batch.records]


def changes(records: Iterable[SourceRecord]) -> list[dict[str, Any]]:
    """The envelopes, without heartbeats."""
    events = [msgspec.json.decode(record.value or b"{}") for record in records]
    return [event for event in events if event.get("op") != "m"]


def position_order(position: Position) -> tuple[int, ...]:
    """The greater one is further, of a source with one table."""
    table = position["tables"]["t"]
    streams = [timeuuid_order(bytes.fromhex(last)) for last in table["partial"].values()]
    snapshot = position["snapshot"]
    progress = snapshot["progress"] if snapshot else {}
    left = progress.get("left", {}).get("t", [])
    return (
        table["until_us"],
        table["generation_ms"],
        sum(table["ahead"].values()),
        sum((time << 64) + int.from_bytes(low, "big") for time, low in streams),
        2 if not snapshot else 1 if progress else 0,
        -sum(last - first + 1 for first, last in left),
    )


def last_position(batches: Iterable[Batch]) -> Position:
    return [batch.position for batch in batches if batch.position is not None][-1]


def fold(table: TableSchema, records: Iterable[SourceRecord]) -> dict[str, dict[str, Any]]:
    """Rows by key, as of now, merged per cell."""
    partition_key = [column.name for column in table.partition_key]
    clustering = [column.name for column in table.clustering]
    columns = [column.name for column in table.columns if column.kind != "static"]
    states: dict[str, tuple[dict[str, Any], RowState]] = {}
    stones: dict[str, list[Tombstone]] = {}
    for record in records:
        event = decode_record(Record(record.topic, 0, 0, record.key, record.value))
        if event is None or event.mutation is None:
            continue
        mutation, key = event.mutation, event.key
        if mutation.scope == "row":
            text = _text([key[name] for name in (*partition_key, *clustering)])
            blank = msgspec.structs.replace(EMPTY, key=tuple(key[name] for name in (*partition_key, *clustering)))
            state = states.get(text, (key, blank))[1]
            states[text] = (key, merged(state, mutation, frozenset(columns)))
        else:
            stone = Tombstone(mutation.deleted or 0, mutation.lower, mutation.upper)
            stones.setdefault(_text([key[name] for name in partition_key]), []).append(stone)
    rows = {}
    for text, (key, state) in states.items():
        covering = stones.get(_text([key[name] for name in partition_key]), [])
        gone = newest_cover(covering, [key[name] for name in clustering], [None] * len(clustering))
        if gone is not None:
            state = merged(state, Mutation(deleted=gone), frozenset(columns))
        state = expired(state, now_us())
        if exists(state):
            rows[text] = dict(zip(columns, values_of(state, columns), strict=True))
    return rows


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
