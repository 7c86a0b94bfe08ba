"""Shows a running connector in the metrics: what was read and published, what waits, how old, how far behind; and, also
while its source is away and it waits, what the source's server tells."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

from connectors.runtime import Runtime
from connectors.source import Lag, Source
from connectors.watching import Watching, look, publish
from pipeline.core import metrics
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError

REPORT_INTERVAL_S = 2.0
LAG_EVERY = 5
"""The server is asked for the lag at every fifth report."""
WATCH_INTERVAL_S = 5.0


async def report(name: str, runtime: Runtime, clock: Clock, interval_s: float = REPORT_INTERVAL_S) -> None:
    """Runs until cancelled."""
    reports, records, published, retries = 0, 0, 0, 0
    operations, rows = Counter[str](), Counter[str]()
    metrics.connector_set_aside.labels(name)  # at zero: no alert sees the growth of a series that begins with 1
    while True:
        statistics = runtime.statistics
        metrics.connector_published_records.labels(name).inc(statistics.records_delivered - records)
        metrics.connector_published_bytes.labels(name).inc(statistics.bytes_delivered - published)
        metrics.connector_reconnects.labels(name).inc(statistics.retries - retries)
        records, published, retries = statistics.records_delivered, statistics.bytes_delivered, statistics.retries
        for operation, count in (statistics.operations - operations).items():
            metrics.connector_events.labels(name, operation).inc(count)
        for topic, count in (statistics.snapshot_rows - rows).items():
            metrics.connector_snapshot_rows.labels(name, topic.removeprefix(f"{name}.")).inc(count)
        operations, rows = statistics.operations.copy(), statistics.snapshot_rows.copy()
        metrics.connector_queue_bytes.labels(name).set(statistics.bytes_in_flight)
        if statistics.newest_commit_time_us:
            age_s = (clock.now_us() - statistics.newest_commit_time_us) / 1_000_000
            metrics.connector_commit_age_seconds.labels(name).set(age_s)
        if reports % LAG_EVERY == LAG_EVERY - 1 and statistics.acknowledged:
            await _report_lag(name, runtime.source)
        reports += 1
        await clock.sleep(interval_s)


async def report_source(name: str, watch: Watching, clock: Clock, interval_s: float = WATCH_INTERVAL_S) -> None:
    """Runs until cancelled, beside the connector and whatever becomes of it: a source that is away is told as away."""
    try:
        while True:
            publish(await look(name, watch))
            await clock.sleep(interval_s)
    finally:
        await watch.close()


async def _report_lag(name: str, source: Source | None) -> None:
    """Nothing while the source is away: the runtime says why, and the last figure is of another time."""
    if isinstance(source, Lag):
        with suppress(CtxpipeError):
            found = await source.lag()
            metrics.connector_position_lag_bytes.labels(name).set(found.unconfirmed_bytes)
            return
    metrics.connector_position_lag_bytes.remove_by_labels({"source": name})
