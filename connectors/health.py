"""Whether a connector has read its source once, and brings to Kafka what it reads: checks (pipeline.core.health)."""

from __future__ import annotations

import time
from collections.abc import Callable

from connectors.runtime import Runtime
from connectors.source import ShowProgress
from pipeline.core.health import Health

STANDS_S_MAX = 300.0
QUIET_S = 5.0
"""An open source from which nothing has come for so long has nothing to read for the first time."""


class FirstReading:
    """Takes the place of `show`, which it calls: which tables are being read from their beginning."""

    def __init__(self, show: ShowProgress) -> None:
        self._show = show
        self.unread: dict[str, str] = {}

    def __call__(self, table: str, rows: int, estimate: int) -> None:
        if rows < estimate:
            self.unread[table] = f"{table}: {rows} of about {estimate} rows are read"
        else:
            self.unread.pop(table, None)
        self._show(table, rows, estimate)


def watch_source(
    name: str, runtime: Runtime, reading: FirstReading, health: Health, now_s: Callable[[], float] = time.monotonic
) -> None:
    """Started: the source is open and its first snapshot in Kafka. Alive: what was read gets there, or is tried again;
    a source or a Kafka that is away is a note. It needs nothing of them to answer."""
    begun = False
    opened_s: float | None = None
    stands: tuple[int, float] = (-1, now_s())

    def first() -> str:
        nonlocal begun, opened_s
        begun = begun or not (waits := waits_for())
        return "" if begun else waits

    def waits_for() -> str:
        nonlocal opened_s
        statistics = runtime.statistics
        if not statistics.opened:
            return runtime.trouble or "it is being opened"
        opened_s = now_s() if opened_s is None else opened_s
        if reading.unread:
            return "; ".join(list(reading.unread.values()))
        quiet = not statistics.records_read and now_s() - opened_s > QUIET_S
        return "" if statistics.acknowledged or quiet else "nothing of it is in Kafka yet"

    def progress() -> str:
        nonlocal stands
        statistics, now = runtime.statistics, now_s()
        if not statistics.bytes_in_flight or statistics.records_delivered != stands[0]:
            stands = (statistics.records_delivered, now)
        for_s = now - stands[1]
        return f"what was read is not in Kafka after {for_s:.0f} s" if for_s > STANDS_S_MAX else ""

    health.check(f"source {name} read once", first, "startup")
    health.check(f"source {name} progress", progress, "live")
    health.check(f"source {name}", lambda: runtime.trouble, "note")
