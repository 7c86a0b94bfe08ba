"""What Postgres tells of a source's slot: the log that it keeps for us, what we have not confirmed, how much more may
come before it gives the slot up, and whether it is read; also, and above all, when nobody reads it.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

import msgspec

from connectors.postgres.catalog import Catalog
from connectors.postgres.config import PostgresConfig
from connectors.postgres.server import Server, lsn_text
from connectors.postgres.slot import RESET, STREAMING
from connectors.source import Finding, Position, StoredPosition
from connectors.stored import ask
from connectors.watching import LEFT_S, Ebb, Pace, SourceHealth, worst_first
from pipeline.core.clock import Clock

MISSING = "missing"
LOST = "lost"
FLOOR_S = 0.0
"""A transaction is sent as it commits."""


class SeenSlot(msgspec.Struct, frozen=True):
    """A row of pg_replication_slots at one moment; of one that is not there all None. LSNs are numbers."""

    lsn: int
    """Where the server's log ends, or on a standby, how far it has been replayed."""
    limited: bool
    """max_slot_wal_keep_size is set."""
    plugin: str | None
    database: str | None
    active: bool | None
    restart_lsn: int | None
    confirmed_lsn: int | None
    wal_status: str | None
    safe_wal_bytes: int | None
    inactive_since_s: float | None
    invalidation_reason: str | None

    @property
    def exists(self) -> bool:
        return self.active is not None


class SlotWatch:
    """Implements connectors.watching.Watching over one ordinary connection; any login may ask this."""

    def __init__(self, config: PostgresConfig, stored: StoredPosition | None, clock: Clock) -> None:
        self._config = config
        self._stored = stored
        self._clock = clock
        self._server = Server(config.dsn.get_secret_value(), config.name)
        self._catalog = Catalog(self._server)
        self._pace = Pace()
        self._ebb = Ebb()
        self._inactive_since_s: float | None = None

    async def look(self) -> SourceHealth:
        seen = SeenSlot(*(await self._catalog.rows(_SEEN, self._config.slot))[0])
        headroom_s = self._headroom_s(seen)
        position, unknown = None, None
        if not seen.exists:
            position, unknown = await ask(self._stored, self._config.name)
        health = slot_health(self._config, seen, headroom_s, self._since(seen))
        left_s = self._clock.now_us() / 1_000_000 - (health.inactive_since_s or math.inf)
        findings = slot_findings(self._config, self._server, seen, health, position, unknown, left_s)
        if not seen.exists and position is not None and position.get("state") == STREAMING:
            unconfirmed = max(seen.lsn - int(position["lsn"]), 0)
            health = msgspec.structs.replace(health, unconfirmed_bytes=unconfirmed, headroom_s=0.0)
        return msgspec.structs.replace(health, findings=worst_first(findings))

    async def close(self) -> None:
        await self._catalog.close()

    def _headroom_s(self, seen: SeenSlot) -> float | None:
        """While nobody reads, all that is written takes room; while somebody does, it is given back in turns."""
        now_s, room = self._clock.monotonic_s(), seen.safe_wal_bytes
        self._pace.note(now_s, seen.lsn)
        if room is None:
            self._ebb = Ebb()
            return None
        self._ebb.note(now_s, room)
        return self._ebb.seconds() if seen.active else self._pace.seconds_for(room)

    def _since(self, seen: SeenSlot) -> float | None:
        """Servers before 17 don't tell since when nobody reads it: then, since we have seen that."""
        if not seen.exists or seen.active:
            self._inactive_since_s = None
        elif self._inactive_since_s is None:
            self._inactive_since_s = self._clock.now_us() / 1_000_000
        return None if seen.active else seen.inactive_since_s or self._inactive_since_s


def slot_health(
    config: PostgresConfig, seen: SeenSlot, headroom_s: float | None, since_s: float | None
) -> SourceHealth:
    """The figures. Of a slot that is lost or not there the server keeps nothing."""
    status = (seen.wal_status or LOST) if seen.exists else MISSING
    safe = None if seen.safe_wal_bytes is None else max(seen.safe_wal_bytes, 0)
    return SourceHealth(
        source=config.name,
        connector="postgres",
        up=True,
        floor_s=FLOOR_S,
        headroom_s=0.0 if status == LOST else headroom_s,
        slot=config.slot,
        wal_status=status,
        slot_active=bool(seen.active),
        inactive_since_s=since_s,
        invalidation_reason=seen.invalidation_reason,
        retained_bytes=_behind(seen.lsn, seen.restart_lsn) or 0,
        unconfirmed_bytes=_behind(seen.lsn, seen.confirmed_lsn),
        safe_wal_bytes=safe,
    )


def slot_findings(
    config: PostgresConfig,
    server: Server,
    seen: SeenSlot,
    health: SourceHealth,
    position: Position | None,
    unknown: Finding | None,
    left_s: float = 0.0,
) -> list[Finding]:
    """What a person should know. `position` is the stored one, asked for only where there is no slot; `unknown` says
    why that is not known. `left_s`: so long nobody has read it."""
    subject, start = f"slot {config.slot}", f"ctxpipe connect {config.name}"
    reset = RESET.format(source=config.name)
    if not seen.exists:
        return [*_of_missing(subject, server, position, unknown, start, reset), *([unknown] if unknown else [])]
    if seen.plugin != "pgoutput" or seen.database != server.database:
        message = f"is not ours: plugin {seen.plugin}, database {seen.database}"
        return [Finding("unfit", subject, message, f"Mend sources.{config.name}.slot.")]
    findings = []
    if health.wal_status == LOST:
        why = seen.invalidation_reason or "the log it needed grew beyond max_slot_wal_keep_size"
        return [Finding("unfit", subject, f"{server.where} has given it up ({why}): changes are lost", reset)]
    if health.wal_status == "unreserved":
        message = f"{server.where} gives it up at its next checkpoint, if it is not read before"
        findings.append(Finding("unfit", subject, message, f"{start}, or raise max_slot_wal_keep_size at once"))
    if not seen.active:
        severity = "unfit" if left_s >= LEFT_S else "warning"
        since = f" since {_time(health.inactive_since_s)}" if health.inactive_since_s is not None else ""
        findings.append(Finding(severity, subject, f"nobody reads it{since}", f"Is `{start}` running?"))
    if not seen.limited:
        message = "max_slot_wal_keep_size is unlimited: a connector that stays down fills the server's disk"
        findings.append(Finding("note", subject, message, _LIMIT))
    return findings or [Finding("ok", subject, "is read")]


def _of_missing(
    subject: str, server: Server, position: Position | None, unknown: Finding | None, start: str, reset: str
) -> list[Finding]:
    if position is not None and position.get("state") == STREAMING:
        message = f"is gone from {server.where}: changes since our position {lsn_text(int(position['lsn']))} are lost"
        return [Finding("unfit", subject, message, reset)]
    if unknown is not None:
        mend = f"{start}, if it has never run; else: {reset}"
        return [Finding("unfit", subject, f"is not there on {server.where}", mend)]
    return [Finding("warning", subject, f"is not there on {server.where}: the connector has not begun", start)]


def _behind(lsn: int, other: int | None) -> int | None:
    return None if other is None else max(lsn - other, 0)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_LIMIT = "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf();"
# By to_jsonb: columns that only newer servers have.
_SEEN = """
SELECT (log.lsn - '0/0')::bigint, current_setting('max_slot_wal_keep_size') <> '-1',
       s.plugin::text, s.database::text, s.active, (s.restart_lsn - '0/0')::bigint,
       (s.confirmed_flush_lsn - '0/0')::bigint, s.wal_status, s.safe_wal_size::bigint,
       extract(epoch FROM (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8,
       to_jsonb(s) ->> 'invalidation_reason'
FROM (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn) log
LEFT JOIN pg_replication_slots s ON s.slot_name = %s AND s.slot_type = 'logical'
"""
