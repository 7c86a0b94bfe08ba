"""Whether an index holds all bundles that had been written at a moment: their requests, texts and vectors have gone all
the way. For searches that must see a write; whoever waits shares one look at Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from pipeline.core.errors import CtxpipeError
from pipeline.stores.store import Partition
from pipeline.streams.offsets import Extent

LOOK_EVERY_S = 0.1

Offsets = Mapping[Partition, int]


class GroupFacts(Protocol):
    """See pipeline.streams.topics.Topics, of the space's consumer group. All raise Retryable."""

    async def partitions(self, topics: Iterable[str]) -> frozenset[Partition]: ...

    async def extents(self, partitions: frozenset[Partition]) -> dict[Partition, Extent]: ...

    async def end_offsets(self, partitions: frozenset[Partition]) -> dict[Partition, int]: ...

    async def stop(self) -> None: ...


class Look(NamedTuple):
    """One look: first how far the space's workers had committed, then where the topics ended."""

    committed: Offsets
    ends: Offsets


class Proof:
    """Of one moment: give it every look that began afterwards. Pure.

    All requests that were there at the first look have become texts when the workers have committed them. A text may
    have been spared because a newer one of its bundle followed, so its partition counts as done only at a look at which
    nothing was left in it at all. `wanted`, once known, is where an index must have come to.
    """

    def __init__(self, request_topic: str, text_topic: str) -> None:
        self._request_topic, self._text_topic = request_topic, text_topic
        self._requests: dict[Partition, int] | None = None
        self._texts: set[Partition] | None = None
        self.wanted: Offsets | None = None

    def see(self, look: Look) -> None:
        if self.wanted is not None:
            return
        if self._requests is None:
            self._requests = {place: end for place, end in look.ends.items() if place[0] == self._request_topic}
        self._requests = {
            place: end for place, end in self._requests.items() if look.committed.get(place, 0) < end
        }  # fmt: skip
        if self._requests:
            return
        if self._texts is None:
            self._texts = {place for place in look.ends if place[0] == self._text_topic}
        self._texts = {place for place in self._texts if look.committed.get(place, 0) < look.ends[place]}
        if not self._texts:
            self.wanted = {place: end for place, end in look.ends.items() if place[0] != self._request_topic and end}


class IndexProofs:
    """Safe for concurrent calls in one event loop. `vector_topic` is of the same space."""

    def __init__(self, facts: GroupFacts, request_topic: str, text_topic: str, vector_topic: str) -> None:
        self._facts, self._topics = facts, (request_topic, text_topic, vector_topic)
        self._waiting: dict[Proof, asyncio.Future[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wanted(self, limit_s: float) -> Offsets | None:
        """Where the texts and vectors of all bundles that were written before the call end; waits until they are all in
        Kafka. None when they are not inside the limit, or nobody can tell."""
        proof = Proof(self._topics[0], self._topics[1])
        done = self._waiting[proof] = asyncio.get_running_loop().create_future()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_often(), name="index-proofs")
        try:
            await asyncio.wait((done,), timeout=limit_s)
        finally:
            del self._waiting[proof]
        return proof.wanted

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait((self._looking,))
        await self._facts.stop()

    async def _look_often(self) -> None:
        while self._waiting:
            # Only those that waited when the look began: what it sees was there after their moment.
            asked = list(self._waiting)
            try:
                look = await self._look()
            except CtxpipeError:
                await asyncio.sleep(LOOK_EVERY_S)  # whoever waits has a limit, and is told then
                continue
            for proof in asked:
                proof.see(look)
                done = self._waiting.get(proof)
                if proof.wanted is not None and done is not None and not done.done():
                    done.set_result(None)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> Look:
        places = await self._facts.partitions(self._topics)
        read = frozenset(place for place in places if place[0] != self._topics[2])
        extents = await self._facts.extents(read)
        committed = {place: extent.committed or 0 for place, extent in extents.items()}
        return Look(committed, await self._facts.end_offsets(places))
