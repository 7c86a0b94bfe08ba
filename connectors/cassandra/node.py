"""What a Cassandra source asks of the node and its schema before it runs and while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import msgspec

from connectors.cassandra.config import CassandraConfig
from connectors.cql.schema import TableSchema, full_name, read_table, tables_of
from connectors.cql.session import CqlSession
from pipeline.core.errors import EnvironmentProblem

PARTITIONER = "org.apache.cassandra.dht.Murmur3Partitioner"
ELEMENT_TIMES_MAJOR = 5
"""Since when WRITETIME tells the times of a collection's elements."""


class Node(msgspec.Struct, frozen=True):
    """The node that answered."""

    cluster: str
    version: str
    datacenter: str
    partitioner: str
    identity: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


async def read_node(session: CqlSession) -> Node:
    row = (await session.rows(_LOCAL, consistency="LOCAL_ONE")).dicts()[0]
    return Node(row["cluster_name"], row["release_version"], row["data_center"], row["partitioner"], row["host_id"])


async def cdc_tables(session: CqlSession) -> list[tuple[str, str]]:
    """(keyspace, table) of every table whose changes the node keeps, in order."""
    rows = (await session.rows(_CDC, consistency="LOCAL_ONE")).dicts()
    return sorted((row["keyspace_name"], row["table_name"]) for row in rows if row["cdc"])


async def read_tables(session: CqlSession, config: CassandraConfig) -> dict[str, TableSchema]:
    """The captured tables by name. Raises EnvironmentProblem for one that is not there."""
    found = {}
    for name in config.table_names:
        table = await read_table(session, config.keyspace, name)
        if table is None:
            raise EnvironmentProblem(await missing(session, config.keyspace, name))
        found[name] = table
    return found


async def missing(session: CqlSession, keyspace: str, table: str) -> str:
    """Says that it is missing, and what may have been meant."""
    keyspaces = (await session.rows(_KEYSPACES, consistency="LOCAL_ONE")).dicts()
    names = [row["keyspace_name"] for row in keyspaces]
    if keyspace not in names:
        return f"There is no keyspace {keyspace} at {session.where}. {_meant(keyspace, names)}"
    return (
        f"There is no table {keyspace}.{table} at {session.where}. {_meant(table, await tables_of(session, keyspace))}"
    )


def enable_cdc(keyspace: str, table: str) -> str:
    return f"ALTER TABLE {full_name(keyspace, table)} WITH cdc = true;"


def breaking_columns(table: TableSchema) -> list[str]:
    """At a write into one of these the sidecar gives up the rest of the commit-log segment, other tables' changes too:
    user-defined types that are not frozen."""
    return [column.name for column in table.columns if column.multi_cell and column.type.name == "udt"]


def blurred_columns(table: TableSchema) -> list[str]:
    """The sidecar tells elements of these without whether they were added, removed or are all."""
    return [column.name for column in table.columns if column.multi_cell and column.type.name != "udt"]


def counters(table: TableSchema) -> list[str]:
    return [column.name for column in table.columns if column.type.name == "counter"]


def statics(table: TableSchema) -> list[str]:
    return [column.name for column in table.columns if column.kind == "static"]


def require_readable(tables: Iterable[TableSchema], node: Node) -> None:
    """Raises EnvironmentProblem for what no snapshot can read."""
    if node.partitioner != PARTITIONER:
        raise EnvironmentProblem(
            f"The cluster {node.cluster} has the partitioner {node.partitioner}; the snapshot reads only rings of "
            f"{PARTITIONER}."
        )
    for table in tables:
        if counters(table):
            raise EnvironmentProblem(
                f"{table.keyspace}.{table.table} counts ({', '.join(counters(table))}): counters have no write times "
                "and no change log. Take it out of tables."
            )


def require_captured(tables: Sequence[TableSchema], captured: Sequence[tuple[str, str]]) -> None:
    """Raises EnvironmentProblem where the change log of a table would be missing, or would stop the sidecar."""
    off = [one for one in tables if (one.keyspace, one.table) not in captured]
    if off:
        names = ", ".join(f"{one.keyspace}.{one.table}" for one in off)
        mend = " ".join(enable_cdc(one.keyspace, one.table) for one in off)
        raise EnvironmentProblem(f"The node keeps no change log (CDC) of {names}. Mend: {mend}")
    for table in tables:
        require_unbroken(table)


def require_unbroken(table: TableSchema) -> None:
    columns = breaking_columns(table)
    if columns:
        raise EnvironmentProblem(
            f"{table.keyspace}.{table.table} has user-defined types that are not frozen ({', '.join(columns)}); "
            "Debezium's connector gives up a commit-log segment at the first write into one. Use frozen<…> for them "
            f"(a new column), or: ALTER TABLE {full_name(table.keyspace, table.table)} WITH cdc = false;"
        )


def _meant(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, 1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"There are: {', '.join([*names[:10]]) or 'none'}. Create it, or mend the source."


_LOCAL = "SELECT cluster_name, release_version, data_center, partitioner, host_id FROM system.local"
_CDC = "SELECT keyspace_name, table_name, cdc FROM system_schema.tables"
_KEYSPACES = "SELECT keyspace_name FROM system_schema.keyspaces"
