"""Where a source stands now, for whoever wrote to it and wants to read that: chosen by the source's connector."""

from __future__ import annotations

from connectors.postgres.catalog import Catalog
from connectors.postgres.server import Server
from connectors.registry import Configured
from pipeline.core.clock import Clock
from pipeline.core.errors import ConfigError
from schemas.position import SourcePosition, lsn_of, lsn_text

_WRITE_TIMES = ("cassandra", "scylla")

_POSITION = """
SELECT pg_current_wal_insert_lsn()::text, (SELECT system_identifier::text FROM pg_control_system())
"""
"""The insert position, because with synchronous_commit off a commit may not be written yet when it is answered."""


async def write_position(source: Configured, lsn: int | None, time_us: int | None, clock: Clock) -> SourcePosition:
    """Everything that was committed by now; of Postgres up to `lsn`, of Cassandra and Scylla what had been acknowledged
    at `time_us` (microseconds since 1970 UTC), where they are given.

    Raises ConfigError for a source that has no such positions, Retryable when Postgres is away.
    """
    kind = _kind(source)
    if kind == "postgres":
        if time_us is not None:
            raise ConfigError([f"source {source.name} is Postgres: a position there is an LSN; give --lsn"])
        return await _of_postgres(source, lsn)
    if kind in _WRITE_TIMES:
        if lsn is not None:
            raise ConfigError([f"source {source.name} is {kind}: a position there is a write time; give --time-us"])
        return SourcePosition(source.name, "time", clock.now_us() if time_us is None else time_us)
    raise ConfigError(
        [f"source {source.name} (connector {source.plugin.name}) has no positions that a lookup could wait for"]
    )


def _kind(source: Configured) -> str:
    """The database behind it, also of topics that Debezium fills."""
    if source.plugin.name == "debezium":
        section = source.config.verify
        return str(section.get("connector")) if section else "postgres" if source.config.dsn is not None else ""
    return source.plugin.name


async def _of_postgres(source: Configured, lsn: int | None) -> SourcePosition:
    section = getattr(source.config, "verify", None)
    dsn = section.get("dsn") if section else source.config.dsn
    server = Server(dsn if isinstance(dsn, str) else dsn.get_secret_value(), source.name)
    catalog = Catalog(server)
    try:
        end_text, system = (await catalog.rows(_POSITION))[0]
    finally:
        await catalog.close()
    end = lsn_of(end_text)
    if lsn is not None and lsn > end:
        text = f"{lsn_text(lsn)} lies behind the end of the log of {server.where}, {lsn_text(end)}"
        raise ConfigError([f"{text}; is it of another server?"])
    return SourcePosition(source.name, "lsn", end if lsn is None else lsn, system)
