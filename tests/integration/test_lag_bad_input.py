"""What a cluster does to whoever watches it: deleted topics, brokers that are away, offsets set anywhere, gaps, clocks
that differ, a rebalance during a look. A sensible status each time, no negative lag, no NaN, no crash."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from pipeline.core import metrics
from pipeline.ops.lag.collector import Collector
from pipeline.ops.lag.model import OK, REWIND, STOP, UNKNOWN, GroupLag
from pipeline.ops.lag.publishing import LagMetrics
from pipeline.ops.lag.windows import Rules
from tests.support.eventually import eventually
from tests.support.lag_kafka import DESCRIBE, GROUP, READ, TOPIC, GuardedKafka
from tests.support.lag_world import Consumer, collecting, commit, numbers_in, partitions_of, writing
from tests.support.servers import LocalRoot
from tests.support.streams import make_topic, new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def own_kafka(local_root: LocalRoot) -> Iterator[GuardedKafka]:
    """It cleans its logs at once, and may be paused and killed."""
    settings = {"log.cleaner.backoff.ms": "200"}
    server = GuardedKafka(**local_root.place("guarded-kafka"), heap_mib=384, settings=settings)
    yield server
    server.resume()
    server.kill()
    server.remove_data()


@pytest.fixture
def guarded(own_kafka: GuardedKafka) -> GuardedKafka:
    if not own_kafka.answers():
        own_kafka.start()
    return own_kafka


async def look(collector: Collector, group: str) -> GroupLag | None:
    """One collection, with what is true of each of them."""
    report = await collector.collect()
    assert all(math.isfinite(number) for number in numbers_in(msgspec.to_builtins(report)))
    assert all((part.lag_records or 0) >= 0 for one in report.groups for part in partitions_of(one))
    return next((one for one in report.groups if one.group == group), None)


async def seen(
    collector: Collector, group: str, accepts: Callable[[GroupLag], Any], timeout_s: float = 30.0
) -> GroupLag:
    async def found() -> GroupLag | None:
        one = await look(collector, group)
        return one if one is not None and accepts(one) else None

    return await eventually(found, timeout_s=timeout_s)  # type: ignore[return-value]


async def test_offsets_set_anywhere_and_a_topic_deleted_live(kafka_bootstrap: str) -> None:
    topic, kept, group = new_name("orders"), new_name("kept"), new_name("readers")
    await make_topic(kafka_bootstrap, topic, 1)
    await make_topic(kafka_bootstrap, kept, 1)
    async with writing(kafka_bootstrap, topic) as writer, writing(kafka_bootstrap, kept) as other:
        await writer.write(100)
        await other.write(10)
    async with collecting(kafka_bootstrap, group, shown=LagMetrics(partitions=True)) as collector:
        await commit(kafka_bootstrap, group, {(topic, 0): 60, (kept, 0): 10})
        found = await seen(collector, group, lambda one: one.status == STOP)
        assert (found.state, found.members, found.lag_records) == ("Empty", 0, 40), "a group without members"
        await commit(kafka_bootstrap, group, {(topic, 0): 5_000})
        found = await seen(collector, group, lambda one: one.status == REWIND)
        assert found.lag_records == 0 and "beyond its end" in found.reason
        assert f'ctxpipe_collector_clamped_total{{group="{group}"}}' in metrics.expose()[0].decode()
        await commit(kafka_bootstrap, group, {(topic, 0): 0})
        found = await seen(collector, group, lambda one: one.lag_records == 100)
        assert found.lag_s is not None and "source (waiting)" in [one.lag_basis for one in partitions_of(found)]

        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        await admin.start()
        try:
            await admin.delete_topics([topic])
        finally:
            await admin.close()
        found = await seen(collector, group, lambda one: [t.topic for t in one.topics] == [kept])
        assert (found.status, found.lag_records) == (OK, 0)
        assert topic not in metrics.expose()[0].decode(), "no series of a topic that is gone"
        collector._shown.show([], {}, {})  # type: ignore[union-attr]


async def test_a_compacted_topic_with_gaps_and_a_clock_that_is_ahead(guarded: GuardedKafka) -> None:
    kafka_bootstrap = guarded.address
    topic, group = new_name("rows"), new_name("readers")
    quick = {"segment.ms": "200", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "400"}
    await make_topic(kafka_bootstrap, topic, 1, **{"cleanup.policy": "compact", "min.compaction.lag.ms": "0", **quick})
    async with (
        AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer,
        collecting(kafka_bootstrap, group) as collector,
    ):
        for _ in range(50):
            await producer.send_and_wait(topic, b'{"source": {"ts_ms": 1000}}', key=b"same")
        await eventually(lambda: gap_at(producer, kafka_bootstrap, topic, 29), timeout_s=40, what="compaction")
        await commit(kafka_bootstrap, group, {(topic, 0): 30})
        found = await seen(collector, group, lambda one: bool(one.lag_records))
        assert partitions_of(found)[0].lag_basis == "source (waiting)", "the record before the commit is gone"
        assert found.lag_s == pytest.approx(time.time() - 1, abs=60) and found.headroom is None

        ahead_us = time.time_ns() // 1000 + 3_600_000_000
        record = json.dumps({"source": {"ts_us": ahead_us}}).encode()
        sent = await producer.send_and_wait(topic, record, key=b"ahead")
        await producer.send_and_wait(topic, record, key=b"ahead too")
        await commit(kafka_bootstrap, group, {(topic, 0): sent.offset + 1})
        found = await seen(collector, group, lambda one: one.lag_records == 1)
        (one,) = partitions_of(found)
        assert one.lag_basis == "record" and one.lag_s is not None and 0 <= one.lag_s < 60
        assert one.clock_ahead_s == pytest.approx(3600, abs=60), "the source's clock is told"


async def gap_at(producer: AIOKafkaProducer, bootstrap: str, topic: str, offset: int) -> bool:
    """Whether compaction has taken this record away; writes one more, so that segments end."""
    await producer.send_and_wait(topic, b'{"source": {"ts_ms": 1000}}', key=b"same")
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), offset)
        return (await consumer.getone()).offset > offset


async def test_a_look_during_a_rebalance(kafka_bootstrap: str, tmp_path: Path) -> None:
    topic, group = new_name("orders"), new_name("readers")
    await make_topic(kafka_bootstrap, topic, 4)
    first = Consumer(tmp_path, kafka_bootstrap, topic, group, 2_000)
    second: Consumer | None = None
    try:
        async with collecting(kafka_bootstrap, group) as collector, writing(kafka_bootstrap, topic, 4) as writer:
            await writer.write(40)
            await seen(collector, group, lambda one: bool(one.topics) and not one.lag_records)
            first.freeze()  # it can't answer: the rebalance that the second begins lasts until it is thrown out
            second = Consumer(tmp_path / "..", kafka_bootstrap, topic, group, 2_000)
            await writer.write(40)
            found = await seen(collector, group, lambda one: one.rebalancing)
            assert found.status in (OK, UNKNOWN) and found.lag_records == 40, "frozen, with lag as it is"
            first.resume()
            found = await seen(collector, group, lambda one: one.members == 2 and not one.lag_records)
            assert found.changes >= 1 and partitions_of(found)[0].status == OK
    finally:
        for one in (first, second):
            if one is not None:
                one.end()


async def test_rights_to_describe_and_read_are_enough_and_a_broker_may_go_away(guarded: GuardedKafka) -> None:
    topic, group = new_name("orders"), new_name("readers")
    await make_topic(guarded.address, topic, 1)
    async with writing(guarded.address, topic) as writer:
        await writer.write(10)
    await commit(guarded.address, group, {(topic, 0): 6})
    await commit(guarded.address, new_name("readers"), {(topic, 0): 6})
    rules = Rules(interval_s=0.2, commit_interval_s=0.5)
    where = guarded.guarded_address
    async with collecting(where, group, timeout_s=1.0, rules=rules, security=guarded.login) as collector:
        await guarded.grant([(GROUP, group, DESCRIBE), (TOPIC, topic, DESCRIBE)])
        found = await seen(collector, group, lambda one: one.status == STOP)
        assert (found.lag_records, found.lag_s) == (4, None) and "TopicAuthorizationFailed" in found.lag_problem
        assert collector.report is not None and len(collector.report.groups) == 1, "what we may not see is not there"
        await guarded.grant([(TOPIC, topic, READ)])
        found = await seen(collector, group, lambda one: one.lag_s is not None)
        assert partitions_of(found)[0].lag_basis == "source"

        guarded.pause()
        began_s = time.monotonic()
        gone = await look(collector, group)
        assert time.monotonic() - began_s < 15, "a broker that hangs holds nothing up"
        assert gone is not None and (gone.status, gone.lag_s) == (UNKNOWN, None) and gone.reason
        report = collector.report
        assert not report.collector.parts[0].up and report.findings[0].severity == "wrong"
        guarded.resume()
        await seen(collector, group, lambda one: one.status == STOP, 60.0)
        await asyncio.to_thread(guarded.kill)
        gone = await look(collector, group)
        assert gone is not None and gone.status == UNKNOWN
