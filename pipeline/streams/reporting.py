"""Shows workers in the metrics: what each batch did and how long it took, what waits, how far behind they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

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
        self._watermarks_us: dict[str, int] = {}

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

    def watermarks(self, times_us: Mapping[str, int]) -> None:
        """By source, 0 unknown. The age is that of the moment when somebody looks, so that it grows when nothing
        comes."""
        for source, time_us in times_us.items():
            if time_us and source not in self._watermarks_us:
                age_s = partial(self._watermark_age_s, source)
                metrics.watermark_age_seconds.labels(self._context, source).set_function(age_s)
        for source in [source for source in self._watermarks_us if not times_us.get(source)]:
            metrics.watermark_age_seconds.remove(self._context, source)
        self._watermarks_us = {source: time_us for source, time_us in times_us.items() if time_us}

    def _watermark_age_s(self, source: str) -> float:
        now_us = self._clock.now_us()
        return max(0, now_us - self._watermarks_us.get(source, now_us)) / 1_000_000

    def retried(self) -> None:
        """A batch met an outage and is tried again."""
        self._retries.inc()

    def behind(self, finished: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
        """How far the assigned partitions are done, and where they end."""
        self._lag_records.set(sum(max(0, end - finished.get(partition, end)) for partition, end in ends.items()))


class SpaceMetrics:
    """The metrics of the workers of one embedding space. Counts are also kept here, for messages on the way."""

    def __init__(self, context: str, space: str) -> None:
        self._labels = (context, space)
        self._looked = metrics.embedding_bundles.labels(*self._labels)
        self._sent = metrics.embedding_texts.labels(*self._labels)
        self._spared = metrics.embedding_spared.labels(*self._labels)
        self._vectors = metrics.embedding_vectors.labels(*self._labels)
        self._pieces = metrics.embedding_pieces.labels(*self._labels)
        self._cut = metrics.embedding_cut.labels(*self._labels)
        self._refused = metrics.embedding_refused.labels(*self._labels)
        self._retries = metrics.embedding_retries.labels(*self._labels)
        self._seconds = metrics.embedding_seconds.labels(*self._labels)
        self._cost = metrics.embedding_cost.labels(*self._labels)
        self._lag_records = metrics.embedding_lag_records.labels(*self._labels)
        self.bundles = self.texts = self.vectors = 0
        self.behind_records = 0

    def looked(self, bundles: int, texts: int, cut: int) -> None:
        """So many bundles were looked at, and so many of their texts were new; `cut` of these were too long."""
        self.bundles += bundles
        self.texts += texts
        self._looked.inc(bundles)
        self._sent.inc(texts)
        self._cut.inc(cut)

    def spared(self, texts: int) -> None:
        """Texts that needed no embedding: a newer one follows, or their vector is there."""
        self._spared.inc(texts)

    def embedded(self, texts: int, pieces: int, cut: int, duration_s: float, cost: float | None) -> None:
        """`cut` of the texts have tokens in no vector; `cost` of everything so far, None unknown."""
        self.vectors += texts
        self._vectors.inc(texts)
        self._pieces.inc(pieces)
        self._cut.inc(cut)
        self._seconds.observe(duration_s)
        if cost is not None:
            self._cost.set(cost)

    def refused(self, texts: int) -> None:
        """Texts that will never have a vector."""
        self._refused.inc(texts)

    def retried(self) -> None:
        """A batch met an outage or a throttled engine and is tried again."""
        self._retries.inc()

    def behind(self, finished: Mapping[Partition, int], ends: Mapping[Partition, int]) -> None:
        """As WorkerMetrics.behind."""
        self.behind_records = sum(max(0, end - finished.get(partition, end)) for partition, end in ends.items())
        self._lag_records.set(self.behind_records)
