"""Postgres as a connector that the registry finds: the source with everything that is told of it beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from connectors.postgres.checks import CheckedPostgres, check_position, table_columns
from connectors.postgres.config import PostgresConfig
from connectors.postgres.fan_out import measure_fan_out
from connectors.postgres.slot_watch import SlotWatch
from connectors.postgres.source import PostgresSource, reset_position
from connectors.registry import Plugin
from connectors.source import Finding, Position, ShowProgress, StoredPosition
from pipeline.core.clock import Clock
from schemas.context import ContextSpec
from schemas.fan_out import FanOut


class PluggedPostgres(PostgresSource):
    """Adds what is asked beside the stream: Checking, PositionChecking, Describing, MeasuringFanOut, Resetting,
    Watched."""

    def show_progress(self, show: ShowProgress) -> None:
        self._progress = show

    def reset_position(self) -> Position:
        return reset_position()

    async def check(self) -> list[Finding]:
        return await CheckedPostgres(self.config).check()

    async def check_position(self, position: Position | None) -> list[Finding]:
        return await check_position(self.config, position)

    async def describe(self, tables: Sequence[str]) -> dict[str, list[str] | None]:
        return await table_columns(self.config, list(tables))

    async def measure_fan_out(self, spec: ContextSpec) -> dict[str, FanOut]:
        return await measure_fan_out(self.config.dsn.get_secret_value(), spec, self.name)

    def watch(self, stored: StoredPosition | None, clock: Clock) -> SlotWatch:
        return SlotWatch(self.config, stored, clock)


PLUGIN = Plugin(
    name="postgres",
    summary="Tables of a Postgres database: a snapshot, then every change from its log, in commit order.",
    config=PostgresConfig,
    source=PluggedPostgres,
)
