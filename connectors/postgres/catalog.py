"""What the source's catalog says of tables, types and publications, as frozen values; every query of it is here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from connectors.postgres.errors import mapped_errors
from connectors.postgres.pgoutput import Relation, RelationColumn
from connectors.postgres.server import Connection, Server, quote_name, quote_table, quote_text
from connectors.postgres.values import BUILT_IN_TYPES, Converter, PostgresType, converter_for, parts_of
from pipeline.core.errors import EnvironmentProblem, Fatal

MAY_BE_TOASTED = ("x", "e", "m")
"""attstorage of columns whose values may be stored out of line."""


class TableColumn(msgspec.Struct, frozen=True):
    name: str
    type_name: str
    type_oid: int
    type_modifier: int
    toastable: bool


class Table(msgspec.Struct, frozen=True):
    """One table now. `columns` are the published ones (no generated ones), `leaves` the oids that hold its rows."""

    oid: int
    name: str
    replica_identity: str
    columns: list[TableColumn]
    primary_key: list[str]
    identity: list[str]
    leaves: list[str]
    partitioned: bool = False

    @property
    def source(self) -> str:
        """For FROM: with its partitions, but without tables that inherit from it, which are tables of their own."""
        return quote_table(self.name) if self.partitioned else f"ONLY {quote_table(self.name)}"

    @property
    def key(self) -> list[str]:
        """Columns of the record key, in column order; empty when a change could not be told to a row."""
        return record_key(self.replica_identity, [c.name for c in self.columns], self.identity, self.primary_key)

    def relation(self, columns: Sequence[str] | None = None) -> Relation:
        """As the stream would describe it."""
        listed = tuple(
            RelationColumn(c.name, c.type_oid, c.type_modifier, c.name in self.identity or self.replica_identity == "f")
            for c in self.columns
            if columns is None or c.name in columns
        )
        schema, _, name = self.name.partition(".")
        return Relation(0, self.oid, schema, name, self.replica_identity, listed)


def record_key(
    identity_kind: str, columns: Sequence[str], identity: Sequence[str], primary: Sequence[str]
) -> list[str]:
    """The key columns of a table's records, in column order.

    The primary key, but for REPLICA IDENTITY USING INDEX on other columns: deletes then carry only those.
    """
    if identity_kind == "f":
        chosen = set(primary)
    elif identity_kind == "i":
        chosen = set(primary) if primary and set(primary) <= set(identity) else set(identity)
    else:
        chosen = set(identity) if identity_kind == "d" else set()
    return [name for name in columns if name in chosen] if chosen <= set(columns) else []


class Catalog:
    """Asks over one ordinary connection, which it opens again when it was lost. Errors as in errors.py."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.types: dict[int, PostgresType] = dict(BUILT_IN_TYPES)
        self._connection: Connection | None = None

    async def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows."""
        if self._connection is None or self._connection.closed:
            self._connection = await self.server.connect()
        with mapped_errors(self.server.where):
            cursor = await self._connection.execute(query, parameters or None)
            return await cursor.fetchall() if cursor.description else []

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def table(self, name: str) -> Table | None:
        """A table or partitioned table by its qualified name; None when there is none."""
        found = await self.rows(_TABLE, *name.split(".", 1))
        if not found:
            return None
        oid, identity_kind, partitioned = found[0]
        columns = [TableColumn(*row) for row in await self.rows(_COLUMNS, oid)]
        indexes = await self.rows(_KEYS, oid)
        primary: list[str] = next((names for is_primary, _, names in indexes if is_primary), [])
        identity: list[str] = next((names for _, is_identity, names in indexes if is_identity), [])
        if identity_kind != "i":
            identity = primary
        leaves = [row[0] for row in await self.rows(_LEAVES, oid)]
        return Table(oid, name, identity_kind, columns, list(primary), list(identity), leaves, partitioned)

    async def require(self, name: str) -> Table:
        """Raises EnvironmentProblem with the way to mend it when the table is missing or has no usable key."""
        table = await self.table(name)
        if table is None:
            raise EnvironmentProblem(f"{self.server.where} has no table {name}. Mend the source's `tables`.")
        if not table.key:
            raise EnvironmentProblem(without_key(table))
        return table

    async def converters(self, columns: Iterable[RelationColumn | TableColumn]) -> list[Converter]:
        """One converter per column; types that are not known yet are looked up."""
        wanted = [(column.type_oid, column.type_modifier) for column in columns]
        missing = set().union(*(parts_of(oid, self.types) for oid, _ in wanted)) if wanted else set()
        while missing:
            for row in await self.rows(_TYPES, list(missing)):
                self.types[row[0]] = PostgresType(*row)
            unknown = [oid for oid in missing if oid not in self.types]
            if unknown:
                raise Fatal(
                    f"{self.server.where} does not know the types with the oids {unknown}: dropped "
                    "before their last changes were read? Start over with: ctxpipe connect SOURCE --reset"
                )
            missing = set().union(*(parts_of(oid, self.types) for oid, _ in wanted))
        return [converter_for(oid, modifier, self.types) for oid, modifier in wanted]

    async def published(self, publication: str) -> dict[str, tuple[list[str] | None, str | None]]:
        """Table → (published columns or None for all, row filter or None)."""
        version = await self.version()
        query = _PUBLISHED if version >= 150000 else _PUBLISHED_14
        return {
            f"{schema}.{name}": (columns, where) for schema, name, columns, where in await self.rows(query, publication)
        }

    async def version(self) -> int:
        """E.g. 150018."""
        return int((await self.rows("SELECT current_setting('server_version_num')::int"))[0][0])

    async def select_columns(
        self, table: str, columns: Sequence[str], key: Sequence[str], values: Sequence[bytes | None]
    ) -> list[bytes | None] | None:
        """Text output of some columns of one row, found by its key; None when the row is gone.

        Raises Undefined when table or columns are, too.
        """
        wanted = ", ".join(f"{quote_name(name)}::text" for name in columns)
        where = " AND ".join(
            f"{quote_name(name)} = {quote_text((value or b'').decode())}"
            for name, value in zip(key, values, strict=True)
        )
        rows = await self.rows(f"SELECT {wanted} FROM {quote_table(table)} WHERE {where}")
        return [None if value is None else value.encode() for value in rows[0]] if rows else None


def without_key(table: Table) -> str:
    """What is wrong with a table whose rows can't be told apart, and the SQL that mends it."""
    name = quote_table(table.name)
    if table.primary_key:
        mend = f"ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"
    else:
        mend = f"ALTER TABLE {name} ADD PRIMARY KEY (...);"
    return (
        f"{table.name} has no usable key: its changes can't be told to rows, and once it is published Postgres refuses "
        f"UPDATE and DELETE on it. Mend: {mend} (or REPLICA IDENTITY USING INDEX a unique index over NOT NULL columns; "
        "deferrable ones don't count)"
    )


_TABLE = """
SELECT c.oid::bigint, c.relreplident::text, c.relkind = 'p'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""
_COLUMNS = """
SELECT attname::text, format_type(atttypid, atttypmod), atttypid::bigint, atttypmod, attstorage::text IN ('x', 'e', 'm')
FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
# A deferrable key is none: Postgres takes it for no replica identity, and two rows may have it at a time.
_KEYS = """
SELECT i.indisprimary, i.indisreplident, array_agg(a.attname::text ORDER BY k.place)
FROM pg_index i, unnest(i.indkey::int[]) WITH ORDINALITY AS k (attnum, place), pg_attribute a
WHERE i.indrelid = %s AND a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.place <= i.indnkeyatts
  AND (i.indisprimary OR i.indisreplident) AND i.indimmediate
GROUP BY i.indexrelid, i.indisprimary, i.indisreplident
"""
_LEAVES = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
FROM pg_partition_tree(%s::oid::regclass) t
JOIN pg_class c ON c.oid = t.relid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.isleaf ORDER BY 1
"""
_TYPES = """
SELECT oid::bigint, typname::text, typtype::text, typcategory::text, typelem::bigint, typbasetype::bigint, typtypmod,
       CASE WHEN typcategory = 'A' THEN (SELECT e.typdelim::text FROM pg_type e WHERE e.oid = t.typelem) ELSE ',' END
FROM pg_type t WHERE oid = ANY(%s::oid[])
"""
_PUBLISHED = """
SELECT schemaname::text, tablename::text, attnames::text[], rowfilter FROM pg_publication_tables WHERE pubname = %s
"""
_PUBLISHED_14 = "SELECT schemaname::text, tablename::text, NULL, NULL FROM pg_publication_tables WHERE pubname = %s"
