"""A context stream without stages: what the transport tests run, with a flow that only notes what it got."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.report import BatchReport
from pipeline.stores.memory import MemoryMarks
from pipeline.stores.store import MarkStore, Partition, ShardChanged
from pipeline.streams.app import ContextApp, ContextStream, OpenContext, build_app
from pipeline.streams.worker_app import StreamSettings
from schemas.bundle import UnitKey
from schemas.record import Record
from schemas.topics import consumer_group

_numbers = itertools.count(1)


def new_name(kind: str) -> str:
    """A name that no other test of this or another run uses."""
    return f"{kind}_{os.getpid()}_{next(_numbers)}"


class NotingFlow:
    """Notes every record that was handled to the end. `before` runs first and may block or raise."""

    def __init__(self, before: Callable[[Sequence[Record]], Awaitable[BatchReport | None]] | None = None) -> None:
        self.before = before
        self.seen: list[tuple[str, int, int]] = []
        self.rebuilt: list[UnitKey] = []

    async def process(self, records: Sequence[Record]) -> BatchReport:
        report = await self.before(records) if self.before is not None else None
        self.seen += [(record.topic, record.partition, record.offset) for record in records]
        return report or BatchReport(events=len(records))

    async def rebuild(self, keys: Sequence[UnitKey]) -> BatchReport:
        self.rebuilt += keys
        return BatchReport()

    def offsets(self, partition: Partition) -> list[int]:
        """Handled offsets of a partition, in the order of handling."""
        return [offset for topic, number, offset in self.seen if (topic, number) == partition]


class IdentityMarks(MemoryMarks):
    """Marks on one shard that can lose its memory of the newest writes, as Redis does."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = self._accepted = 1
        self.refusal: Exception | None = None
        self.writes = 0
        self.reads = 0

    def restart(self, surviving: Mapping[Partition, int]) -> None:
        """Another process answers now, with older marks."""
        self.identity += 1
        self.offsets = dict(surviving)

    async def write_marks(self, offsets: Mapping[Partition, int]) -> None:
        if self.refusal is not None:
            raise self.refusal
        if self.identity != self._accepted:
            raise ShardChanged("another process answers")
        self.writes += 1
        await super().write_marks(offsets)

    async def read_marks(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        self.reads += 1
        self._accepted = self.identity
        return await super().read_marks(partitions)


def make_app(
    bootstrap: str, context: str, topics: Sequence[str], flow: Any, marks: MarkStore, **settings: Any
) -> ContextApp:
    """An app whose fatal errors are noted in `app.ended` instead of ending the test process."""
    promoted = asyncio.Event()

    async def open_context() -> OpenContext:
        async def promote() -> None:
            promoted.set()

        async def close() -> None:
            return None

        return OpenContext(flow, marks, promote, close)

    app = build_app(
        ContextStream(context, 1, topics, open_context),
        StreamSettings(
            bootstrap, **{"commit_interval_s": 0.1, "session_timeout_s": 6.0, "batch_grace_s": 1.0, **settings}
        ),
    )
    app.ended = []
    app.promoted = promoted
    app.end_process = app.ended.append
    return app


@asynccontextmanager
async def running(app: ContextApp) -> AsyncIterator[ContextApp]:
    """The app, started, and stopped in order afterwards."""
    try:
        await app.start()
        yield app
    finally:
        await app.stop()


async def make_topic(bootstrap: str, topic: str, partitions: int = 1, **config: str) -> None:
    """Creates a topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=config)])
    finally:
        await admin.close()


async def produce(bootstrap: str, topic: str, count: int, partitions: int = 1, **settings: Any) -> None:
    """`count` records round robin over the partitions, durable on return."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, **settings) as producer:
        sends = [
            await producer.send(topic, b"value %d" % number, key=b"key %d" % number, partition=number % partitions)
            for number in range(count)
        ]
        await asyncio.gather(*sends)


async def read_all(bootstrap: str, topic: str) -> list[Any]:
    """Every record of a topic."""
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest"
    ) as consumer:
        partitions = sorted(consumer.assignment())
        assert partitions, f"no topic {topic}"
        ends = await consumer.end_offsets(partitions)
        found: list[Any] = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found


async def committed(bootstrap: str, context: str) -> dict[Partition, int]:
    """Kafka's commits of the context's group."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(consumer_group(context, 1))
    finally:
        await admin.close()
    return {(tp.topic, tp.partition): found.offset for tp, found in offsets.items()}
