"""When an index holds everything of before: what has been asked for went all the way, whatever comes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from pipeline.core.errors import Retryable
from pipeline.stores.store import Partition
from pipeline.streams import index_proof
from pipeline.streams.index_proof import IndexProofs, Look, Proof
from pipeline.streams.offsets import Extent

ASKED, TEXTS, VECTORS = ("r", 0), ("t", 0), ("v", 0)


def look(asked: tuple[int, int], texts: tuple[int, int], vectors: int) -> Look:
    """Each (committed, end)."""
    return Look({ASKED: asked[0], TEXTS: texts[0]}, {ASKED: asked[1], TEXTS: texts[1], VECTORS: vectors})


def test_what_is_still_asked_for_is_waited_for() -> None:
    proof = Proof("r", "t")
    for seen in (look((4, 9), (3, 3), 3), look((8, 12), (4, 4), 4)):
        proof.see(seen)
        assert proof.wanted is None
    proof.see(look((9, 14), (5, 5), 5))
    assert proof.wanted == {TEXTS: 5, VECTORS: 5}, "what was asked for later is not waited for"
    proof.see(look((14, 14), (9, 9), 9))
    assert proof.wanted == {TEXTS: 5, VECTORS: 5}


def test_a_partition_of_texts_has_to_be_done_completely_once() -> None:
    """A text that is spared for a newer one is committed before that one's vector is there."""
    proof = Proof("r", "t")
    proof.see(look((9, 9), (5, 6), 5))
    proof.see(look((9, 9), (6, 7), 6))
    assert proof.wanted is None
    proof.see(look((9, 9), (7, 7), 7))
    assert proof.wanted == {TEXTS: 7, VECTORS: 7}


def test_partitions_need_not_be_done_at_once() -> None:
    proof, other = Proof("r", "t"), ("t", 1)
    ends = {ASKED: 0, TEXTS: 5, other: 5, VECTORS: 0}
    proof.see(Look({TEXTS: 5, other: 4}, ends))
    proof.see(Look({TEXTS: 5, other: 5}, {**ends, TEXTS: 6}))
    assert proof.wanted == {TEXTS: 6, other: 5}


class Facts:
    """Everything is committed to the end, as soon as `committed` is."""

    def __init__(self) -> None:
        self.looks = 0
        self.committed = 1
        self.away = False

    async def partitions(self, topics: Iterable[str]) -> frozenset[Partition]:
        if self.away:
            raise Retryable("Kafka is away")
        return frozenset((topic, 0) for topic in topics)

    async def extents(self, partitions: frozenset[Partition]) -> dict[Partition, Extent]:
        await asyncio.sleep(0)
        return {place: Extent(0, 2, self.committed) for place in partitions}

    async def end_offsets(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        self.looks += 1
        return dict.fromkeys(partitions, 2)

    async def stop(self) -> None:
        pass


async def test_all_who_wait_share_a_look() -> None:
    facts = Facts()
    proofs = IndexProofs(facts, "r", "t", "v")
    waiting = [asyncio.create_task(proofs.wanted(20)) for _ in range(50)]
    await asyncio.sleep(2.5 * index_proof.LOOK_EVERY_S)
    assert not any(one.done() for one in waiting)
    facts.committed = 2
    assert [await one for one in waiting] == [{TEXTS: 2, VECTORS: 2}] * 50
    assert facts.looks < 50
    await proofs.close()


async def test_nobody_waits_for_ever() -> None:
    facts = Facts()
    proofs = IndexProofs(facts, "r", "t", "v")
    assert await proofs.wanted(0.05) is None
    facts.away = True
    assert await proofs.wanted(0.25) is None
    facts.away, facts.committed = False, 2
    assert await proofs.wanted(20) is not None
    await proofs.close()
