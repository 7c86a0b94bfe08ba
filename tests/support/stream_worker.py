"""A worker process whose flow notes each record in Redis; arguments: KAFKA REDIS CONTEXT TOPIC.

What a killed worker had noted without a mark is read again by another; what was marked must have been noted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.report import BatchReport
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from pipeline.streams.app import ContextApp, ContextStream, OpenContext, build_app
from pipeline.streams.lanes import LaneLimits
from pipeline.streams.process import run
from pipeline.streams.worker_app import StreamSettings
from schemas.record import Record

WORK_S = 0.005


class RedisNotes:
    """A flow that adds each offset to a set of its partition."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    async def process(self, records: Sequence[Record]) -> BatchReport:
        await asyncio.sleep(WORK_S)
        for partition in {record.partition for record in records}:
            offsets = [record.offset for record in records if record.partition == partition]
            await self.stores.client.run("SADD", f"seen:{partition}", *offsets)
        await self.stores.client.run("INCRBY", "handled", len(records))
        return BatchReport(events=len(records))

    async def rebuild(self, keys: Sequence[Any]) -> BatchReport:
        return BatchReport()


def app(bootstrap: str, redis_url: str, context: str, topic: str) -> ContextApp:
    """As pipeline.streams.compose makes it, but for the flow."""

    async def open_context() -> OpenContext:
        stores = await open_stores(RedisSettings(redis_url, context, 1))

        async def promote() -> None:
            await stores.serving.promote(1)

        return OpenContext(RedisNotes(stores), stores.marks, promote, stores.close)

    settings = StreamSettings(
        bootstrap, session_timeout_s=3.0, commit_interval_s=0.1, lane_limits=LaneLimits(batch_records_max=50)
    )
    return build_app(ContextStream(context, 1, [topic], open_context), settings)


async def main() -> None:
    """Says that it is ready once it listens to signals; before, a SIGTERM would end Python without a word."""
    running = asyncio.ensure_future(run(app(*sys.argv[1:])))
    await asyncio.sleep(0)
    print(f"worker {os.getpid()} is ready", flush=True)
    await running


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(name)s %(message)s")
    asyncio.run(main())
    os._exit(0)
