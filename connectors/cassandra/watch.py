"""What a running Cassandra source keeps an eye on: the schema, other tables with a change log, cdc_raw, requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from connectors.cassandra import node as nodes
from connectors.cassandra.companion import Companion
from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.heartbeat import Heartbeat
from connectors.cql.errors import Undefined
from connectors.cql.schema import fingerprint, read_table
from connectors.cql.session import CqlSession
from connectors.publisher import KafkaSettings, ensure_topics
from pipeline.core.clock import Clock
from pipeline.core.errors import EnvironmentProblem, Retryable

log = logging.getLogger(__name__)

FOREIGN_RETENTION_MS = 3600 * 1000


class SnapshotRequests:
    """Tables that `ctxpipe connect --snapshot` asks the running process to read again: a file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "snapshot-requests"
        self._seen: list[Path] = []

    def put(self, table: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / table).touch()

    def wanted(self, tables: Sequence[str]) -> list[str]:
        """Those that there are. They stay until `taken`, so that a process which is killed meanwhile finds them."""
        self._seen = sorted(self._directory.glob("*")) if self._directory.is_dir() else []
        return [path.name for path in self._seen if path.name in tables]

    def taken(self) -> None:
        for path in self._seen:
            path.unlink(missing_ok=True)


class Watch:
    """`prepare` once before the sidecar starts, then `run` beside it. Raises what ends the source."""

    def __init__(
        self,
        config: CassandraConfig,
        session: CqlSession,
        kafka: KafkaSettings,
        companion: Companion,
        clock: Clock,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._config = config
        self._session = session
        self._kafka = kafka
        self._companion = companion
        self._clock = clock
        self._heartbeat = heartbeat
        self._schema: frozenset[tuple[str, ...]] = frozenset()
        self._foreign: set[str] = set()
        self._away = False

    async def prepare(self) -> None:
        """The sidecar sends the changes of every table with a change log: topics for those that are not ours, too."""
        self._schema = await self._fingerprint()
        await self._look_at_others(await nodes.cdc_tables(self._session, self._config.keyspace))

    async def run(self) -> None:
        while True:
            await self._clock.sleep(self._config.watch_interval_s)
            began_s = self._clock.monotonic_s()
            await asyncio.to_thread(self._companion.look)
            try:
                await self._look_at_schema()
                if self._heartbeat is not None:
                    await self._heartbeat.looked(began_s)
            except Undefined as error:
                log.debug("a table is just being made or dropped: %s", error)  # the next look tells
            except Retryable as error:
                if not self._away:
                    log.warning("%s The sidecar goes on reading what is on disk.", error)
                self._away = True
            else:
                self._away = False

    async def _look_at_schema(self) -> None:
        schema = await self._fingerprint()
        if schema != self._schema:
            await self._require_tables()
            self._session.forget()
            # changes of the new schema that it met before it knew of that are read again, while they are in cdc_raw
            if self._companion.sidecar is not None:
                self._companion.sidecar.restart("the schema changed")
            self._schema = schema
        captured = await nodes.cdc_tables(self._session, self._config.keyspace)
        await self._look_at_others(captured)
        off = [name for name in self._config.table_names if name not in captured]
        if off:
            await self._require_tables()
            mend = " ".join(nodes.enable_cdc(self._config.keyspace, name) for name in off)
            raise EnvironmentProblem(
                f"The change log (CDC) of {', '.join(map(self._config.qualified, off))} was switched off: changes "
                f"since then are not captured. Mend: {mend} and then: ctxpipe connect {self._config.name} --reset"
            )

    async def _require_tables(self) -> None:
        for name in self._config.table_names:
            table = await read_table(self._session, self._config.keyspace, name)
            if table is None:
                said = await nodes.missing(self._session, self._config.keyspace, name)
                raise EnvironmentProblem(f"{said} It was dropped while it was captured.")
            nodes.require_unbroken(table)
            known = {entry[2] for entry in self._schema if entry[:2] == (name, "id")}
            if table.id not in known:
                raise Retryable(f"{self._config.qualified(name)} was made anew.")

    async def _look_at_others(self, captured: Sequence[str]) -> None:
        new = set(captured) - {*self._config.table_names, self._config.heartbeat_name} - self._foreign
        for name in sorted(new):
            table = await read_table(self._session, self._config.keyspace, name)
            if table is not None:
                nodes.require_unbroken(table)
        if new:
            topics = sorted(map(self._config.topic, new))
            await ensure_topics(self._kafka, topics, {"retention.ms": str(FOREIGN_RETENTION_MS)})
            log.info("the sidecar also sends the changes of %s, which have a change log", ", ".join(topics))
            self._foreign |= new

    async def _fingerprint(self) -> frozenset[tuple[str, ...]]:
        return await fingerprint(self._session, self._config.keyspace, self._config.table_names)
