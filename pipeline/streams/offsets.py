"""Offsets live with the data: partitions start at the marks in Redis, and Kafka's commit never runs ahead of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mode import get_logger

from pipeline.core.errors import PositionLost
from pipeline.stores.store import MarkStore, Partition

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Extent:
    """What Kafka holds of a partition: offsets from `beginning` up to, not including, `end`."""

    beginning: int
    end: int
    committed: int | None = None


class TopicFacts(Protocol):
    """What the keeper asks Kafka; see pipeline.streams.topics. Raises Retryable while Kafka is away."""

    async def extents(self, partitions: frozenset[Partition]) -> dict[Partition, Extent]: ...

    async def is_compacted(self, topic: str) -> bool:
        """True when records leave the topic only because a newer one with their key is there."""


_ANEW = (
    "Build the context anew beside the old one: raise `version` in its file, have the connector send the tables again "
    "(ctxpipe connect SOURCE --snapshot TABLE), and start the worker."
)


def start_position(partition: Partition, mark: int, extent: Extent, compacted: bool) -> int:
    """Where to read on: at the mark, without one at the beginning. Raises PositionLost when neither is whole."""
    name = f"{partition[0]}/{partition[1]}"
    if mark > extent.end:
        raise PositionLost(
            f"{name} ends at offset {extent.end}, but {mark} has been applied already: the topic was made anew or has "
            f"lost records. {_ANEW}"
        )
    if mark > 0 and (mark >= extent.beginning or compacted):
        return mark
    if mark > 0:
        raise PositionLost(
            f"{name} begins at offset {extent.beginning}, but only {mark} has been applied: Kafka's retention removed "
            f"what is missing. {_ANEW} Keep the topic longer or compacted."
        )
    if extent.committed and extent.beginning > 0 and not compacted:
        raise PositionLost(
            f"Redis holds no mark for {name} any more, and the topic begins only at offset {extent.beginning}. {_ANEW}"
        )
    return extent.beginning


class MarkKeeper:
    """The OffsetKeeper (pipeline.streams.transport) of a context version: marks in its MarkStore."""

    def __init__(self, marks: MarkStore, facts: TopicFacts) -> None:
        self._marks, self._facts = marks, facts

    async def start_positions(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        extents = await self._facts.extents(partitions)
        compacted = {topic: await self._facts.is_compacted(topic) for topic in {topic for topic, _ in partitions}}
        # Last, because it accepts the shards as they are now: everything read from here on is covered.
        marks = await self._marks.read_marks(sorted(partitions))
        starts = {}
        for partition in sorted(partitions):
            extent = extents[partition]
            starts[partition] = start_position(partition, marks.get(partition, 0), extent, compacted[partition[0]])
            if extent.committed and not marks.get(partition):
                logger.warning("no mark for %s/%s although Kafka has a commit: reading all of it again", *partition)
        return starts

    async def release(self, finished: Mapping[Partition, int]) -> Mapping[Partition, int]:
        await self._marks.write_marks(finished)
        return finished

    async def check_gap(self, partition: Partition, expected: int, found: int) -> None:
        """Compaction and transaction markers leave gaps that mean nothing; retention takes records away."""
        if found > expected and await self._facts.is_compacted(partition[0]):
            return
        extent = (await self._facts.extents(frozenset((partition,))))[partition]
        if found < expected or extent.beginning > expected:
            raise PositionLost(
                f"{partition[0]}/{partition[1]} jumped from offset {expected} to {found}: Kafka removed records before "
                f"they were read, or the topic was made anew. {_ANEW}"
            )
