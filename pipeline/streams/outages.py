"""Waits out what is away, inside the batch: nothing after it in its partition goes on before."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mode import get_logger

from pipeline.core.clock import Clock
from pipeline.core.errors import Retryable
from pipeline.stores.store import ShardChanged
from pipeline.streams.backoff import Backoff
from pipeline.streams.lanes import RecordBatch

logger = get_logger(__name__)

JITTER = random.Random()

Result = TypeVar("Result")


async def persistently(
    batches: Sequence[RecordBatch],
    work: Callable[[], Awaitable[Result]],
    clock: Clock,
    on_retry: Callable[[], object] | None = None,
) -> Result:
    """What `work` returns, however often it takes. ShardChanged passes: the caller goes back to the marks; everything
    else that is not Retryable passes too."""
    backoff = Backoff(randomness=JITTER)
    waits = False
    while True:
        try:
            result = await work()
        except ShardChanged:
            raise
        except Retryable as error:
            if not waits:
                logger.warning("%s waits: %s", places(batches), error)
            waits = True
            for batch in batches:
                batch.in_outage = True
            if on_retry is not None:
                on_retry()
            await clock.sleep(max(backoff.next_s(), getattr(error, "retry_after_s", 0.0)))
        else:
            if waits:
                logger.info("%s goes on", places(batches))
            for batch in batches:
                batch.in_outage = False
            return result


def places(batches: Sequence[RecordBatch]) -> str:
    """For messages."""
    if not batches:
        return "what has lived its time"
    topic, partition = batches[0].partition
    return f"{topic}/{partition}" + (f" and {len(batches) - 1} more" if len(batches) > 1 else "")
