"""What Scylla tells of a source: its newest generation, how far our stored progress is behind, and how long the log
that we have not read will still be there.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from connectors.cql.session import CqlSession, connect
from connectors.scylla.config import US, ScyllaConfig, Shard
from connectors.scylla.generations import Dialect, Generations, Told, log_ttl_s, read_dialect, read_log_options
from connectors.scylla.messages import lost, no_log, reset_hint
from connectors.scylla.progress import TableProgress, restored
from connectors.scylla.windows import log_start, verdict
from connectors.source import Finding, Position, StoredPosition
from connectors.stored import ask
from connectors.watching import SourceHealth, worst_first
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError, Retryable

STANDING_S = 30.0
"""So far behind the confidence window, and not moving, its connector is not just busy."""


class SeenLog(msgspec.Struct, frozen=True):
    """The log of a table at one moment, by the server's clock."""

    table: str
    told: Told
    ttl_s: int


class LogWatch:
    """Implements connectors.watching.Watching. Needs SELECT where the generations are told."""

    def __init__(self, config: ScyllaConfig, stored: StoredPosition | None, clock: Clock) -> None:
        self._config = config
        self._stored = stored
        self._clock = clock
        self._session: CqlSession | None = None
        self._dialect: Dialect | None = None
        self._reached: dict[str, int] = {}

    async def look(self) -> SourceHealth:
        if self._session is None:
            self._session = await connect(self._config)
        if self._dialect is None:
            self._dialect = await read_dialect(self._session, self._config)
        logs, findings = await self._logs(self._session, self._dialect)
        positions, unknown = await self._positions()
        reached = slowest(positions, self._config.tables) if unknown is None else {}
        if unknown is None:
            findings += [one for log in logs for one in self._judged(log, reached.get(log.table))]
        else:
            findings.append(unknown)
        health = log_health(self._config, logs, reached)
        return msgspec.structs.replace(health, findings=worst_first(findings or [_FINE]))

    async def close(self) -> None:
        session, self._session, self._dialect = self._session, None, None
        if session is not None:
            await session.close()

    async def _positions(self) -> tuple[list[Position | None], Finding | None]:
        """Of all processes that share the streams, or why one of them is not known."""
        found = []
        for name in _position_names(self._config):
            position, unknown = await ask(self._stored, name)
            if unknown is not None:
                return [], unknown
            found.append(position)
        return found, None

    async def _logs(self, session: CqlSession, dialect: Dialect) -> tuple[list[SeenLog], list[Finding]]:
        generations = Generations(session, self._config, dialect, self._clock)
        logs, findings = [], []
        for table in self._config.tables:
            try:
                told = await generations.told(table)
                ttl_s = log_ttl_s(self._config, await read_log_options(session, self._config, table, dialect))
            except Retryable:
                raise
            except CtxpipeError as error:  # a right that is missing, tables that are not there
                keyspace, user = self._config.metadata.keyspace, self._config.user or "USER"
                mend = f"GRANT SELECT ON KEYSPACE {keyspace} TO {user};"
                findings.append(Finding("unfit", f"generations of {table}", str(error), mend))
            else:
                logs.append(SeenLog(table, told, ttl_s))
        return logs, findings

    def _judged(self, log: SeenLog, progress: TableProgress | None) -> list[Finding]:
        before_us = self._reached.get(log.table)
        if progress is not None:
            self._reached[log.table] = progress.until_us
        moves = before_us is None or progress is None or progress.until_us > before_us
        return log_findings(self._config, log, progress, moves=moves)


def log_health(config: ScyllaConfig, logs: Sequence[SeenLog], reached: dict[str, TableProgress]) -> SourceHealth:
    """The figures, of the table that is worst off."""
    newest = [max(log.told.generations_ms) for log in logs if log.told.generations_ms]
    read = [(log, reached[log.table].until_us) for log in logs if log.table in reached]
    ttls = [log.ttl_s for log in logs if log.ttl_s]
    headrooms = [(until - log_start(log.told.seen_us, log.ttl_s)) / US for log, until in read if log.ttl_s]
    return SourceHealth(
        source=config.name,
        connector="scylla",
        up=True,
        floor_s=config.confidence_window_s,
        generation_s=max(newest) / 1000 if newest else None,
        unread_s=max((max(log.told.seen_us - until, 0) / US for log, until in read), default=None),
        headroom_s=max(min(headrooms), 0.0) if headrooms else None,
        log_ttl_s=float(min(ttls)) if ttls else None,
    )


def log_findings(config: ScyllaConfig, log: SeenLog, progress: TableProgress | None, *, moves: bool) -> list[Finding]:
    """Of one table. `moves`: its progress is another than at the last look, or this is the first."""
    subject, told = f"log of {config.keyspace}.{log.table}", log.told
    start = f"ctxpipe connect {config.name}"
    if told.log_id is None:
        return [Finding("unfit", subject, no_log(config, log.table))]
    if not told.generations_ms:
        message = "no generation is told yet; the first comes about a minute after the cluster started"
        return [Finding("warning", subject, message)]
    if progress is None:
        return [Finding("warning", subject, "the connector has not begun to read it", f"Is `{start}` running?")]
    if progress.id != told.log_id:
        message = f"it is another one than the position's: it was dropped and made anew.{reset_hint(config)}"
        return [Finding("unfit", subject, message, f"{start} --reset")]
    oldest_us = log_start(told.seen_us, log.ttl_s)
    found = verdict(progress.until_us, progress.generation_ms, told.generations_ms, oldest_us)
    if found != "readable":
        message = str(lost(config, log.table, found, (oldest_us - progress.until_us) // US))
        return [Finding("unfit", subject, message, f"{start} --reset")]
    behind_s = (told.seen_us - progress.until_us) / US - config.confidence_window_s
    if behind_s <= STANDING_S:
        return []
    if moves:
        return [Finding("note", subject, f"it is read up to {behind_s:.0f} s before the confidence window, and moves")]
    message = f"it is read up to {behind_s:.0f} s before the confidence window, and that does not move"
    return [Finding("unfit", subject, message, f"Is `{start}` running?")]


def slowest(positions: Sequence[Position | None], tables: Sequence[str]) -> dict[str, TableProgress]:
    """Of several processes that share the streams, by table; without those that one of them has not begun."""
    found: dict[str, TableProgress] = {}
    for table in tables:
        begun = [
            restored(position["tables"][table])
            for position in positions
            if position is not None and table in position.get("tables", {})
        ]
        if begun and len(begun) == len(positions):
            found[table] = min(begun, key=lambda one: one.until_us)
    return found


def _position_names(config: ScyllaConfig) -> list[str]:
    of = config.shard.of
    return [config.model_copy(update={"shard": Shard(number=one, of=of)}).position_name for one in range(of)]


_FINE = Finding("ok", "log", "is read, as far as the confidence window lets it")
