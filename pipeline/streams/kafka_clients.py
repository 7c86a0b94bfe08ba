"""What aiokafka's clients need of us beside their own: an end within a time, also where Kafka is gone, and a rest
between two questions for metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

STOP_LIMIT_S = 2.0
FLUSH_LIMIT_S = 5.0
METADATA_EVERY_S = 0.1


async def stop_consumer(consumer: Any, limit_s: float = STOP_LIMIT_S) -> None:
    """Raises nothing: what could not be said to a broker that is gone is lost on nobody."""
    if not await ended(consumer.stop(), limit_s):
        # It breaks off at a fetch that failed a moment before, and leaves its connections and tasks behind.
        await ended(consumer._client.close(), limit_s)


async def stop_producer(producer: Any, limit_s: float = FLUSH_LIMIT_S) -> None:
    """The same; what is still on its way gets `limit_s`."""
    if not await ended(producer.stop(), limit_s):
        await ended(producer._sender.close(), STOP_LIMIT_S)
        await ended(producer.client.close(), STOP_LIMIT_S)


async def stop_admin(admin: Any, limit_s: float = STOP_LIMIT_S) -> None:
    """The same."""
    await ended(admin.close(), limit_s)


async def ended(stop: Coroutine[Any, Any, None], limit_s: float) -> bool:
    """Whether it came to its end by itself. In a task of its own, because what is cancelled inside aiokafka would seem
    to be our own cancellation."""
    task = asyncio.ensure_future(stop)
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    try:
        await asyncio.wait({task}, timeout=limit_s)
    finally:
        complete = task.done() and not task.cancelled() and task.exception() is None
        task.cancel()
    return complete


def rest_between_metadata(client: Any, every_s: float = METADATA_EVERY_S) -> None:
    """Asks for metadata at most so often. Where a topic is gone or has no leader, aiokafka asks again as soon as it has
    the answer, which took most of a processor of ours and kept the broker busy."""
    update = client._metadata_update
    last_s = float("-inf")

    async def rested(*arguments: Any) -> Any:
        nonlocal last_s
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, last_s + every_s - loop.time()))
        last_s = loop.time()
        return await update(*arguments)

    client._metadata_update = rested
