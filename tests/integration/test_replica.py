"""Replicas over real Kafka: replay, updates and deletions, going on from a snapshot, topics made anew, Kafka away."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer

from deploy.local.kafka import KafkaServer
from pipeline.core.clock import SystemClock
from pipeline.stores.lexical import LexicalIndex
from pipeline.streams.replica import OpenIndexes, Replica, ReplicatedSpace
from pipeline.streams.replica_reader import SpaceReader
from tests.support.eventually import eventually
from tests.support.exact_vectors import ExactVectors
from tests.support.space_records import DIMENSION, SpaceTopics, space_topics

pytestmark = pytest.mark.servers

_numbers = itertools.count(1)


@pytest.fixture
def space() -> ReplicatedSpace:
    return ReplicatedSpace(f"replicated{next(_numbers)}", 1, "abc", DIMENSION)


@asynccontextmanager
async def topics_of(space: ReplicatedSpace, bootstrap: str) -> AsyncIterator[SpaceTopics]:
    async with space_topics(bootstrap, space.vector_topic, space.text_topic, space.space) as topics:
        yield topics


@asynccontextmanager
async def running(
    space: ReplicatedSpace, bootstrap: str, vectors: ExactVectors | None = None, anew: list[bool] | None = None
) -> AsyncIterator[Replica]:
    def opened(afresh: bool) -> ExactVectors:
        if anew is not None:
            anew.append(afresh)
        return ExactVectors(DIMENSION, ["year"]) if afresh or vectors is None else vectors

    reader = SpaceReader(bootstrap, (space.vector_topic, space.text_topic))
    replica = Replica(space, reader, OpenIndexes(opened, lambda: LexicalIndex(["year"])), SystemClock())
    await replica.start()
    task = asyncio.create_task(replica.run())
    try:
        yield replica
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await replica.close()


def keys(replica: Replica) -> set[str]:
    index = replica.vectors
    assert isinstance(index, ExactVectors)
    return set(index.records)


def found(replica: Replica, text: str) -> set[str]:
    return {key for key, _ in replica.texts.search(text, 1000)}


async def test_everything_is_replayed_and_followed(space: ReplicatedSpace, kafka_bootstrap: str) -> None:
    async with topics_of(space, kafka_bootstrap) as topics:
        for number in range(50):
            await topics.put(f"k{number}", f"plane number{number}", 1, {"year": 1950 + number})
        async with running(space, kafka_bootstrap) as replica:
            await eventually(lambda: replica.caught_up)
            assert len(keys(replica)) == 50 and found(replica, "plane") == keys(replica)
            assert replica.behind_records == 0 and replica.as_of_us is not None
            then_us = replica.as_of_us
            await topics.put("k0", "a boat", 2)
            await topics.delete("k1")
            await eventually(lambda: found(replica, "boat") == {"k0"} and "k1" not in keys(replica))
            assert "k1" not in found(replica, "plane")
            await eventually(lambda: (replica.as_of_us or 0) > then_us)


async def test_it_goes_on_from_the_positions_of_its_index(space: ReplicatedSpace, kafka_bootstrap: str) -> None:
    kept, anew = ExactVectors(DIMENSION, ["year"]), list[bool]()
    async with topics_of(space, kafka_bootstrap) as topics:
        await topics.put("a", "one")
        async with running(space, kafka_bootstrap, kept) as replica:
            await eventually(lambda: replica.caught_up)
        read_before = dict(kept.positions())
        await topics.put("b", "two")
        await topics.delete("a")
        async with running(space, kafka_bootstrap, kept, anew) as replica:
            await eventually(lambda: replica.caught_up)
            assert keys(replica) == {"b"} == found(replica, "one two")
        assert anew == [False] and sum(kept.positions().values()) == sum(read_before.values()) + 2


async def test_topics_that_were_made_anew_start_the_index_anew(space: ReplicatedSpace, kafka_bootstrap: str) -> None:
    kept, anew = ExactVectors(DIMENSION, ["year"]), list[bool]()
    async with topics_of(space, kafka_bootstrap) as topics:
        await topics.put("a", "one")
        for number in range(5):
            await topics.put("b", f"text {number}", number)
        async with running(space, kafka_bootstrap, kept) as replica:
            await eventually(lambda: replica.caught_up)
    other = ReplicatedSpace(f"{space.context}anew", 1, "abc", DIMENSION)
    async with topics_of(other, kafka_bootstrap) as topics:
        await topics.put("c", "three")
        async with running(other, kafka_bootstrap, kept, anew) as replica:
            await eventually(lambda: replica.caught_up)
            assert keys(replica) == {"c"}
    assert anew == [False, True]


async def test_topics_may_come_later(space: ReplicatedSpace, kafka_bootstrap: str) -> None:
    async with running(space, kafka_bootstrap) as replica:
        await eventually(lambda: "Kafka has no topic" in replica.problem)
        async with topics_of(space, kafka_bootstrap) as topics:
            await topics.put("a", "one")
            await eventually(lambda: replica.caught_up and keys(replica) == {"a"})


async def test_kafka_that_goes_away_and_comes_back(
    space: ReplicatedSpace, make_kafka: Callable[..., KafkaServer]
) -> None:
    kafka = make_kafka()
    async with running(space, kafka.address) as replica:
        async with topics_of(space, kafka.address) as topics:
            await topics.put("a", "one")
            await eventually(lambda: replica.caught_up and keys(replica) == {"a"})
        await asyncio.to_thread(kafka.kill)
        assert found(replica, "one") == {"a"}, "what is there is served on"
        await asyncio.to_thread(kafka.start)
        async with again(kafka.address, space) as topics:
            await topics.put("b", "two")
        await eventually(lambda: keys(replica) == {"a", "b"} and found(replica, "two") == {"b"}, timeout_s=60)


@asynccontextmanager
async def again(bootstrap: str, space: ReplicatedSpace) -> AsyncIterator[SpaceTopics]:
    """Topics that are there already."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        yield SpaceTopics(producer, space.vector_topic, space.text_topic, space.space)
    finally:
        await producer.stop()
