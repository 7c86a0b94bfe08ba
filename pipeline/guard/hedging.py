"""A second question to another endpoint when the first is slow: off by default, because it is paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pipeline.core.clock import Clock
from pipeline.guard.asking import Answer
from pipeline.guard.values import Reason

Ask = Callable[[], Awaitable[Answer | Reason]]


async def hedged(first: Ask, second: Ask, after_s: float, clock: Clock) -> Answer | Reason:
    """The first answer of the two; where neither has one, what kept the first. `second` is asked only where the first
    is not back by then. Who loses is cancelled, which counts against nobody."""
    one = asyncio.ensure_future(first())
    timer = asyncio.ensure_future(clock.sleep(after_s))
    tasks: list[asyncio.Future[Answer | Reason]] = [one]
    try:
        await asyncio.wait({one, timer}, return_when=asyncio.FIRST_COMPLETED)
        if one.done():
            return one.result()
        tasks.append(asyncio.ensure_future(second()))
        waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=tasks.index):
                found = task.result()
                if isinstance(found, Answer):
                    return found
        return one.result()
    finally:
        timer.cancel()
        ending = {task for task in tasks if not task.done()}
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
