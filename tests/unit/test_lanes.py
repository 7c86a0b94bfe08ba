"""Lanes: one batch on its way at a time, order kept, nothing sent after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from connectors.lanes import Lane
from pipeline.core.errors import Fatal, Retryable


class Builder:
    """Takes three records."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []

    def append(self, *, timestamp: None, key: bytes, value: bytes | None, headers: list[Any]) -> object | None:
        if len(self.keys) == 3:
            return None
        self.keys.append(key)
        return object()

    def close(self) -> None: ...


class Producer:
    """Delivers a batch when the test says so."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.futures: list[asyncio.Future[Any]] = []

    def create_batch(self) -> Builder:
        return Builder()

    async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> asyncio.Future[Any]:
        self.sent.append(list(batch.keys))
        self.futures.append(asyncio.get_running_loop().create_future())
        return self.futures[-1]


@contextmanager
def errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Retryable(str(error)) from error


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_next_batch_fills_while_one_is_on_its_way() -> None:
    producer = Producer()
    lane = Lane(producer, "t", 0, errors)
    first = lane.append(b"1", b"", ())
    lane.go()
    await turns()
    batches = [lane.append(b"%d" % number, b"", ()) for number in range(2, 7)]
    lane.go()
    await turns()
    assert producer.sent == [[b"1"]] and not first.done.done()
    producer.futures[0].set_result(None)
    await turns()
    assert first.done.done() and producer.sent == [[b"1"], [b"2", b"3", b"4"]]
    producer.futures[1].set_result(None)
    await turns()
    producer.futures[2].set_result(None)
    await turns()
    assert producer.sent[2] == [b"5", b"6"] and all(batch.done.done() for batch in batches)


async def test_nothing_overtakes_what_was_lost() -> None:
    producer = Producer()
    lane = Lane(producer, "t", 0, errors)
    first = lane.append(b"1", b"", ())
    lane.go()
    await turns()
    later = lane.append(b"2", b"", ())
    producer.futures[0].set_exception(OSError("away"))
    await turns()
    for batch in (first, later):
        with pytest.raises(Retryable, match="away"):
            await batch.done
    with pytest.raises(Retryable, match="away"):
        lane.append(b"3", b"", ())
    lane.go()
    await turns()
    assert producer.sent == [[b"1"]]


async def test_a_failure_that_nobody_foresaw_ends_the_wait_too() -> None:
    producer = Producer()
    lane = Lane(producer, "t", 0, errors)
    first = lane.append(b"a", b"1", ())
    lane.go()
    second = lane.append(b"b", b"2", ())
    await turns()
    producer.futures[0].set_exception(RuntimeError("a bug"))
    await turns()
    for pending in (first, second):
        with pytest.raises(Fatal, match="a bug"):
            await asyncio.wait_for(pending.done, 5)
