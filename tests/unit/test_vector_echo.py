"""What lies last in the vector topic, and what Redis says of it: they agree in the end, whoever wrote last."""

from __future__ import annotations

from pipeline.stores.memory_spaces import MemoryVectorStates
from pipeline.stores.spaces import CUT, REFUSED, VectorState
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.reporting import SpaceMetrics
from pipeline.streams.vector_echo import FOLLOWED_WITHIN_S, VectorEcho
from schemas.record import Record
from schemas.vectors import encode_vectors
from tests.support.embedding_world import SPACE, KeptOutlet, QuickClock
from tests.support.space_records import DIMENSION, vector_record


class World:
    """Redis knows `known` of bundle 1; `hear` has the echo read records of it."""

    def __init__(self, known: VectorState | None) -> None:
        self.clock, self.states = QuickClock(), MemoryVectorStates()
        self.outlet = KeptOutlet(self.clock)
        self.states.spaces[SPACE] = {} if known is None else {"1": known}
        shown = SpaceMetrics("context", SPACE)
        self.echo = VectorEcho(SPACE, DIMENSION, self.states, self.outlet, self.clock, shown)

    async def hear(self, offset: int, *values: bytes | None) -> VectorState | None:
        records = [Record("vectors", 0, offset + number, b"1", value) for number, value in enumerate(values)]
        await self.echo.handle([RecordBatch(("vectors", 0), records, offset + len(values), lambda batch: None)])
        return self.states.spaces[SPACE].get("1")


def vector(text: str) -> bytes:
    return encode_vectors(vector_record(SPACE, text))


def hash_of(text: str) -> str:
    return vector_record(SPACE, text).text_hash


async def test_what_redis_knows_costs_nothing() -> None:
    known = VectorState(3, "b", hash_of("a"), hash_of("a"), vector_at=7)
    world = World(known)
    assert await world.hear(7, vector("a")) == known
    assert await world.hear(6, vector("older")) == known, "a newer one lies behind"
    assert world.outlet.asked == [] and world.clock.slept == []


async def test_a_vector_that_its_writer_never_told_of_is_learned() -> None:
    world = World(VectorState(3, "b", hash_of("a"), "", "throttled"))
    state = await world.hear(4, vector("a"))
    assert state is not None
    assert (state.vector_hash, state.vector_at, state.problem) == (hash_of("a"), 4, "") and world.outlet.asked == []


async def test_a_late_vector_of_another_text_is_found_out() -> None:
    """A worker that slept wrote it after a newer one, or after the deletion, and was killed."""
    for wanted in (hash_of("a"), ""):
        world = World(VectorState(3, "b", wanted, wanted, vector_at=7))
        state = await world.hear(8, vector("old"))
        assert state is not None
        assert (state.vector_hash, state.vector_at) == (hash_of("old"), 8) and world.outlet.asked == ["1"]
        assert sum(world.clock.slept) >= FOLLOWED_WITHIN_S


async def test_a_late_deletion_is_found_out() -> None:
    world = World(VectorState(3, "b", hash_of("a"), hash_of("a"), vector_at=7))
    state = await world.hear(8, None)
    assert state is not None and state.vector_hash == "" and world.outlet.asked == ["1"]


async def test_a_vector_that_is_followed_by_the_right_one_is_no_trouble() -> None:
    world = World(VectorState(3, "b", hash_of("new"), hash_of("old"), vector_at=7))
    current = VectorState(3, "b", hash_of("new"), hash_of("new"), vector_at=9)
    world.clock.on_sleep = lambda: world.states.spaces[SPACE].update({"1": current})
    assert await world.hear(8, vector("old")) == current and world.outlet.asked == []
    assert await world.hear(8, vector("old"), vector("new")) == current, "only the last one counts"
    assert world.outlet.asked == []


async def test_a_text_that_is_refused_has_no_vector_for_good() -> None:
    world = World(VectorState(3, "b", hash_of("a"), "", f"{REFUSED}too strange", vector_at=7))
    await world.hear(8, None)
    assert world.outlet.asked == []


async def test_what_is_no_vector_of_this_space_is_replaced() -> None:
    for value in (b"\xc1 no record", encode_vectors(vector_record("other", "a")), b""):
        world = World(VectorState(3, "b", hash_of("a"), hash_of("a"), vector_at=7))
        state = await world.hear(8, value)
        assert state is not None and state.vector_hash != hash_of("a") and world.outlet.asked == ["1"]


async def test_a_bundle_that_nobody_knows_is_looked_at() -> None:
    world = World(None)
    assert await world.hear(8, vector("a")) is None and world.outlet.asked == ["1"]
    world = World(None)
    assert await world.hear(8, None) is None and world.outlet.asked == [], "it is gone, and that is right"


async def test_that_the_end_of_a_text_is_in_no_vector_is_learned() -> None:
    from msgspec.structs import replace

    world = World(VectorState(3, "b", hash_of("a")))
    state = await world.hear(4, encode_vectors(replace(vector_record(SPACE, "a"), tokens_cut=3)))
    assert state is not None and state.problem == CUT
