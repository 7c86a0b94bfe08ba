"""The Scylla source: finds where to begin or to go on in each log, and hands over what the readers of tables put out.

A position is {connector, keyspace, shard, snapshot, tables}: of each table how far its log has been read (progress.py),
and how far a snapshot of the tables is, null when there is none to do.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from connectors.cql.schema import TableSchema, read_table, tables_of
from connectors.cql.session import CqlSession, connect
from connectors.publisher import KafkaSettings
from connectors.scylla.config import LOG_SUFFIX, US, ScyllaConfig
from connectors.scylla.generations import Dialect, Generations, Told, log_ttl_s, read_dialect, read_log_options
from connectors.scylla.initial import InitialRows, RingRows
from connectors.scylla.log_reader import LogReader
from connectors.scylla.messages import no_log
from connectors.scylla.outbox import Item, Outbox
from connectors.scylla.positions import require_ours, require_readable
from connectors.scylla.progress import TableProgress, restored
from connectors.scylla.reader import TableReader
from connectors.scylla.sharing import OtherFloors
from connectors.scylla.windows import beginning, first_start, log_start
from connectors.source import Batch, LagReport, Position, ShowProgress, TableDescription
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable

BATCH_BYTES_MAX = 1 << 20


class ScyllaSource:
    """Implements Source, Topics, KeepingAll, UsingKafka, Lag, Discovering, Resetting and Progressing; see
    connectors/source.py for the contract."""

    def __init__(
        self, config: ScyllaConfig, initial_rows: InitialRows | None = None, clock: Clock | None = None
    ) -> None:
        self.config = config
        self.name = config.name
        self._clock = clock or SystemClock()
        self._initial_rows = initial_rows
        self._show: ShowProgress | None = None
        self._others: OtherFloors | None = None
        self._session: CqlSession | None = None
        self._outbox = Outbox(config.queue_bytes_max)
        self._tasks: list[asyncio.Task[None]] = []
        self._progress: dict[str, TableProgress] = {}
        self._snapshot: dict[str, Any] | None = None
        self._log_ttls: dict[str, int] = {}
        self._acknowledged = asyncio.Event()
        self._emitted: Position | None = None
        self._started = False

    # Source

    async def open(self, position: Position | None) -> None:
        self._session = session = await connect(self.config)
        dialect = await read_dialect(session, self.config)
        generations = Generations(session, self.config, dialect, self._clock)
        stored = position if position is not None and position.get("connector") == "scylla" else None
        if stored is not None:
            require_ours(self.config, stored)
        begun = stored is not None and all(table in stored["tables"] for table in self.config.tables)
        readers = [await self._reader(generations, dialect, table, stored) for table in self.config.tables]
        self._plan_snapshot(stored)
        if self._initial_rows is None:
            times = not dialect.scylla
            self._initial_rows = RingRows(self.config, self._clock, element_times=times, progress=self._show)
        task = asyncio.create_task(self._run(readers, fresh=not begun), name=f"scylla-{self.name}")
        task.add_done_callback(self._ended)
        self._tasks = [task]

    async def read(self) -> Batch:
        """What items make of the progress becomes true only here, in the order in which they were put."""
        while True:
            items = await self._outbox.take(BATCH_BYTES_MAX)
            records = [record for item in items for record in item.records]
            for item in items:
                if item.advance is not None:
                    item.advance()
            if not records and not any(item.steady for item in items):
                continue
            position = self._position()
            moved = position != self._emitted
            if moved or records:
                self._emitted = position
                newest_us = max(item.newest_us for item in items)
                return Batch(records, position if moved else None, sum(item.size for item in items), newest_us)

    async def acknowledge(self, position: Position) -> None:
        self._acknowledged.set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # `read` has raised what ended them
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # Topics, KeepingAll, UsingKafka, Progressing, Lag, Discovering, Resetting

    def table_topics(self) -> list[str]:
        return [self.config.topic(table) for table in self.config.tables]

    def other_topics(self) -> list[str]:
        return []

    def retention_ms(self) -> int:
        return self.config.retention_ms

    def use_kafka(self, kafka: KafkaSettings) -> None:
        """Where the other processes keep their positions. The first one follows them."""
        if self.config.shard.of > 1 and self.config.shard.number == 0:
            self._others = OtherFloors(self.config, kafka, self._clock)

    def show_progress(self, show: ShowProgress) -> None:
        self._show = show

    async def lag(self) -> LagReport:
        """The log is measured in time; no server counts its bytes. `state` tells the age of what was read last."""
        until = min((progress.until_us for progress in self._progress.values()), default=0)
        behind_s = max(0.0, (self._clock.now_us() - until) / US - self.config.confidence_window_s)
        return LagReport(0, 0, f"{behind_s:.1f} s behind the confidence window" if until else "not begun")

    async def discover(self) -> list[TableDescription]:
        session = await connect(self.config)
        try:
            names = set(await tables_of(session, self.config.keyspace))
            logged = sorted(name for name in names if name + LOG_SUFFIX in names)
            found = [await read_table(session, self.config.keyspace, name) for name in logged]
        finally:
            await session.close()
        return [_description(table) for table in found if table is not None]

    def reset_position(self) -> Position:
        """Read the log, and the tables where that is wanted, from the beginning."""
        return {"connector": "reset"}

    # the way of a source

    async def _run(self, readers: list[TableReader], *, fresh: bool) -> None:
        """The position is stored before the first change is given: whoever comes after a crash goes on from it, and
        hears of every delete since."""
        if fresh:
            await self._outbox.put(Item([], 0, steady=True))
            await self._acknowledged.wait()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_tables(), name=f"scylla-{self.name}-snapshot")
                if self._others is not None:
                    tasks.create_task(self._others.follow(), name=f"scylla-{self.name}-others")
                for reader in readers:
                    tasks.create_task(reader.run(), name=f"scylla-{reader.table}")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the others were ended by it

    def _ended(self, task: asyncio.Task[None]) -> None:
        """`read` raises it: a task that ends silently would leave the source waiting for ever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._outbox.fail(error)

    def _plan_snapshot(self, stored: Position | None) -> None:
        """Tables that were not captured until now are read from the beginning, by the first of several processes."""
        plan = stored.get("snapshot") if stored is not None else None
        known = stored["tables"] if stored is not None else {}
        new = [table for table in self.config.tables if table not in known]
        if self.config.snapshot == "initial" and new and self.config.shard.number == 0:
            tables = [*(plan["tables"] if plan else []), *new]
            plan = {"tables": tables, "progress": {}}
        self._snapshot = plan

    async def _read_tables(self) -> None:
        plan, session = self._snapshot, self._session
        if plan is None:
            return
        assert session is not None and self._initial_rows is not None
        tables = [table for table in plan["tables"] if table in self.config.tables]
        async for step in self._initial_rows.steps(session, tables, plan["progress"]):
            size = sum([len(record.value or b"") for record in step.records])
            reached = {"tables": tables, "progress": step.progress}
            await self._outbox.put(Item(step.records, size, partial(self._set_snapshot, reached), steady=True))
        await self._outbox.put(Item([], 0, partial(self._set_snapshot, None), steady=True))

    def _complete(self) -> bool:
        """Whether the snapshot has been handed over; until then nobody can say what has been published."""
        return self._snapshot is None

    def _set_snapshot(self, plan: dict[str, Any] | None) -> None:
        self._snapshot = plan

    async def _reader(
        self, generations: Generations, dialect: Dialect, table: str, stored: Position | None
    ) -> TableReader:
        assert self._session is not None
        schema = await read_table(self._session, self.config.keyspace, table)
        if schema is None:
            raise EnvironmentProblem(f"{self._session.where} has no table {self.config.keyspace}.{table}, or hides it.")
        told = await generations.told(table)
        ttl_s = log_ttl_s(self.config, await read_log_options(self._session, self.config, table, dialect))
        progress = self._progress[table] = self._start(told, ttl_s, table, stored)
        bypass = dialect.scylla and self.config.bypass_cache == "auto"
        reader = LogReader(self._session, self.config, schema, bypass_cache=bypass)
        return TableReader(
            self.config,
            reader,
            generations,
            progress,
            self._outbox,
            self._clock,
            ttl_s,
            others=self._others.floor if self._others is not None else None,
            complete=self._complete,
        )

    def _start(self, told: Told, ttl_s: int, table: str, stored: Position | None) -> TableProgress:
        """Where reading goes on, or begins: as far back as the log reaches, or just before a snapshot."""
        if told.log_id is None:
            raise EnvironmentProblem(no_log(self.config, table))
        if stored is not None and table in stored["tables"]:
            progress = restored(stored["tables"][table])
            require_readable(self.config, table, progress, told, log_start(told.seen_us, ttl_s))
            return progress
        begin_us = beginning(told.seen_us, ttl_s)
        if self.config.snapshot == "initial":
            # What a snapshot reads was written before the confidence window, or its change is still to be read.
            begin_us = max(begin_us, told.seen_us - 2 * self.config.confidence_us)
        start = first_start(begin_us, told.generations_ms)
        if start is None:
            where = self.config.where()
            raise Retryable(f"{where} has no CDC generation yet; the first comes about a minute after it started.")
        return TableProgress(told.log_id, start.generation_ms, start.until_us)

    def _position(self) -> Position:
        return {
            "connector": "scylla",
            "keyspace": self.config.keyspace,
            "shard": [self.config.shard.number, self.config.shard.of],
            "snapshot": self._snapshot,
            "tables": {table: progress.stored() for table, progress in self._progress.items()},
        }


def _description(table: TableSchema) -> TableDescription:
    columns = {column.name: column.declared for column in table.columns if column.kind != "static"}
    return TableDescription(f"{table.keyspace}.{table.table}", columns, [column.name for column in table.key])
