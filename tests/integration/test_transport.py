"""The record-batch transport against a real broker: what is delivered, what is committed, and when."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from pipeline.core.errors import PositionLost, Retryable
from pipeline.report import BatchReport, DeadLetter
from pipeline.stores.store import ShardChanged
from pipeline.streams.lanes import LaneLimits
from pipeline.streams.letters import decode_chunk, decode_letter
from pipeline.streams.publisher import Publisher
from schemas.bundle import UnitKey
from schemas.record import Record
from schemas.topics import dead_letter_topic, dirty_topic
from tests.support.eventually import eventually
from tests.support.streams import (
    IdentityMarks,
    NotingFlow,
    committed,
    make_app,
    make_topic,
    new_name,
    produce,
    read_all,
    running,
)

pytestmark = pytest.mark.servers


async def test_a_new_group_reads_everything_and_commits_to_the_end(kafka_bootstrap: str) -> None:
    context, topic = new_name("fresh"), new_name("t")
    await make_topic(kafka_bootstrap, topic, 3)
    await produce(kafka_bootstrap, topic, 300, 3)
    flow, marks = NotingFlow(), IdentityMarks()
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks)) as app:
        await eventually(lambda: len(flow.seen), lambda seen: seen == 300)
        commits = await eventually(
            lambda: committed(kafka_bootstrap, context),
            lambda found: [found.get((topic, number)) for number in range(3)] == [100, 100, 100],
        )
        await eventually(app.promoted.is_set)
    for number in range(3):
        assert flow.offsets((topic, number)) == list(range(100))
        assert marks.offsets[topic, number] == commits[topic, number] == 100
    assert app.ended == []


async def test_a_fetch_session_that_the_broker_forgot_loses_no_record(kafka_bootstrap: str) -> None:
    context, topic = new_name("session"), new_name("t")
    await make_topic(kafka_bootstrap, topic, 3)
    await produce(kafka_bootstrap, topic, 30, 3)
    flow, marks = NotingFlow(), IdentityMarks()
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks)) as app:
        await eventually(lambda: len(flow.seen), lambda seen: seen == 30)
        (session,) = app.consumer._thread._consumer._fetcher._client._sessions.values()
        assert session.session_id and session.epoch
        session.session_id += 1
        await produce(kafka_bootstrap, topic, 30, 3)
        await eventually(lambda: len(flow.seen), lambda seen: seen == 60)
        await produce(kafka_bootstrap, topic, 30, 3)
        await eventually(lambda: len(flow.seen), lambda seen: seen == 90)
    for number in range(3):
        assert flow.offsets((topic, number)) == list(range(30))


async def test_a_topic_that_the_group_did_not_know_when_it_was_formed_is_read_soon(kafka_bootstrap: str) -> None:
    """Metadata is asked for every five minutes; a topic made a moment before the start is not in it."""
    context, known, late = new_name("late"), new_name("t"), new_name("t")
    await make_topic(kafka_bootstrap, known)
    await produce(kafka_bootstrap, known, 5)
    flow = NotingFlow()
    app = make_app(kafka_bootstrap, context, [known, late], flow, IdentityMarks())

    async def believed() -> set[str]:
        return {known, late}

    app.kafka_topics.existing = believed
    async with running(app):
        await eventually(lambda: len(flow.seen), lambda seen: seen == 5)
        await make_topic(kafka_bootstrap, late, 2)
        await produce(kafka_bootstrap, late, 10, 2)
        await eventually(lambda: len(flow.seen), lambda seen: seen == 15)


async def test_a_handler_that_raises_gets_nothing_acknowledged(kafka_bootstrap: str) -> None:
    """The first batch of a new group, and one in the middle: both come again, and nothing behind them is committed."""
    context, topic = new_name("raises"), new_name("t")
    await make_topic(kafka_bootstrap, topic)
    await produce(kafka_bootstrap, topic, 30)
    raised = []

    async def before(records: Sequence[Record]) -> None:
        if len(raised) < 1 or (records[0].offset >= 10 and len(raised) < 2):
            assert all(offset <= records[0].offset for offset in marks.offsets.values())
            raised.append(records[0].offset)
            raise RuntimeError("nobody foresaw this")

    flow, marks = NotingFlow(before), IdentityMarks()
    limits = LaneLimits(batch_records_max=10)
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks, lane_limits=limits)) as app:
        await eventually(lambda: committed(kafka_bootstrap, context), lambda found: found.get((topic, 0)) == 30)
    assert raised[0] == 0 and len(app.ended) == 2
    assert sorted(set(flow.offsets((topic, 0)))) == list(range(30))
    assert flow.offsets((topic, 0))[-20:] == list(range(10, 30))


async def test_a_batch_cancelled_in_the_middle_is_read_again(kafka_bootstrap: str) -> None:
    context, topic = new_name("cancel"), new_name("t")
    await make_topic(kafka_bootstrap, topic)
    await produce(kafka_bootstrap, topic, 20)
    reached = asyncio.Event()

    async def hang(records: Sequence[Record]) -> None:
        if records[0].offset >= 10:
            reached.set()
            await asyncio.Event().wait()

    flow, marks, limits = NotingFlow(hang), IdentityMarks(), LaneLimits(batch_records_max=10)
    settings = {"lane_limits": limits, "batch_grace_s": 0.2}
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks, **settings)):
        await asyncio.wait_for(reached.wait(), 30)
    assert marks.offsets[topic, 0] == 10
    assert (await committed(kafka_bootstrap, context))[topic, 0] == 10
    flow.before = None
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks, **settings)):
        await eventually(lambda: marks.offsets[topic, 0], lambda mark: mark == 20)
    assert flow.offsets((topic, 0)) == list(range(20))


async def test_a_stop_lets_the_running_batch_finish_and_commits_it(kafka_bootstrap: str) -> None:
    context, topic = new_name("stop"), new_name("t")
    await make_topic(kafka_bootstrap, topic)
    await produce(kafka_bootstrap, topic, 5)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(records: Sequence[Record]) -> None:
        reached.set()
        await go_on.wait()

    flow, marks = NotingFlow(hold), IdentityMarks()
    app = make_app(kafka_bootstrap, context, [topic], flow, marks, batch_grace_s=30.0)
    await app.start()
    await asyncio.wait_for(reached.wait(), 30)
    stopping = asyncio.ensure_future(app.stop())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait_for(stopping, 20)
    assert flow.seen and marks.offsets[topic, 0] == flow.seen[-1][2] + 1
    assert (await committed(kafka_bootstrap, context))[topic, 0] == marks.offsets[topic, 0]


async def test_gaps_between_offsets_are_committed_over(kafka_bootstrap: str) -> None:
    """Transactions leave markers that are no records, as compaction leaves holes: also at the very end."""
    context, topic = new_name("gaps"), new_name("t")
    await make_topic(kafka_bootstrap, topic, **{"cleanup.policy": "compact"})
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=new_name("tx")) as producer:
        for number in range(5):
            async with producer.transaction():
                await producer.send_and_wait(topic, b"value", key=b"%d" % number, partition=0)
    flow, marks = NotingFlow(), IdentityMarks()
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks)) as app:
        await eventually(lambda: committed(kafka_bootstrap, context), lambda found: found.get((topic, 0)) == 10)
        await eventually(app.promoted.is_set)
    assert flow.offsets((topic, 0)) == [0, 2, 4, 6, 8]
    assert marks.offsets[topic, 0] == 10


async def test_kafka_commits_never_run_ahead_of_the_marks(kafka_bootstrap: str) -> None:
    context, topic = new_name("gate"), new_name("t")
    await make_topic(kafka_bootstrap, topic)
    await produce(kafka_bootstrap, topic, 50)
    flow, marks = NotingFlow(), IdentityMarks()
    marks.refusal = Retryable("the store is away")
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks)) as app:
        await eventually(lambda: len(flow.seen), lambda seen: seen == 50)
        await eventually(lambda: app.consumer.in_outage)
        assert (topic, 0) not in await committed(kafka_bootstrap, context)
        marks.refusal = None
        await eventually(lambda: committed(kafka_bootstrap, context), lambda found: found.get((topic, 0)) == 50)
        assert marks.offsets[topic, 0] == 50
    assert flow.offsets((topic, 0)) == list(range(50))


async def test_partitions_start_at_their_marks_not_at_kafkas_commit(kafka_bootstrap: str) -> None:
    context, topic = new_name("seek"), new_name("t")
    await make_topic(kafka_bootstrap, topic, 3)
    await produce(kafka_bootstrap, topic, 60, 3)
    marks = IdentityMarks()
    async with running(make_app(kafka_bootstrap, context, [topic], NotingFlow(), marks)):
        await eventually(lambda: committed(kafka_bootstrap, context), lambda found: found.get((topic, 2)) == 20)
    marks.offsets = {(topic, 0): 12, (topic, 1): 20}
    flow = NotingFlow()
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks)):
        await eventually(lambda: marks.offsets.get((topic, 2)), lambda mark: mark == 20)
        await eventually(lambda: marks.offsets.get((topic, 0)), lambda mark: mark == 20)
    assert flow.offsets((topic, 0)) == list(range(12, 20))
    assert flow.offsets((topic, 1)) == []
    assert flow.offsets((topic, 2)) == list(range(20))


@pytest.mark.parametrize("noticed_by", ["marks", "flow"])
async def test_a_shard_that_lost_its_newest_writes_is_read_again(kafka_bootstrap: str, noticed_by: str) -> None:
    context, topic = new_name("shard"), new_name("t")
    await make_topic(kafka_bootstrap, topic)
    await produce(kafka_bootstrap, topic, 40)
    flow, marks = NotingFlow(), IdentityMarks()
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks)) as app:
        await eventually(lambda: committed(kafka_bootstrap, context), lambda found: found.get((topic, 0)) == 40)
        known, flow.seen = marks.identity, []
        marks.restart({(topic, 0): 25})

        async def refuse(records: Sequence[Record]) -> None:
            if marks._accepted == known:
                raise ShardChanged("another process answers")

        flow.before = refuse if noticed_by == "flow" else None
        await produce(kafka_bootstrap, topic, 5)
        await eventually(lambda: marks.offsets[topic, 0], lambda mark: mark == 45)
    assert sorted(set(flow.offsets((topic, 0)))) == list(range(25, 45))
    assert flow.offsets((topic, 0))[-20:] == list(range(25, 45))
    assert app.ended == []


async def test_what_a_batch_leads_to_is_durable_before_it_counts(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, topic = new_name("produce"), new_name("t")
    await make_topic(kafka_bootstrap, topic)
    await produce(kafka_bootstrap, topic, 10)
    attempts = itertools.count()
    refusing = asyncio.Event()
    publish = Publisher.publish

    async def refuse(self: Publisher, report: BatchReport) -> None:
        if next(attempts) >= 2:
            refusing.set()
        if not allowed.is_set():
            raise Retryable("Kafka is away")
        await publish(self, report)

    allowed = asyncio.Event()
    monkeypatch.setattr(Publisher, "publish", refuse)

    async def report(records: Sequence[Record]) -> BatchReport:
        letters = [DeadLetter(record, "broken", "d1gest", ["7"]) for record in records if record.offset == 3]
        return BatchReport(dead_letters=letters, fan_out=[[UnitKey("", "a"), UnitKey("plane", "N1")]])

    flow, marks = NotingFlow(report), IdentityMarks()
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks)):
        await asyncio.wait_for(refusing.wait(), 30)
        assert marks.offsets.get((topic, 0), 0) == 0
        assert (await committed(kafka_bootstrap, context)).get((topic, 0), 0) == 0
        allowed.set()
        await eventually(lambda: marks.offsets.get((topic, 0)), lambda mark: mark == 10)
        await eventually(lambda: len(flow.rebuilt), lambda rebuilt: rebuilt >= 2)
    letters = [decode_letter(record.value) for record in await read_all(kafka_bootstrap, dead_letter_topic(context))]
    assert [(letter.topic, letter.offset, letter.bundle_keys) for letter in letters] == [(topic, 3, ["7"])]
    chunks = [decode_chunk(record.value) for record in await read_all(kafka_bootstrap, dirty_topic(context, 1))]
    assert chunks[0] == [UnitKey("", "a"), UnitKey("plane", "N1")] == flow.rebuilt[:2]


async def test_a_record_of_20_mb_is_set_aside_and_the_next_ones_flow(kafka_bootstrap: str) -> None:
    context, topic, size = new_name("big"), new_name("t"), 20 * 1024 * 1024
    await make_topic(kafka_bootstrap, topic, **{"max.message.bytes": str(32 << 20)})
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, max_request_size=32 << 20) as producer:
        for value in (b"first", b"\0" * size, b"last"):
            await producer.send_and_wait(topic, value, key=b"k", partition=0, headers=[("h", b"v")])

    async def set_aside(records: Sequence[Record]) -> BatchReport:
        return BatchReport(
            dead_letters=[DeadLetter(record, "too long", "d") for record in records if len(record.value or b"") == size]
        )

    flow, marks = NotingFlow(set_aside), IdentityMarks()
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks)):
        await eventually(lambda: marks.offsets.get((topic, 0)), lambda mark: mark == 3)
    assert flow.offsets((topic, 0)) == [0, 1, 2]
    (record,) = await read_all(kafka_bootstrap, dead_letter_topic(context))
    letter = decode_letter(record.value)
    assert (letter.offset, letter.value_bytes, letter.truncated, letter.headers) == (1, size, True, [("h", "dg==")])
    assert letter.value is not None and len(letter.value) > 100_000


@pytest.mark.parametrize("when", ["at the start", "while running"])
async def test_a_topic_that_no_longer_reaches_back_ends_the_worker(kafka_bootstrap: str, when: str) -> None:
    context, topic = new_name("retention"), new_name("t")
    await make_topic(kafka_bootstrap, topic)
    await produce(kafka_bootstrap, topic, 30)
    blocked = asyncio.Event()

    async def block(records: Sequence[Record]) -> None:
        if when == "while running" and records[0].offset > 0:
            await blocked.wait()

    async def lose(before: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
        await admin.start()
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before)})
        await admin.close()

    marks = IdentityMarks()
    marks.offsets[topic, 0] = 5
    limits = LaneLimits(batch_records_max=1, lane_records_max=1)
    if when == "at the start":
        await lose(20)
    flow = NotingFlow(block)
    async with running(make_app(kafka_bootstrap, context, [topic], flow, marks, lane_limits=limits)) as app:
        if when == "while running":
            # The lane is full with what one poll brought, so what comes now is not fetched before it is lost.
            await eventually(
                lambda: [lane.expected for lane in app.consumer.lanes.values() if lane.partition[0] == topic],
                lambda found: found == [30],
            )
            await produce(kafka_bootstrap, topic, 30)
            await lose(50)
            blocked.set()
        (error, *_) = await eventually(lambda: app.ended)
    assert isinstance(error, PositionLost)
    assert "--snapshot TABLE" in str(error) and topic in str(error)
    assert marks.offsets[topic, 0] <= 30


async def test_a_worker_waits_for_topics_that_the_connector_has_yet_to_make(
    kafka_bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    context, topic = new_name("early"), new_name("t")
    flow, marks = NotingFlow(), IdentityMarks()
    app = make_app(kafka_bootstrap, context, [topic], flow, marks)
    starting = asyncio.ensure_future(app.start())
    await eventually(lambda: f"waiting for {topic}" in caplog.text)
    await make_topic(kafka_bootstrap, topic)
    await produce(kafka_bootstrap, topic, 3)
    await eventually(lambda: flow.offsets((topic, 0)), lambda offsets: offsets == [0, 1, 2])
    await starting
    await app.stop()


async def test_a_broker_restart_under_load_loses_nothing(make_kafka: Callable[..., Any]) -> None:
    broker = make_kafka()
    context, topic = new_name("restart"), new_name("t")
    await make_topic(broker.address, topic, 2)
    await produce(broker.address, topic, 200, 2)
    flow, marks = NotingFlow(), IdentityMarks()
    async with running(make_app(broker.address, context, [topic], flow, marks)) as app:
        await eventually(lambda: len(flow.seen), lambda seen: seen >= 200)
        await asyncio.to_thread(broker.kill)
        await asyncio.to_thread(broker.start)
        await produce(broker.address, topic, 200, 2)
        await eventually(
            lambda: [marks.offsets.get((topic, number)) for number in (0, 1)],
            lambda found: found == [200, 200],
            timeout_s=60,
        )
        await eventually(
            lambda: committed(broker.address, context), lambda found: found.get((topic, 0)) == 200, timeout_s=60
        )
    assert {(number, offset) for _, number, offset in flow.seen} == set(itertools.product((0, 1), range(200)))
    assert app.ended == []
