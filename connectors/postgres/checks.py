"""Tells beforehand whether a Postgres source is fit, each finding with the SQL that mends it; it changes nothing."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from connectors.postgres import publication as publications
from connectors.postgres import slot as slots
from connectors.postgres.catalog import Catalog, Table, without_key
from connectors.postgres.config import PostgresConfig
from connectors.postgres.server import Server, lsn_text, quote_name, quote_table
from connectors.source import Finding, Position
from pipeline.core.errors import CtxpipeError, EnvironmentProblem, Fatal, PositionLost

VERSION_MIN = 140000


async def check_postgres(config: PostgresConfig) -> list[Finding]:
    """All findings; raises Retryable or EnvironmentProblem when the server can't be reached or refuses the login."""
    server = Server(config.dsn.get_secret_value(), config.name)
    catalog = Catalog(server)
    try:
        findings = await _server(catalog, config)
        tables = []
        for name in config.tables:
            table = await catalog.table(name)
            findings += await _table(catalog, config, name, table)
            tables += [table] if table is not None else []
        findings += await _publication(catalog, config)
        findings += await _slot(catalog, config)
    finally:
        await catalog.close()
    return findings


async def check_position(config: PostgresConfig, position: Position | None) -> list[Finding]:
    """Whether the server can go on at the stored position, judged as `ctxpipe connect` would; None: none is stored."""
    server = Server(config.dsn.get_secret_value(), config.name)
    catalog, control = Catalog(server), None
    mend = slots.RESET.format(source=config.name)
    try:
        if position is None:
            await slots.require_none(catalog, config)
            return [Finding("ok", "position", "none is stored: `ctxpipe connect` makes the slot and reads all rows")]
        if position.get("state") != slots.STREAMING:
            return [Finding("ok", "position", "`ctxpipe connect` begins from scratch")]
        control = await server.connect_replication()
        await slots.require_position(catalog, control, config, position)
    except PositionLost as error:
        return [Finding("unfit", "position", str(error).removesuffix(mend).strip(), mend)]
    except CtxpipeError as error:
        return [Finding("unfit", "position", f"can't be examined: {error}")]
    finally:
        await catalog.close()
        if control is not None:
            await control.close()
    return [Finding("ok", "position", f"goes on at {lsn_text(int(position['lsn']))}")]


async def table_columns(config: PostgresConfig, tables: list[str]) -> dict[str, list[str] | None]:
    """Published columns by table, None for a table that does not exist: for checking what contexts use."""
    catalog = Catalog(Server(config.dsn.get_secret_value(), config.name))
    try:
        found = {name: await catalog.table(name) for name in tables}
    finally:
        await catalog.close()
    return {name: [column.name for column in table.columns] if table else None for name, table in found.items()}


async def _server(catalog: Catalog, config: PostgresConfig) -> list[Finding]:
    settings: dict[str, Any] = dict(await catalog.rows(_SETTINGS))
    user, replication, standby = (await catalog.rows(_LOGIN))[0]
    where = catalog.server.where
    version = await catalog.version()
    shown = f"{version // 10000}.{version % 10000}"
    if version >= VERSION_MIN:
        findings = [Finding("ok", "version", f"{where} runs Postgres {shown}")]
    else:
        findings = [
            Finding("unfit", "version", f"{where} runs {shown}; logical streaming needs 14", "Upgrade Postgres.")
        ]
    if settings["wal_level"] != "logical":
        mend = "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server"
        findings.append(Finding("unfit", "wal_level", f"wal_level is {settings['wal_level']}", mend))
    else:
        findings.append(Finding("ok", "wal_level", "logical"))
    if replication:
        findings.append(Finding("ok", "login", f"{user} may replicate"))
    else:
        mend = f"ALTER ROLE {quote_name(user)} REPLICATION;"
        findings.append(Finding("unfit", "login", f"{user} may not replicate", mend))
    if standby:
        message = "this is a standby: heartbeats and table snapshots need the primary"
        findings.append(Finding("unfit", "standby", message, "Point the dsn to the primary."))
    if settings["max_slot_wal_keep_size"] == "-1":
        mend = "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();"
        message = "max_slot_wal_keep_size is unlimited: a connector that stays down fills the server's disk"
        findings.append(Finding("warning", "max_slot_wal_keep_size", message, mend))
    return findings + await _room(catalog, config, settings)


async def _room(catalog: Catalog, config: PostgresConfig, settings: dict[str, Any]) -> list[Finding]:
    rows = await catalog.rows(
        "SELECT count(*), count(*) FILTER (WHERE slot_name = %s) FROM pg_replication_slots", config.slot
    )
    used, ours = rows[0]
    most = int(settings["max_replication_slots"])
    if not ours and used >= most:
        mend = f"ALTER SYSTEM SET max_replication_slots = {most + 5}; -- then restart the server"
        return [Finding("unfit", "slots", f"all {most} replication slots are used", mend)]
    return []


async def _table(catalog: Catalog, config: PostgresConfig, name: str, table: Table | None) -> list[Finding]:
    if table is None:
        everything = [row[0] for row in await catalog.rows(_TABLES)]
        near = get_close_matches(name, everything, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Tables there: {', '.join(everything[:10]) or 'none'}."
        return [
            Finding("unfit", name, f"{catalog.server.where} has no table {name}", f"{hint} Mend the source's tables.")
        ]
    findings = []
    user, may_read, hidden, children = (await catalog.rows(_GRANT, table.oid))[0]
    if not may_read:
        schema = quote_name(name.split(".")[0])
        mend = f"GRANT USAGE ON SCHEMA {schema} TO {quote_name(user)}; "
        mend += f"GRANT SELECT ON {quote_table(name)} TO {quote_name(user)};"
        findings.append(Finding("unfit", name, f"{user} may not read it", mend))
    if hidden:
        mend = f"ALTER ROLE {quote_name(user)} BYPASSRLS;"
        findings.append(Finding("unfit", name, f"row-level security hides rows from {user}", mend))
    if children and not table.partitioned:
        message = "tables that inherit from it are tables of their own: their rows are not captured with it"
        findings.append(Finding("warning", name, message, "Capture them, too, or partition the table instead."))
    if table.partitioned:
        message = "TRUNCATE, ATTACH and DETACH of a single partition are not replicated; rows would stay or be missing"
        again = f"ctxpipe connect {config.name} --snapshot {name}"
        mend = f"Use DELETE instead of TRUNCATE, and before DETACH; after ATTACH: {again}"
        findings.append(Finding("note", name, message, mend))
    if not table.key:
        findings.append(
            Finding("unfit", name, without_key(table), f"ALTER TABLE {quote_table(name)} ADD PRIMARY KEY (...);")
        )
    elif set(table.key) != set(table.primary_key):
        message = (
            f"records are keyed by {', '.join(table.key)}: REPLICA IDENTITY USING INDEX sends only those on a delete"
        )
        findings.append(Finding("note", name, message))
    toasted = [column.name for column in table.columns if column.toastable and column.name not in table.key]
    if toasted and table.replica_identity != "f":
        listed = ", ".join(toasted)
        message = (
            f"large values of {listed} are not sent when another column changes: consumers keep the old ones, but one "
            "that reads the topic anew after Kafka has compacted it finds none and sets the row aside"
        )
        mend = f"ALTER TABLE {quote_table(name)} REPLICA IDENTITY FULL; -- to have them in every event"
        findings.append(Finding("note", name, message, mend))
    return findings or [Finding("ok", name, f"key {', '.join(table.key)}")]


async def _publication(catalog: Catalog, config: PostgresConfig) -> list[Finding]:
    subject = f"publication {config.publication}"
    exists = await catalog.rows("SELECT 1 FROM pg_publication WHERE pubname = %s", config.publication)
    if not exists:
        create = publications.create_publication_sql(config, config.tables) + ";"
        database = quote_name(catalog.server.database)
        user, may_create = (await catalog.rows(_MAY_CREATE))[0]
        if not may_create:
            mend = f"GRANT CREATE ON DATABASE {database} TO {quote_name(user)}; -- or as somebody who may: {create}"
            return [Finding("unfit", subject, f"it does not exist, and {user} may not create any", mend)]
        lacking = await catalog.rows(_NOT_OWNED, list(config.tables))
        if lacking:
            names = ", ".join(row[0] for row in lacking)
            message = f"it does not exist, and only the owner of {names} may publish them"
            return [Finding("unfit", subject, message, f"{create} -- as their owner")]
        return [Finding("ok", subject, "`ctxpipe connect` will create it")]
    found = await publications.problems(catalog, config)
    if found:
        return [Finding("unfit", subject, problem.message, problem.mend) for problem in found]
    published = await catalog.published(config.publication)
    missing = [name for name in config.tables if name not in published]
    if not missing:
        return [Finding("ok", subject, f"covers {len(config.tables)} tables")]
    mend = publications.add_tables_sql(config, missing) + ";"
    return [Finding("warning", subject, f"lacks {', '.join(missing)}; `ctxpipe connect` adds them if it may", mend)]


async def _slot(catalog: Catalog, config: PostgresConfig) -> list[Finding]:
    subject = f"slot {config.slot}"
    slot = await slots.find_slot(catalog, config.slot)
    if slot is None:
        return []  # whether it should be there, the position tells
    if slot.state == "lost":
        message = "the server has given it up: the log it needed grew beyond max_slot_wal_keep_size"
        return [Finding("unfit", subject, message, f"ctxpipe connect {config.name} --reset")]
    if slot.plugin != "pgoutput" or slot.database != catalog.server.database:
        message = f"belongs to somebody else: plugin {slot.plugin}, database {slot.database}"
        return [Finding("unfit", subject, message, f"Give the source another one: sources.{config.name}.slot")]
    reading = f"read by server process {slot.reader_pid}" if slot.reader_pid else "nobody reads from it now"
    severity = "warning" if slot.state == "unreserved" else "ok"
    return [Finding(severity, subject, f"{slot.state}, {reading}")]


class CheckedPostgres:
    """Implements Checking for a configuration."""

    def __init__(self, config: PostgresConfig) -> None:
        self._config = config

    async def check(self) -> list[Finding]:
        try:
            return await check_postgres(self._config)
        except Fatal as error:
            raise EnvironmentProblem(str(error)) from error


_SETTINGS = """
SELECT name, setting FROM pg_settings WHERE name IN ('wal_level', 'max_replication_slots', 'max_slot_wal_keep_size')
"""
_LOGIN = """
SELECT current_user::text, rolreplication OR rolsuper, pg_is_in_recovery() FROM pg_roles WHERE rolname = current_user
"""
_TABLES = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^(pg_|information_schema)' ORDER BY 1
"""
_GRANT = """
SELECT current_user::text, has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(c.relnamespace, 'USAGE'),
       row_security_active(c.oid), EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid)
FROM pg_class c WHERE c.oid = %s
"""
_MAY_CREATE = "SELECT current_user::text, has_database_privilege(current_database(), 'CREATE')"
_NOT_OWNED = """
SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY(%s) AND NOT pg_has_role(c.relowner, 'USAGE')
"""
