"""Real consumers, a producer that knows when each record was committed at its source, and a collector that looks often:
what the tests of lag share."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from pipeline.ops.lag.collector import Collector, Settings
from pipeline.ops.lag.judging import Judge, Watched
from pipeline.ops.lag.model import GroupLag, PartitionLag, Report
from pipeline.ops.lag.publishing import LagMetrics
from pipeline.ops.lag.sampling import Sampler
from pipeline.ops.lag.windows import Rules
from tests.support.cli import ROOT

INTERVAL_S = 0.2


class Consumer:
    """A process of tests.support.lag_consumer. `session_timeout_ms`: so long the group keeps it when it is frozen."""

    def __init__(
        self, folder: Path, bootstrap: str, topic: str, group: str, rate: float, session_timeout_ms: int = 10_000
    ) -> None:
        self._rate, self.log = folder / f"{group}.rate", folder / f"{group}.log"
        self.rate(rate)
        words = [bootstrap, topic, group, str(self._rate), str(self.log), str(session_timeout_ms)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.lag_consumer", *words], cwd=ROOT, stderr=subprocess.DEVNULL
        )

    def rate(self, records_per_s: float) -> None:
        self._rate.write_text(str(records_per_s))

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)

    def committed(self) -> list[tuple[int, int, int]]:
        """(microseconds since 1970, partition, offset) of every commit."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines()
        return [(int(at), int(partition), int(offset)) for at, partition, offset in map(str.split, lines)]


class Writer:
    """Writes envelopes whose source's commit lies `before_s` earlier than their way into Kafka, and knows of each."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: int = 1, before_s: float = 0.0) -> None:
        self._producer, self._topic, self._partitions, self._before_s = producer, topic, partitions, before_s
        self.times_us: dict[int, list[int]] = {number: [] for number in range(partitions)}
        """By partition: the source's commit time of every offset."""

    async def write(self, count: int) -> None:
        sent = []
        for number in range(count):
            partition = number % self._partitions
            time_us = time.time_ns() // 1000 - int(self._before_s * 1e6)
            self.times_us[partition].append(time_us)
            source = {"connector": "postgresql", "ts_ms": time_us // 1000, "ts_us": time_us}
            value = json.dumps({"before": None, "after": {"id": number}, "source": source, "op": "c"}).encode()
            key = json.dumps({"id": number}).encode()
            sent.append(await self._producer.send(self._topic, value, key=key, partition=partition))
        await asyncio.gather(*sent)

    async def steadily(self, records_per_s: float, duration_s: float) -> None:
        began_s, written = time.monotonic(), 0
        while (passed_s := time.monotonic() - began_s) < duration_s:
            due = int(passed_s * records_per_s) - written
            if due > 0:
                await self.write(due)
                written += due
            await asyncio.sleep(0.02)


@asynccontextmanager
async def writing(bootstrap: str, topic: str, partitions: int = 1, before_s: float = 0.0) -> AsyncIterator[Writer]:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=5) as producer:
        yield Writer(producer, topic, partitions, before_s)


@asynccontextmanager
async def collecting(
    bootstrap: str,
    group: str,
    *,
    expected: Mapping[str, tuple[str, ...]] | None = None,
    timeout_s: float = 5.0,
    rules: Rules | None = None,
    shown: LagMetrics | None = None,
    security: Mapping[str, str] | None = None,
) -> AsyncIterator[Collector]:
    """Watches the groups that begin with this name."""
    rules = rules or Rules(interval_s=INTERVAL_S, commit_interval_s=0.5)
    watched = Watched((f"{group}*",), expected=expected or {})
    topics = tuple(topic for topics in watched.expected.values() for topic in topics)
    settings = Settings(INTERVAL_S, timeout_s, has=watched.has, expected_topics=topics)
    sampler = Sampler(bootstrap, timeout_s=timeout_s, **(security or {}))
    collector = Collector(sampler, Judge(rules, watched), settings, shown=shown)
    try:
        yield collector
    finally:
        await collector.close()


class Watch:
    """Collects every INTERVAL_S beside the test and keeps every report."""

    def __init__(self, collector: Collector, group: str) -> None:
        self._collector, self._group = collector, group
        self.reports: list[Report] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Watch]:
        stop = asyncio.Event()
        task = asyncio.create_task(self._run(stop))
        try:
            yield self
        finally:
            stop.set()
            await task

    async def _run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            began_s = time.monotonic()
            self.reports.append(await self._collector.collect())
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.01, INTERVAL_S - (time.monotonic() - began_s)))

    def groups(self, since: int = 0) -> list[GroupLag]:
        return [one for report in self.reports[since:] for one in report.groups if one.group == self._group]

    async def until(
        self, accepts: Callable[[GroupLag], bool], what: str, timeout_s: float = 30.0, since: int | None = None
    ) -> GroupLag:
        """The first group from now on that is accepted."""
        looked, limit_s = len(self.reports) if since is None else since, time.monotonic() + timeout_s
        while time.monotonic() < limit_s:
            for group in self.groups(looked):
                if accepts(group):
                    return group
            await asyncio.sleep(0.05)
        last = [(one.status, one.reason, one.state, one.lag_records, one.lag_s) for one in self.groups()[-5:]]
        raise AssertionError(f"{what}: not within {timeout_s:.0f} s; the last were {last}")


def partitions_of(group: GroupLag) -> list[PartitionLag]:
    return [one for topic in group.topics for one in topic.partitions]


async def commit(bootstrap: str, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
    """Sets a group's offsets, as a person does by a tool; nobody may be in it."""
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False) as consumer:
        consumer.assign([TopicPartition(*partition) for partition in offsets])
        await consumer.commit({TopicPartition(*partition): offset for partition, offset in offsets.items()})


def numbers_in(value: Any) -> Iterable[float]:
    """All numbers of a JSON document."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)
