"""The table of a Cassandra source's heartbeats: what it must look like, and what is told when it does not."""

from __future__ import annotations

from connectors.cassandra import node as nodes
from connectors.cassandra.config import CassandraConfig
from connectors.cql.schema import TableSchema, full_name, read_table
from connectors.cql.session import CqlSession
from connectors.source import Finding
from pipeline.core.errors import CtxpipeError, EnvironmentProblem

BEAT = "beat_us"
_COLUMNS = [("source", "partition_key", "text"), (BEAT, "regular", "bigint")]
SUGGESTED = "ctxpipe_heartbeat"
LOST = "how old a quiet table's rows are is not known, and lookups label what shows them as stale"


def create_statement(keyspace: str, table: str) -> str:
    return f"CREATE TABLE {full_name(keyspace, table)} (source text PRIMARY KEY, {BEAT} bigint) WITH cdc = true;"


def insert_statement(config: CassandraConfig) -> str:
    return f"INSERT INTO {full_name(config.keyspace, config.heartbeat_name)} (source, {BEAT}) VALUES (?, ?)"


def grant_statement(config: CassandraConfig, table: str) -> str:
    return f"GRANT MODIFY ON TABLE {full_name(config.keyspace, table)} TO {config.user or 'USER'};"


async def require_heartbeat_table(session: CqlSession, config: CassandraConfig) -> None:
    """Raises EnvironmentProblem, with what mends it."""
    found = await _table_finding(session, config) or await _write_finding(session, config)
    if found is not None:
        raise EnvironmentProblem(
            f"The heartbeat table {found.subject} {found.message}. Mend: {found.mend} Or leave heartbeat_table out of "
            f"sources.{config.name}: then {LOST}."
        )


async def heartbeat_findings(session: CqlSession, config: CassandraConfig) -> list[Finding]:
    """What `ctxpipe check` tells of it. It writes one row, under the source's name, which a connector passes over."""
    others = await session.other_nodes()
    if not config.heartbeat_name:
        mend = "" if others else f"{_mend_all(config)} and heartbeat_table: {SUGGESTED} in the source."
        return [Finding("note", "heartbeats", f"there is no heartbeat_table: {LOST}", mend)]
    found = await _table_finding(session, config) or await _write_finding(session, config)
    if found is not None:
        return [found]
    if others:
        return [Finding("warning", "heartbeats", f"{nodes.SEVERAL.format(count=others + 1)} So {LOST}")]
    return [Finding("ok", "heartbeats", f"{config.qualified(config.heartbeat_name)} can be written, with CDC")]


async def _table_finding(session: CqlSession, config: CassandraConfig) -> Finding | None:
    name = config.heartbeat_name
    subject, table = config.qualified(name), await read_table(session, config.keyspace, name)
    if table is None:
        return Finding("unfit", subject, "is not there", create_statement(config.keyspace, name))
    if not _fits(table):
        mend = f"DROP TABLE {full_name(config.keyspace, name)}; {create_statement(config.keyspace, name)}"
        columns = ", ".join(f"{column.name} {column.declared}" for column in table.columns)
        return Finding("unfit", subject, f"has other columns than it must have ({columns})", mend)
    if name not in await nodes.cdc_tables(session, config.keyspace):
        return Finding("unfit", subject, "has no change log (CDC)", nodes.enable_cdc(config.keyspace, name))
    return None


async def _write_finding(session: CqlSession, config: CassandraConfig) -> Finding | None:
    name = config.heartbeat_name
    try:
        await session.execute(insert_statement(config), (config.name, 0))
    except EnvironmentProblem as error:
        return Finding(
            "unfit", config.qualified(name), f"can't be written: {_first(error)}", grant_statement(config, name)
        )
    return None


def _first(error: CtxpipeError) -> str:
    """Without its advice, which is ours to give."""
    return str(error).split(". `ctxpipe check`")[0]


def _fits(table: TableSchema) -> bool:
    return [(column.name, column.kind, column.declared) for column in table.columns] == _COLUMNS


def _mend_all(config: CassandraConfig) -> str:
    return f"{create_statement(config.keyspace, SUGGESTED)} {grant_statement(config, SUGGESTED)}"
