"""Ends a worker that no longer gets on: Kafka clients have been seen to stay in a group and read nothing for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.stores.store import Partition


@dataclass(frozen=True, slots=True)
class Sample:
    """How far the worker is: committed and end offsets of its partitions. `excuse` says why standing still is right."""

    committed: Mapping[Partition, int]
    ends: Mapping[Partition, int]
    excuse: str = ""
    rebalancing: bool = False


@dataclass(slots=True)
class Watchdog:
    """Judges samples; pure but for the times that it is told. A partition is stuck when it had lag and its committed
    offset did not move for `limit_s`; the worker is, when no sample came for that long or a rebalance lasted longer."""

    limit_s: float
    _moved: dict[Partition, tuple[int, float]] = field(default_factory=dict)
    _sampled_s: float | None = None
    _rebalancing_since_s: float | None = None

    def sample(self, now_s: float, sample: Sample) -> None:
        """Takes a sample, every few seconds."""
        self._sampled_s = now_s
        if not sample.rebalancing:
            self._rebalancing_since_s = None
        elif self._rebalancing_since_s is None:
            self._rebalancing_since_s = now_s
        if sample.excuse or sample.rebalancing:
            self._moved = {}
            return
        moved: dict[Partition, tuple[int, float]] = {}
        for partition, committed in sample.committed.items():
            before, since_s = self._moved.get(partition, (committed, now_s))
            stands = before == committed and sample.ends.get(partition, 0) > committed
            moved[partition] = (committed, since_s if stands else now_s)
        self._moved = moved

    def problem(self, now_s: float) -> str:
        """The same without beginning to count: nothing while no sample has come."""
        return "" if self._sampled_s is None else self.verdict(now_s) or ""

    def verdict(self, now_s: float) -> str | None:
        """Why the worker must end; None while all is well."""
        if self._sampled_s is None:
            self._sampled_s = now_s
        if now_s - self._sampled_s > self.limit_s:
            return f"the event loop has not answered for {now_s - self._sampled_s:.0f} s"
        if self._rebalancing_since_s is not None and now_s - self._rebalancing_since_s > self.limit_s:
            return f"a rebalance has lasted {now_s - self._rebalancing_since_s:.0f} s"
        for (topic, partition), (committed, since_s) in self._moved.items():
            stands_s = now_s - since_s
            if stands_s > self.limit_s:
                return f"{topic}/{partition} stands at offset {committed} for {stands_s:.0f} s, with records after it"
        return None


def watch(
    watchdog: Watchdog, now_s: Callable[[], float], end: Callable[[str], None], stop: threading.Event, every_s: float
) -> threading.Thread:
    """Looks at the verdict from a thread of its own, so that a blocked event loop does not hide itself."""

    def look() -> None:
        while not stop.wait(every_s):
            reason = watchdog.verdict(now_s())
            if reason is not None:
                end(reason)
                return

    thread = threading.Thread(target=look, name="ctxpipe-watchdog", daemon=True)
    thread.start()
    return thread
