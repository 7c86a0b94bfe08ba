"""What a CQL table looks like, from the server's own schema tables."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from connectors.cql.session import CqlSession
from connectors.cql.values import CqlType

_COLLECTIONS = ("list<", "set<", "map<")


class Column(msgspec.Struct, frozen=True):
    """`kind` is partition_key, clustering, regular or static. `multi_cell`: a collection or a user-defined type that is
    not frozen, so that its elements are written one by one."""

    name: str
    kind: str
    position: int
    descending: bool
    declared: str
    type: CqlType
    multi_cell: bool


class TableSchema(msgspec.Struct, frozen=True):
    """A table's columns: key columns in their order first. `id` changes when a table is made anew."""

    keyspace: str
    table: str
    id: str
    columns: tuple[Column, ...]

    @property
    def partition_key(self) -> list[Column]:
        return [column for column in self.columns if column.kind == "partition_key"]

    @property
    def clustering(self) -> list[Column]:
        return [column for column in self.columns if column.kind == "clustering"]

    @property
    def key(self) -> list[Column]:
        return [*self.partition_key, *self.clustering]

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


def quoted(name: str) -> str:
    """A name as CQL takes it."""
    return '"' + name.replace('"', '""') + '"'


def full_name(keyspace: str, table: str) -> str:
    return f"{quoted(keyspace)}.{quoted(table)}"


async def read_table(session: CqlSession, keyspace: str, table: str) -> TableSchema | None:
    """None when there is no such table, or none that this login may see."""
    found = await session.rows(_TABLE, (keyspace, table), consistency="LOCAL_ONE")
    if not found.rows:
        return None
    described = (await session.rows(_COLUMNS, (keyspace, table), consistency="LOCAL_ONE")).dicts()
    names = ", ".join(quoted(row["column_name"]) for row in described)
    types = dict((await session.prepare(f"SELECT {names} FROM {full_name(keyspace, table)}")).columns)
    columns = [
        Column(
            row["column_name"],
            row["kind"],
            row["position"],
            row["clustering_order"] == "desc",
            row["type"],
            types[row["column_name"]],
            _multi_cell(row["type"], types[row["column_name"]]),
        )
        for row in described
    ]
    return TableSchema(keyspace, table, found.dicts()[0]["id"], tuple(sorted(columns, key=_place)))


async def captured_columns(session: CqlSession, keyspace: str, tables: Sequence[str]) -> dict[str, list[str] | None]:
    """Column names by table, with or without its keyspace; None for a table that does not exist. Static columns are
    left out: they are not captured."""
    found: dict[str, list[str] | None] = {}
    for name in tables:
        own, _, plain = name.rpartition(".")
        table = await read_table(session, own or keyspace, plain)
        found[name] = None if table is None else [one.name for one in table.columns if one.kind != "static"]
    return found


async def fingerprint(session: CqlSession, keyspace: str, tables: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """What changes when one of the tables, or a user-defined type of the keyspace, is altered, dropped or made anew."""
    found: set[tuple[str, ...]] = set()
    for table in tables:
        rows = await session.rows(_TABLE, (keyspace, table), consistency="LOCAL_ONE")
        found |= {(table, "id", str(row["id"])) for row in rows.dicts()}
        rows = await session.rows(_COLUMNS, (keyspace, table), consistency="LOCAL_ONE")
        found |= {(table, row["column_name"], row["kind"], row["type"]) for row in rows.dicts()}
    rows = await session.rows(_TYPES, (keyspace,), consistency="LOCAL_ONE")
    return frozenset(found | {("", row["type_name"], *row["field_names"]) for row in rows.dicts()})


async def tables_of(session: CqlSession, keyspace: str) -> list[str]:
    """The names of a keyspace's tables, in order."""
    rows = await session.rows(_TABLES, (keyspace,), consistency="LOCAL_ONE")
    return sorted(row["table_name"] for row in rows.dicts())


def _multi_cell(declared: str, kind: CqlType) -> bool:
    return declared.startswith(_COLLECTIONS) or (kind.name == "udt" and not declared.startswith("frozen<"))


def _place(column: Column) -> tuple[int, int, str]:
    order = {"partition_key": 0, "clustering": 1}
    return order.get(column.kind, 2), column.position, column.name


_TABLE = "SELECT id FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?"
_TABLES = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?"
_COLUMNS = (
    "SELECT column_name, kind, position, clustering_order, type FROM system_schema.columns "
    "WHERE keyspace_name = ? AND table_name = ?"
)
_TYPES = "SELECT type_name, field_names FROM system_schema.types WHERE keyspace_name = ?"
