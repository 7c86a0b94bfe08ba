"""What a Cassandra source asks of the node and its schema before it runs and while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import msgspec

from connectors.cassandra.config import CassandraConfig
from connectors.cql.schema import TableSchema, full_name, read_table, tables_of
from connectors.cql.session import CqlSession
from connectors.cql.values import CqlType
from pipeline.core.errors import EnvironmentProblem

UNPARSABLE = (
    "The driver inside Debezium's connector does not know vectors, and at one of them forgets every table of the "
    "keyspace {keyspace}: {names}. Keep tables with vectors in a keyspace of their own."
)
SEVERAL = "The cluster has {count} nodes, each with a log of its own; heartbeats speak only for a cluster of one node."
_VECTOR = "vector<"
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


async def cdc_tables(session: CqlSession, keyspace: str) -> list[str]:
    """The tables of the keyspace whose changes the node keeps, in order. The sidecar sends those of all of them."""
    rows = (await session.rows(_CDC, (keyspace,), consistency="LOCAL_ONE")).dicts()
    return sorted(row["table_name"] for row in rows if row["cdc"])


async def unparsable(session: CqlSession, keyspace: str) -> list[str]:
    """Columns and fields anywhere in the keyspace at whose type the sidecar's driver gives the whole schema up."""
    columns = (await session.rows(_COLUMNS, (keyspace,), consistency="LOCAL_ONE")).dicts()
    types = (await session.rows(_TYPES, (keyspace,), consistency="LOCAL_ONE")).dicts()
    found = [f"{row['table_name']}.{row['column_name']}" for row in columns if _VECTOR in row["type"]]
    return sorted(found + [f"{row['type_name']}" for row in types if any(_VECTOR in one for one in row["field_types"])])


async def require_parsable(session: CqlSession, keyspace: str) -> None:
    """Raises EnvironmentProblem for what `unparsable` finds."""
    found = await unparsable(session, keyspace)
    if found:
        raise EnvironmentProblem(UNPARSABLE.format(names=", ".join(found), keyspace=keyspace))


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
    """Statements. Cassandra goes on with statements that applications prepared before as if there were no change log,
    and says nothing, until a column comes or goes."""
    name = full_name(keyspace, table)
    spare = f"ALTER TABLE {name} ADD {_SPARE} int; ALTER TABLE {name} DROP {_SPARE};"
    return f"ALTER TABLE {name} WITH cdc = true; {spare}"


def breaking_columns(table: TableSchema) -> list[str]:
    """At a write into one of these the sidecar gives up the rest of the commit-log segment, other tables' changes too:
    user-defined types that are not frozen, and collections in collections of which it converts only the outer one."""
    return [
        f"{column.name} {column.declared}"
        for column in table.columns
        if (column.multi_cell and column.type.name == "udt") or not _sendable(column.type)
    ]


def garbled_columns(table: TableSchema) -> list[str]:
    """A blob inside of another value is sent with bytes of its neighbours."""
    return [column.name for column in table.columns if column.type.name != "blob" and _holds_blob(column.type)]


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


def require_captured(tables: Sequence[TableSchema], captured: Sequence[str]) -> None:
    """Raises EnvironmentProblem where the change log of a table would be missing, or would stop the sidecar."""
    off = [one for one in tables if one.table not in captured]
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
            f"{table.keyspace}.{table.table} has columns of types that Debezium's connector can't send "
            f"({', '.join(columns)}); at the first write into one it would give up a commit-log segment. "
            + mend_breaking(table)
        )


def mend_breaking(table: TableSchema) -> str:
    return (
        f"ALTER TABLE {full_name(table.keyspace, table.table)} WITH cdc = false; -- or give the columns another type: "
        "user-defined types frozen, no collection directly in a collection"
    )


def _sendable(kind: CqlType) -> bool:
    inner = kind.parameters
    if kind.name in _COLLECTIONS and any(one.name in _COLLECTIONS and not _plain(one) for one in inner):
        return False
    return all(map(_sendable, inner))


def _plain(kind: CqlType) -> bool:
    """Of what lies deeper than one collection nothing is converted; these need no conversion."""
    return kind.name in _PLAIN or (kind.name in ("list", "map") and all(map(_plain, kind.parameters)))


def _holds_blob(kind: CqlType) -> bool:
    return kind.name == "blob" or any(map(_holds_blob, kind.parameters))


_SPARE = "ctxpipe_spare"
_COLLECTIONS = ("list", "set", "map")
_PLAIN = ("text", "ascii", "boolean", "tinyint", "smallint", "int", "bigint", "float", "double")


def _meant(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, 1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"There are: {', '.join([*names[:10]]) or 'none'}. Create it, or mend the source."


_LOCAL = "SELECT cluster_name, release_version, data_center, partitioner, host_id FROM system.local"
_CDC = "SELECT table_name, cdc FROM system_schema.tables WHERE keyspace_name = ?"
_COLUMNS = "SELECT table_name, column_name, type FROM system_schema.columns WHERE keyspace_name = ?"
_TYPES = "SELECT type_name, field_types FROM system_schema.types WHERE keyspace_name = ?"
_KEYSPACES = "SELECT keyspace_name FROM system_schema.keyspaces"
