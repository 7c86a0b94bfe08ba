"""A reader of a queue ends with whatever ends one of the tasks that fill it."""

from __future__ import annotations

import asyncio

import pytest

from connectors.feeding import next_of


async def test_items_come_in_order_and_finished_tasks_are_fine() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def feed(*numbers: int) -> None:
        for number in numbers:
            await queue.put(number)
            await asyncio.sleep(0)

    feeders = [asyncio.create_task(feed(1, 2)), asyncio.create_task(feed())]
    assert [await next_of(queue, feeders) for _ in range(2)] == [1, 2]


async def test_what_ends_one_of_them_ends_the_reader_while_the_others_go_on() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ConnectionError("away")

    waiting = asyncio.create_task(asyncio.sleep(60))
    with pytest.raises(ConnectionError, match="away"):
        await next_of(queue, [waiting, asyncio.create_task(fail())])
    waiting.cancel()
    queue.put_nowait(3)
    assert queue.get_nowait() == 3, "nobody waits for the queue any more"
