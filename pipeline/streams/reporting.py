"""Shows a worker in the metrics: what each batch did and how long it took, what waits, how far behind it is."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.core import metrics
from pipeline.core.clock import Clock, SystemClock
from pipeline.report import BatchReport
from pipeline.stores.store import Partition


class WorkerMetrics:
    """The worker metrics of one context; cheap enough to be told of every batch."""

    def __init__(self, context: str, clock: Clock | None = None) -> None:
        self._context, self._clock = context, clock or SystemClock()
        self._batches = metrics.worker_batches.labels(context)
        self._events = metrics.worker_events.labels(context)
        self._stale = metrics.worker_stale.labels(context)
        self._bundles = metrics.worker_bundles.labels(context, "bundle")
        self._fragments = metrics.worker_bundles.labels(context, "fragment")
        self._dead_letters = metrics.worker_dead_letters.labels(context)
        self._round_trips = metrics.worker_round_trips.labels(context)
        self._retries = metrics.worker_retries.labels(context)
        self._fan_out_keys = metrics.worker_fan_out_keys.labels(context)
        self._batch_records = metrics.worker_batch_records.labels(context)
        self._batch_seconds = metrics.worker_batch_seconds.labels(context)
        self._lag_records = metrics.worker_lag_records.labels(context)

    def stored(self, records: int, report: BatchReport, duration_s: float) -> None:
        """A batch of so many records is durable."""
        self._batches.inc()
        self._batch_records.observe(records)
        self._batch_seconds.observe(duration_s)
        self._events.inc(report.events)
        self._stale.inc(report.stale)
        self._bundles.inc(report.bundles_written)
        self._fragments.inc(report.fragments_written)
        self._dead_letters.inc(len(report.dead_letters))
        self._round_trips.inc(report.round_trips)
        self._fan_out_keys.inc(sum(map(len, report.fan_out)))
        now_us = self._clock.now_us()
        for applied in report.applied.values():
            if applied.commit_time_us:
                age_s = max(0, now_us - applied.commit_time_us) / 1_000_000
                metrics.worker_applied_age_seconds.labels(self._context, applied.source).set(age_s)

    def retried(self) -> None:
        """A batch met an outage and is tried again."""
        self._retries.inc()

    def behind(self, finished: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
        """How far the assigned partitions are done, and where they end."""
        self._lag_records.set(sum(max(0, end - finished.get(partition, end)) for partition, end in ends.items()))
