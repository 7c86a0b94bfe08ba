"""Cassandra as a connector that the registry finds: the source with everything that is told of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.cassandra import node as nodes
from connectors.cassandra.checks import check_cassandra
from connectors.cassandra.config import CassandraConfig
from connectors.cassandra.node_watch import NodeWatch
from connectors.cassandra.source import CassandraSource, require_same, reset_position
from connectors.cql.schema import captured_columns
from connectors.cql.session import connect
from connectors.registry import Plugin
from connectors.source import Finding, Position, StoredPosition
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError


class PluggedCassandra(CassandraSource):
    """Adds what is asked beside the stream: Checking, PositionChecking, Describing, Resetting, Watched."""

    def reset_position(self) -> Position:
        return reset_position()

    async def check(self) -> list[Finding]:
        return await check_cassandra(self.config)

    async def check_position(self, position: Position | None) -> list[Finding]:
        if position is None:
            return [Finding("ok", "position", "none is stored: `ctxpipe connect` reads all rows")]
        if position.get("reset"):
            return [Finding("ok", "position", "`ctxpipe connect` reads all rows again")]
        session = await connect(self.config)
        try:
            require_same(self.config, position, await nodes.read_tables(session, self.config))
        except CtxpipeError as error:
            return [Finding("unfit", "position", str(error))]
        finally:
            await session.close()
        left = ", ".join(sorted(position["left"]))
        return [Finding("ok", "position", f"the snapshot goes on ({left})" if left else "the snapshot is complete")]

    async def describe(self, tables: Sequence[str]) -> dict[str, list[str] | None]:
        session = await connect(self.config)
        try:
            return await captured_columns(session, self.config.keyspace, tables)
        finally:
            await session.close()

    def watch(self, stored: StoredPosition | None, clock: Clock) -> NodeWatch:
        return NodeWatch(self.config, clock)


PLUGIN = Plugin(
    name="cassandra",
    summary="Tables of Cassandra: a snapshot by token ranges, then every change from the node's commit log (Debezium).",
    config=CassandraConfig,
    source=PluggedCassandra,
)
