"""What the server tells of its generations and streams, of the log table, and of its clock, as of one moment."""

from __future__ import annotations

import msgspec

from connectors.cql.errors import Undefined
from connectors.cql.schema import full_name
from connectors.cql.session import CqlSession
from connectors.cql.times import timeuuid_us
from connectors.cql.values import pieces
from connectors.scylla.config import LOG_SUFFIX, ScyllaConfig
from connectors.scylla.messages import reset_hint
from connectors.scylla.streams import Group, tablet_groups, vnode_groups
from pipeline.core.clock import Clock
from pipeline.core.errors import Fatal, PositionLost

LOG_TTL_DEFAULT_S = 86_400
CURRENT = 0
"""stream_state of the streams that are written to from a generation's time on; others were closed or opened then."""


class Told(msgspec.Struct, frozen=True):
    """`seen_us` is the server's time when it was told; `clock_us` what must be added to our clock to have it.

    `log_id` is the log table's, None when there is none. `generations_ms` ascend.
    """

    seen_us: int
    clock_us: int
    log_id: str | None
    generations_ms: tuple[int, ...]


class Dialect(msgspec.Struct, frozen=True):
    """What the server is: Scylla knows more syntax, and lays streams out in one of two ways."""

    scylla: bool
    tablets: bool


async def read_dialect(session: CqlSession, config: ScyllaConfig) -> Dialect:
    """Asks the server, unless the configuration says how streams are laid out."""
    scylla = bool((await session.rows(_SCYLLA, consistency="LOCAL_ONE")).rows)
    tablets = config.generations == "tablets"
    if config.generations == "auto" and scylla:
        try:
            query = "SELECT initial_tablets FROM system_schema.scylla_keyspaces WHERE keyspace_name = ?"
            rows = await session.rows(query, (config.keyspace,), consistency="LOCAL_ONE")
        except Undefined:
            return Dialect(scylla, False)  # older than tablets
        tablets = any(row[0] is not None for row in rows.rows)
    return Dialect(scylla, tablets)


async def read_log_options(session: CqlSession, config: ScyllaConfig, table: str, dialect: Dialect) -> dict[str, str]:
    """CDC's options of a table, {} where the server does not tell them."""
    if not dialect.scylla:
        return {}
    query = "SELECT cdc FROM system_schema.scylla_tables WHERE keyspace_name = ? AND table_name = ?"
    rows = (await session.rows(query, (config.keyspace, table), consistency="LOCAL_ONE")).dicts()
    return dict(rows[0]["cdc"] or {}) if rows else {}


def log_ttl_s(config: ScyllaConfig, options: dict[str, str]) -> int:
    """How long the log keeps a change; 0 for ever."""
    if config.log_ttl_s is not None:
        return config.log_ttl_s
    return int(options.get("ttl", LOG_TTL_DEFAULT_S))


class Generations:
    """Asks for one source. Any number of tasks may use it."""

    def __init__(self, session: CqlSession, config: ScyllaConfig, dialect: Dialect, clock: Clock) -> None:
        self._session = session
        self._config = config
        self._tablets = dialect.tablets
        self._clock = clock

    async def told(self, table: str) -> Told:
        """As of now: the clock first, so that nothing that came later counts as known."""
        before_us = self._clock.now_us()
        row = (await self._session.rows("SELECT now() FROM system.local", consistency="LOCAL_ONE")).rows[0]
        server_us = timeuuid_us(row[0] or b"")
        clock_us = server_us - (before_us + self._clock.now_us()) // 2
        log = await self._session.rows(_TABLE_ID, (self._config.keyspace, table + LOG_SUFFIX), consistency="LOCAL_ONE")
        log_id = log.dicts()[0]["id"] if log.rows else None
        return Told(server_us, clock_us, log_id, await self.times(table))

    async def times(self, table: str) -> tuple[int, ...]:
        """Times of all generations that are told, ascending, in milliseconds. Some may be still to come."""
        where = self._config.metadata
        try:
            if self._tablets:
                query = (
                    f"SELECT timestamp FROM {full_name(where.tablets_keyspace, where.tablets_timestamps)} {_OF_TABLE}"
                )
                rows = await self._session.rows(query, (self._config.keyspace, table))
            else:
                query = f"SELECT time FROM {full_name(where.keyspace, where.timestamps)} WHERE key = ?"
                rows = await self._session.rows(query, ("timestamps",))
        except Undefined as error:
            raise Fatal(f"{error}. Without it streams can't be found: is this Scylla 4.4 or newer?") from error
        return tuple(sorted({_integer(row[0]) for row in rows.rows}))

    async def groups(self, table: str, generation_ms: int) -> tuple[Group, ...]:
        """The streams of a generation. Raises PositionLost when they are not told any more."""
        where = self._config.metadata
        if self._tablets:
            query = (
                f"SELECT stream_id, stream_state FROM {full_name(where.tablets_keyspace, where.tablets_streams)} "
                f"{_OF_TABLE} AND timestamp = ?"
            )
            rows = await self._session.rows(query, (self._config.keyspace, table, generation_ms))
            groups = tablet_groups(row[0] or b"" for row in rows.rows if row[1] == bytes([CURRENT]))
        else:
            query = f"SELECT range_end, streams FROM {full_name(where.keyspace, where.streams)} WHERE time = ?"
            rows = await self._session.rows(query, (generation_ms,))
            groups = vnode_groups((_integer(row[0]), pieces(row[1]) if row[1] else ()) for row in rows.rows)
        if not groups:
            raise PositionLost(
                f"{self._session.where}: the streams of the generation of {generation_ms} ms, where reading has to go "
                f"on, are not told any more.{reset_hint(self._config)}"
            )
        return groups


def _integer(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big", signed=True)


_SCYLLA = (
    "SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'system_schema' AND table_name = 'scylla_tables'"
)
_TABLE_ID = "SELECT id FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?"
_OF_TABLE = "WHERE keyspace_name = ? AND table_name = ?"
