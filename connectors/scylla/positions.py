"""Whether a stored position can be gone on from, and what a person is told where it can't, or where a table is gone."""

from __future__ import annotations

from connectors.scylla.config import US, ScyllaConfig
from connectors.scylla.generations import Told
from connectors.scylla.messages import lost, reset_hint
from connectors.scylla.progress import TableProgress
from connectors.scylla.windows import verdict
from connectors.source import Position
from pipeline.core.errors import PositionLost


def require_readable(config: ScyllaConfig, table: str, progress: TableProgress, told: Told, oldest_us: int) -> None:
    """Raises PositionLost."""
    if progress.id != told.log_id:
        what = f"The log of {config.keyspace}.{table} is another one than the position's: it was dropped and made anew."
        raise PositionLost(what + reset_hint(config))
    found = verdict(progress.until_us, progress.generation_ms, told.generations_ms, oldest_us)
    if found != "readable":
        raise lost(config, table, found, (oldest_us - progress.until_us) // US)


def require_ours(config: ScyllaConfig, position: Position) -> None:
    """Raises PositionLost for a position of another keyspace, or of another share of the streams."""
    if position["keyspace"] != config.keyspace:
        what = f"The position of {config.name} is of the keyspace {position['keyspace']}, not of {config.keyspace}."
        raise PositionLost(what + reset_hint(config))
    if position["shard"] != [config.shard.number, config.shard.of]:
        number, of = position["shard"]
        what = (
            f"The position of {config.name} is of process {number} of {of}, and the streams are shared otherwise now."
        )
        raise PositionLost(what + reset_hint(config))
