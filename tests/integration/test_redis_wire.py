"""The shared connection to Redis: order over tasks, callers that give up, and every way of losing the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from pipeline.core.errors import EnvironmentProblem, Fatal, Retryable
from pipeline.stores.redis_client import RedisClient, RedisSettings
from pipeline.stores.redis_store import open_stores
from pipeline.stores.store import Contribution, Membership, RelationRead
from schemas.bundle import ROOT_UNIT, UnitKey
from tests.support.forwarder import Forwarder

pytestmark = pytest.mark.servers


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[RedisClient]:
    made = RedisClient(RedisSettings(redis_url, "wire", 1, timeout_s=2.0))
    yield made
    await made.close()


async def test_what_is_asked_first_is_done_first_also_over_tasks(client: RedisClient) -> None:
    """From the very first question on, when the connection is still being made."""
    answers = await asyncio.gather(*[client.run("APPEND", "word", letter) for letter in "abcdefgh"])
    assert answers == list(range(1, 9))
    assert await client.run("GET", "word") == b"abcdefgh"


async def test_a_large_answer_and_a_large_question_pass_whole(client: RedisClient) -> None:
    text = b"x" * (8 << 20)
    assert await client.run("SET", "large", text) == b"OK"
    large, small = await asyncio.gather(client.run("GET", "large"), client.run("ECHO", "small"))
    assert (large, small) == (text, b"small")


async def test_a_caller_that_gives_up_disturbs_nobody(client: RedisClient) -> None:
    await client.run("PING")
    await client.run("CLIENT", "PAUSE", 200)
    impatient = asyncio.create_task(client.run("SET", "given", "up"))
    patient = asyncio.create_task(client.run("GET", "given"))
    await asyncio.sleep(0.05)
    impatient.cancel()
    assert await patient == b"up", "it was sent, so it was done, and its answer went to nobody"
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_a_refused_command_is_the_error_of_its_caller_alone(client: RedisClient) -> None:
    await client.run("SET", "text", "no number")
    refused, fine = await asyncio.gather(client.run("INCR", "text"), client.run("GET", "text"), return_exceptions=True)
    assert isinstance(refused, Fatal) and "not an integer" in str(refused)
    assert fine == b"no number"


async def test_a_server_that_is_silent_is_given_up_and_asked_again(client: RedisClient) -> None:
    await client.run("PING")
    await client.run("CLIENT", "PAUSE", 3000)
    results = await asyncio.gather(client.run("GET", "a"), client.run("GET", "b"), return_exceptions=True)
    assert all(isinstance(result, Retryable) and "no answer within 2 s" in str(result) for result in results)
    await asyncio.sleep(1.2)
    assert await client.run("PING") == b"PONG"


async def test_a_lost_connection_fails_what_is_on_its_way_and_the_next_question_connects(
    make_redis: Callable[..., Any],
) -> None:
    server = make_redis()
    forwarder = Forwarder(server.port)
    client = RedisClient(RedisSettings(f"redis://127.0.0.1:{forwarder.port}/0", "wire", 1, timeout_s=5.0))
    try:
        await client.run("CLIENT", "PAUSE", 400)
        asked = [asyncio.create_task(client.run("INCR", "count")) for _ in range(3)]
        await asyncio.sleep(0.1)
        forwarder.switch(server.port)
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(result, Retryable) and "connection lost" in str(result) for result in results)
        assert await client.run("PING") == b"PONG"
        server.kill()
        with pytest.raises(Retryable):
            await client.run("PING")
        server.start()
        assert await client.run("ECHO", "back") == b"back"
    finally:
        await client.close()
        forwarder.close()


async def test_a_wrong_password_is_told_to_every_waiting_caller(make_redis: Callable[..., Any]) -> None:
    server = make_redis(password="right")
    client = RedisClient(RedisSettings(f"redis://:wrong@127.0.0.1:{server.port}/0", "wire", 1))
    results = await asyncio.gather(client.run("PING"), client.run("PING"), return_exceptions=True)
    assert all(isinstance(result, EnvironmentProblem) and "login" in str(result) for result in results)
    await client.close()


async def test_after_close_nothing_is_asked_any_more(client: RedisClient) -> None:
    await client.run("CLIENT", "PAUSE", 300)
    waiting = asyncio.create_task(client.run("GET", "a"))
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(Retryable, match="closed"):
        await waiting
    with pytest.raises(Retryable, match="closed"):
        await client.run("PING")


async def test_lost_functions_are_loaded_again_and_a_write_is_not_sent_behind_its_followers(redis_url: str) -> None:
    """What its caller asked after it may have been carried out by then: the whole batch must come again."""
    stores = await open_stores(RedisSettings(redis_url, "wire", 1))
    place = Membership(0, "p", "c", "0" * 32, Contribution([b"entry"]))
    await stores.client.run("FUNCTION", "FLUSH")
    with pytest.raises(Retryable, match="functions"):
        await stores.relations.relate([place])
    await stores.relations.relate([place])
    await stores.client.run("FUNCTION", "FLUSH")
    assert (await stores.relations.read([RelationRead(0, "p", limit=1)]))[0].entries == [b"entry"], (
        "a read is sent again"
    )
    assert await stores.bundles.mark_dirty([UnitKey(ROOT_UNIT, "c")]) > [0]
    await stores.close()


async def test_builds_after_a_lost_memory_are_newer_than_those_before(redis_url: str) -> None:
    """Kafka still holds vectors of the builds before; replicas must take those of the builds after."""
    stores = await open_stores(RedisSettings(redis_url, "wire", 1))
    key = UnitKey(ROOT_UNIT, "lost")
    before = [(await stores.bundles.mark_dirty([key]))[0] for _ in range(3)]
    await stores.client.run("FLUSHALL")
    try:
        (after,) = await stores.bundles.mark_dirty([key])
    except Retryable:  # the functions are gone too, and loaded again
        (after,) = await stores.bundles.mark_dirty([key])
    assert before == sorted(set(before))
    assert after > before[-1]
    await stores.close()
