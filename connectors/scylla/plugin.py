"""Scylla as a connector that the registry finds: the source with everything that is told of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.cql.schema import read_table
from connectors.cql.session import connect
from connectors.registry import Plugin
from connectors.scylla.checks import check_position, check_scylla
from connectors.scylla.config import ScyllaConfig
from connectors.scylla.source import ScyllaSource
from connectors.source import Finding, Position


class PluggedScylla(ScyllaSource):
    """Adds what is asked beside the stream: Checking, PositionChecking, Describing."""

    async def check(self) -> list[Finding]:
        return await check_scylla(self.config, self._clock)

    async def check_position(self, position: Position | None) -> list[Finding]:
        return await check_position(self.config, position)

    async def describe(self, tables: Sequence[str]) -> dict[str, list[str] | None]:
        session = await connect(self.config)
        found: dict[str, list[str] | None] = {}
        try:
            for name in tables:
                keyspace, _, plain = name.rpartition(".")
                table = await read_table(session, keyspace or self.config.keyspace, plain)
                captured = [column.name for column in table.columns if column.kind != "static"] if table else None
                found[name] = captured
        finally:
            await session.close()
        return found


PLUGIN = Plugin(
    name="scylla",
    summary="Tables of Scylla with CDC: every change from their log tables; a snapshot beside it.",
    config=ScyllaConfig,
    source=PluggedScylla,
)
