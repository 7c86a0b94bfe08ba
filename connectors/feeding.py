"""A queue that tasks fill and one reader empties: whatever ends one of the tasks ends the reader, too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def next_of(queue: asyncio.Queue[Item], feeders: Sequence[asyncio.Task[None]]) -> Item:
    """The next item. Raises what a feeder raised, even while others go on; feeders that have finished are fine."""
    getting = asyncio.ensure_future(queue.get())
    try:
        while not getting.done():
            running = [task for task in feeders if not task.done()]
            await asyncio.wait([getting, *running], return_when=asyncio.FIRST_COMPLETED)
            for task in feeders:
                if task.done():
                    task.result()
    finally:
        if not getting.done():
            getting.cancel()
    return getting.result()
