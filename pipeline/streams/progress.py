"""Tasks beside the agents: one feeds the watchdog, one makes a version serve when it has caught up, one tells up to
when all changes of each source have been applied."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from mode import get_logger

from pipeline.core.errors import Retryable
from pipeline.stores.store import AppliedPosition, Partition
from pipeline.streams.ending import end_stuck
from pipeline.streams.watchdog import Sample, watch
from schemas.topics import dirty_topic

logger = get_logger(__name__)

SAMPLE_EVERY_S = 5.0
LOOK_EVERY_S = 0.5
SETTLED_S = 5.0
"""A version that needs no longer for what is new is as current as it gets."""
REPEAT_EVERY_S = 5.0
WATERMARKS_EVERY_S = 2.0


async def watch_progress(app: Any) -> None:
    """Feeds the watchdog, whose thread ends the process when the worker is stuck."""
    watchdog = app.watchdog
    watch(watchdog, time.monotonic, end_stuck, app.watch_stop, every_s=SAMPLE_EVERY_S)
    while not app.should_stop:
        sample = await _sample(app)
        app.held_up_by = sample.excuse
        watchdog.sample(time.monotonic(), sample)
        await app.sleep(SAMPLE_EVERY_S)


async def _sample(app: Any) -> Sample:
    consumer = app.consumer
    lanes = list(consumer.lanes.values())
    committed = {lane.partition: lane.committed or 0 for lane in lanes}
    excuse = "an outage" if consumer.waits_for_stores else ""
    try:
        ends = await app.kafka_topics.end_offsets(frozenset(committed)) if committed else {}
    except Retryable:
        ends, excuse = {}, "Kafka is away"
    else:
        app.shown.behind({lane.partition: lane.finished for lane in lanes}, ends)
    return Sample(committed, ends, excuse, app.rebalancing)


async def promote_when_caught_up(app: Any) -> None:
    """Once everything that Kafka holds has been applied, by whichever worker, lookups may use this version.

    Kafka's commits tell: they never run ahead of the marks. The marks themselves may be read only when partitions are
    placed, because reading them accepts the shards as they are. What arrives during a long catching up is waited for
    as well, so that answers do not go back in time when they change over to this version. A Redis that loses its last
    second may lose the promotion: it is repeated.
    """
    told = False
    while not app.should_stop and await _catch_up_s(app) > SETTLED_S:
        pass
    while not app.should_stop:
        await app.until_it_works(app.opened.promote)
        await app.until_it_works(partial(app.note_serving, app.handler.journeys))
        if not told and not app.should_stop:
            stream = app.context_stream
            logger.info("%s version %d has caught up and serves", stream.context, stream.version)
        told = True
        await app.sleep(REPEAT_EVERY_S)


async def _catch_up_s(app: Any) -> float:
    """How long it took until what Kafka held at the call was applied; in this time more may have arrived."""
    began_s = time.monotonic()
    await _reached(app, await _ends(app, app.context_stream.topics))
    # What the hot parents among these left to the dirty lane belongs to the same state.
    await _reached(app, await _ends(app, [dirty_topic(app.context_stream.context, app.context_stream.version)]))
    return time.monotonic() - began_s


async def _ends(app: Any, topics: Iterable[str]) -> Mapping[Partition, int]:
    async def ask() -> Mapping[Partition, int]:
        found: Mapping[Partition, int] = await app.kafka_topics.end_offsets(await app.kafka_topics.partitions(topics))
        return found

    return await app.until_it_works(ask) or {}


async def _reached(app: Any, ends: Mapping[Partition, int]) -> None:
    wanted = frozenset(partition for partition, end in ends.items() if end > 0)
    while wanted and not app.should_stop:
        extents = await app.until_it_works(partial(app.kafka_topics.extents, wanted)) or {}
        done = {p for p, extent in extents.items() if extent.committed is not None and extent.committed >= ends[p]}
        if not wanted - done:
            return
        wanted -= done
        await app.sleep(LOOK_EVERY_S)


async def watch_watermarks(app: Any) -> None:
    """Every worker reads those of all, so that one of them is enough to tell that another one stands still."""
    while not app.should_stop and app.handler is None:
        await app.sleep(LOOK_EVERY_S)
    topics = frozenset(app.context_stream.topics)
    while not app.should_stop:
        applied = await app.until_it_works(app.opened.marks.read_applied) or {}
        # A table that has left the spec stands still for ever.
        app.shown.watermarks(watermarks_us({place: one for place, one in applied.items() if place[0] in topics}))
        await app.sleep(WATERMARKS_EVERY_S)


def watermarks_us(applied: Mapping[Partition, AppliedPosition]) -> dict[str, int]:
    """By source: all that it had committed by then has been applied, microseconds since 1970 UTC; 0 while a partition
    has seen nothing that tells a time. Pure."""
    found: dict[str, int] = {}
    for one in applied.values():
        if one.source:
            found[one.source] = min(one.commit_time_us, found.get(one.source, one.commit_time_us))
    return found
