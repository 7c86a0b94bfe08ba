"""While the same books change, go and come back: whoever embeds, answers or remembers dies, and nothing that was
deleted is found afterwards, in whatever place.

Each test prints its seed. CTXPIPE_TEST_ROUNDS=20 runs each with so many others, which takes long; CTXPIPE_TEST_SEED
runs one again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.kafka import KafkaServer
from deploy.local.redis import RedisServer
from tests.support.embedding_faults import Shelf, lose_last_second, seeds
from tests.support.eventually import eventually

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

MakeShelf = Callable[..., Shelf]


@pytest.fixture
def make_shelf(
    tmp_path: Path, request: pytest.FixtureRequest, redis_url: str, postgres_dsn: str
) -> Iterator[MakeShelf]:
    made: list[Shelf] = []

    def make(seed: int, kafka: str | None = None, redis: str = redis_url) -> Shelf:
        print(f"seed {seed}")
        kafka = kafka or request.getfixturevalue("kafka_bootstrap")
        made.append(Shelf(tmp_path, kafka, redis, postgres_dsn, seed))
        return made[-1]

    yield make
    for shelf in made:
        shelf.stop()


@pytest.mark.parametrize("seed", seeds(1))
async def test_workers_that_embed_are_killed_while_a_space_is_built(make_shelf: MakeShelf, seed: int) -> None:
    shelf = make_shelf(seed)
    shelf.begin()
    with shelf.changes():
        space = await shelf.space()
        for _ in range(2):
            first, second = shelf.feed(space), shelf.feed(space)
            await shelf.pause(3, 9)
            shelf.take_away(shelf.chance.choice([first, second]))
            await shelf.pause(0, 3)
            shelf.take_away(shelf.feeders[0])
        shelf.feed(space)
        await shelf.pause(1, 3)
    await shelf.check(space)


@pytest.mark.parametrize("seed", seeds(850988447))
async def test_workers_that_slept_through_a_takeover_change_nothing(make_shelf: MakeShelf, seed: int) -> None:
    shelf = make_shelf(seed)
    shelf.begin()
    with shelf.changes():
        space = await shelf.space()
        feeders = [shelf.feed(space), shelf.feed(space)]
        await shelf.pause(7, 9)
        for number in range(2):
            sleeper = feeders[number]
            await shelf.paused_beyond_its_session(sleeper)
            if number or shelf.chance.random() < 0.5:
                await shelf.pause(0, 0.05)
                shelf.take_away(sleeper)
            await shelf.pause(0, 2)
    shelf.feed(space)
    await shelf.check(space)


@pytest.mark.parametrize("seed", seeds(3))
async def test_redis_comes_back_without_its_last_second_and_then_empty(
    make_redis: Callable[..., RedisServer], make_shelf: MakeShelf, seed: int
) -> None:
    redis = make_redis(appendonly=True)
    shelf = make_shelf(seed, redis=redis.address)
    shelf.begin()
    with shelf.changes():
        space = await shelf.space()
        feeders = [shelf.feed(space), shelf.feed(space)]
        await shelf.pause(6, 9)
        await lose_last_second(redis)
        if shelf.chance.random() < 0.5:
            shelf.take_away(feeders[0])
        await shelf.pause(0, 1)
        redis.start()
        await shelf.pause(2, 5)
        redis.ask("FLUSHALL")
        await shelf.pause(2, 4)
    assert await shelf.space() == space, "who asks for it brings it back"
    if not shelf.feeders:
        shelf.feed(space)
    await shelf.check(space)


@pytest.mark.parametrize("seed", seeds(4))
async def test_kafka_comes_back(make_kafka: Callable[..., KafkaServer], make_shelf: MakeShelf, seed: int) -> None:
    """The shelf ends before its Kafka does: who can't say goodbye waits for half a minute."""
    kafka = make_kafka()
    shelf = make_shelf(seed, kafka=kafka.address)
    shelf.begin()
    with shelf.changes():
        space = await shelf.space()
        shelf.feed(space)
        await shelf.pause(4, 7)
        kafka.kill()
        await shelf.pause(0, 3)
        kafka.start()
        await shelf.pause(2, 4)
    await shelf.check(space)


@pytest.mark.parametrize("seed", seeds(5))
async def test_a_replica_is_killed_on_its_snapshot_and_a_candidate_beside_it(make_shelf: MakeShelf, seed: int) -> None:
    """The space of a changed section is built beside the serving one, by the workers as they are."""
    shelf = make_shelf(seed)
    shelf.config["serve"] = {"port": 0, "data_directory": "replica"}
    shelf.write_config()
    with shelf.changes():
        shelf.start()
        serving = await shelf.until_a_space_serves()
        replica = shelf.role("serve")
        await shelf.pause(4, 6)
        replica.stop()
        replica.start()
        await shelf.pause(3, 5)
        replica.kill()
        replica.start()
        shelf.write_spec(template="{{ title }}, written by {{ author.name }}")
        worker = shelf.roles[1]
        worker.stop()
        worker.start()
        candidate = await shelf.space(instead_of=serving)

        async def process() -> int | None:
            return shelf.process_of(candidate)

        found = await eventually(process, bool, timeout_s=30, what="the candidate is fed")
        await shelf.pause(2, 8)
        assert found is not None
        os.kill(found, signal.SIGKILL)
        await shelf.pause(1, 3)
        replica.kill()
    await shelf.check(serving)
    shelf.between = ", written by "
    await shelf.check(candidate, shelf.folder / "another")
