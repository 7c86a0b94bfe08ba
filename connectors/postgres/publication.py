"""The publication of a source: made when there is none, and examined at every start, because what it leaves out would
be missing without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from connectors.postgres.catalog import Catalog, Table
from connectors.postgres.config import PostgresConfig
from connectors.postgres.server import quote_name, quote_table
from pipeline.core.errors import EnvironmentProblem

OPERATIONS = ("insert", "update", "delete", "truncate")


class Problem(NamedTuple):
    """What is wrong with a publication that somebody else made, and the SQL that mends it."""

    message: str
    mend: str


async def ensure_publication(catalog: Catalog, config: PostgresConfig) -> list[str]:
    """Creates the publication, or adds the tables that it lacks; returns those that were added.

    Every table is checked before: publishing one without a key would break UPDATE and DELETE for its owner. Raises
    EnvironmentProblem for an existing publication that leaves changes out.
    """
    tables = {name: await catalog.require(name) for name in config.tables}
    if not await catalog.rows("SELECT 1 FROM pg_publication WHERE pubname = %s", config.publication):
        await catalog.rows(_tried(create_publication_sql(config, config.tables), config, tables.values()))
        return list(config.tables)
    for problem in await problems(catalog, config):
        raise EnvironmentProblem(f"Publication {config.publication} {problem.message}. Mend: {problem.mend}")
    published = await catalog.published(config.publication)
    missing = [name for name in config.tables if name not in published]
    if missing:
        await catalog.rows(_tried(add_tables_sql(config, missing), config, [tables[name] for name in missing]))
    return missing


async def problems(catalog: Catalog, config: PostgresConfig) -> list[Problem]:
    """What an existing publication would leave out in silence."""
    name = quote_name(config.publication)
    (*published, via_root), *_ = await catalog.rows(_PUBLICATION, config.publication)
    found = []
    silent = [operation for operation, on in zip(OPERATIONS, published, strict=True) if not on]
    if silent:
        mend = f"ALTER PUBLICATION {name} SET (publish = '{', '.join(OPERATIONS)}');"
        found.append(Problem(f"does not publish {' and '.join(silent)}: such changes would never arrive", mend))
    partitioned = [] if via_root else [row[0] for row in await catalog.rows(_PARTITIONED, list(config.tables))]
    if partitioned:
        mend = f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true);"
        listed = ", ".join(partitioned)
        found.append(Problem(f"publishes the partitions of {listed} under their own names, which nobody reads", mend))
    return found


def create_publication_sql(config: PostgresConfig, tables: Sequence[str]) -> str:
    listed = ", ".join(_with_filter(config, name) for name in tables)
    name = quote_name(config.publication)
    return f"CREATE PUBLICATION {name} FOR TABLE {listed} WITH (publish_via_partition_root = true)"


def add_tables_sql(config: PostgresConfig, tables: Sequence[str]) -> str:
    listed = ", ".join(_with_filter(config, name) for name in tables)
    return f"ALTER PUBLICATION {quote_name(config.publication)} ADD TABLE {listed}"


def _with_filter(config: PostgresConfig, name: str) -> str:
    condition = config.row_filters.get(name)
    return quote_table(name) + (f" WHERE ({condition})" if condition else "")


def _tried(statement: str, config: PostgresConfig, tables: Iterable[Table]) -> str:
    """The statement, taken back by the server (several statements are one transaction) where a filter by other columns
    than the replica identity's would stop the owner's deletes from now on.
    """
    filtered = [table for table in tables if table.name in config.row_filters]
    leaves = [leaf for table in filtered for leaf in table.leaves or [quote_table(table.name)]]
    return "; ".join([statement, *(f"EXPLAIN DELETE FROM {leaf} WHERE false" for leaf in leaves)])


_PUBLICATION = """
SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_publication WHERE pubname = %s
"""
_PARTITIONED = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'p' AND n.nspname || '.' || c.relname = ANY(%s) ORDER BY 1
"""
