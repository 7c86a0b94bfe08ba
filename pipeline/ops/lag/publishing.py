"""Shows reports in the metrics, and takes away the series of groups, topics and partitions that are gone (R9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.core import metrics
from pipeline.ops.lag.model import OK, STATUSES, GroupLag, PartHealth, PartitionLag, TopicLag

Labels = tuple[str, ...]


class Series:
    """One gauge whose series are exactly those of the last `show`."""

    def __init__(self, gauge: Any) -> None:
        self._gauge = gauge
        self._shown: dict[Labels, Any] = {}

    def show(self, values: Iterable[tuple[Labels, float | None]]) -> None:
        """None: no such series."""
        shown: dict[Labels, Any] = {}
        for labels, value in values:
            if value is not None:
                child = self._shown.get(labels) or self._gauge.labels(*labels)
                child.set(value)
                shown[labels] = child
        for labels in self._shown.keys() - shown.keys():
            self._gauge.remove(*labels)
        self._shown = shown


class LagMetrics:
    """The ctxpipe_group_…, ctxpipe_partition_… and ctxpipe_collector_… series. `partitions`: each partition has its
    own, too; without it only those of partitions that are not OK."""

    def __init__(self, partitions: bool) -> None:
        self._partitions = partitions
        self._status = Series(metrics.group_status)
        self._members = Series(metrics.group_members)
        self._records = Series(metrics.group_lag_records)
        self._seconds = Series(metrics.group_lag_seconds)
        self._known = Series(metrics.group_lag_known)
        self._velocity = Series(metrics.group_velocity)
        self._catch_up = Series(metrics.group_catch_up_seconds)
        self._headroom = Series(metrics.group_headroom)
        self._partition_status = Series(metrics.partition_status)
        self._committed = Series(metrics.partition_committed)
        self._end = Series(metrics.partition_end)
        self._partition_records = Series(metrics.partition_lag_records)
        self._partition_seconds = Series(metrics.partition_lag_seconds)
        self._counted: set[str] = set()

    def show(self, groups: list[GroupLag], clamped: Mapping[str, int], rebalances: Mapping[str, int]) -> None:
        """All groups of a report; the counts are those since the last call."""
        self._status.show(
            ((group.group, status), float(status == group.status)) for group in groups for status in STATUSES
        )
        self._members.show(((group.group,), group.members) for group in groups)
        topics: list[tuple[Labels, TopicLag]] = [
            ((group.group, topic.topic), topic) for group in groups for topic in group.topics
        ]
        self._show_topics(topics)
        self._show_partitions(topics)
        names = {group.group for group in groups}
        for gone in self._counted - names:
            _forget(metrics.group_rebalances, gone)
            _forget(metrics.collector_clamped, gone)
        for name in names:
            metrics.group_rebalances.labels(name).inc(rebalances.get(name, 0))
            metrics.collector_clamped.labels(name).inc(clamped.get(name, 0))
        self._counted = names

    def parts(self, parts: list[PartHealth]) -> None:
        """R12: how collecting itself went."""
        for part in parts:
            metrics.collector_up.labels(part.part).set(part.up)
            metrics.collector_seconds.labels(part.part).set(part.duration_s)
            metrics.collector_cpu.labels(part.part).set(part.cpu_s)
            if part.success_at is not None:
                metrics.collector_success.labels(part.part).set(part.success_at)

    def _show_topics(self, topics: list[tuple[Labels, TopicLag]]) -> None:
        known = [(labels, topic) for labels, topic in topics if _is_known(topic)]
        self._records.show((labels, topic.lag_records) for labels, topic in known)
        self._seconds.show((labels, topic.lag_s) for labels, topic in topics)
        self._known.show((labels, float(topic.lag_s is not None)) for labels, topic in topics)
        self._velocity.show((labels, topic.velocity) for labels, topic in known)
        self._catch_up.show((labels, topic.catch_up_s) for labels, topic in known)
        self._headroom.show((labels, topic.headroom) for labels, topic in topics)

    def _show_partitions(self, topics: list[tuple[Labels, TopicLag]]) -> None:
        every = [((*labels, str(one.partition)), one) for labels, topic in topics for one in topic.partitions]
        self._partition_status.show(((*labels, one.status), 1.0) for labels, one in every if one.status != OK)
        if not self._partitions:
            return
        self._committed.show((labels, one.committed) for labels, one in every)
        self._end.show({labels[1:]: one.end for labels, one in every}.items())
        self._partition_records.show((labels, one.lag_records) for labels, one in every)
        self._partition_seconds.show((labels, one.lag_s) for labels, one in every)


def _is_known(topic: TopicLag) -> bool:
    """Some of its partitions were seen in this sample; a sum over nothing is no lag of zero."""
    return any(_seen(one) for one in topic.partitions)


def _seen(partition: PartitionLag) -> bool:
    return partition.lag_records is not None


def _forget(counter: Any, group: str) -> None:
    counter.remove(group)
