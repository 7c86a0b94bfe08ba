"""Scylla as a connector that the registry finds: the source with everything that is told of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.cql.schema import captured_columns
from connectors.cql.session import connect
from connectors.registry import Plugin
from connectors.scylla.checks import check_position, check_scylla
from connectors.scylla.config import ScyllaConfig
from connectors.scylla.log_watch import LogWatch
from connectors.scylla.source import ScyllaSource
from connectors.source import Finding, Position, StoredPosition
from pipeline.core.clock import Clock


class PluggedScylla(ScyllaSource):
    """Adds what is asked beside the stream: Checking, PositionChecking, Describing, Watched."""

    async def check(self) -> list[Finding]:
        return await check_scylla(self.config, self._clock)

    async def check_position(self, position: Position | None) -> list[Finding]:
        return await check_position(self.config, position)

    async def describe(self, tables: Sequence[str]) -> dict[str, list[str] | None]:
        session = await connect(self.config)
        try:
            return await captured_columns(session, self.config.keyspace, tables)
        finally:
            await session.close()

    def watch(self, stored: StoredPosition | None, clock: Clock) -> LogWatch:
        return LogWatch(self.config, stored, clock)


PLUGIN = Plugin(
    name="scylla",
    summary="Tables of Scylla with CDC: every change from their log tables; a snapshot beside it.",
    config=ScyllaConfig,
    source=PluggedScylla,
)
