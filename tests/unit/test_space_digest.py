"""Whether a space is complete: what disagrees is named, what moves is looked at again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from pipeline.ops import space_digest
from pipeline.ops.space_digest import Places, SpaceProof, View, disagreements, prove_complete
from pipeline.stores.memory import MemoryBundles
from pipeline.stores.memory_spaces import MemoryVectorStates
from pipeline.stores.spaces import VectorState
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey
from schemas.digests import KeySetDigest
from schemas.errors import DecodeError


class Bundles(MemoryBundles):
    async def scan(self) -> AsyncIterator[UnitKey]:
        for key in list(self.values):
            yield key


class Topic:
    """Records as a topic gives them; `read` each time what is new."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []
        self.position = 0

    def add(self, key: str, text_hash: str | None) -> None:
        self.records.append((key.encode(), None if text_hash is None else text_hash.encode()))

    async def read(self) -> AsyncIterator[Sequence[tuple[bytes, bytes | None]]]:
        new, self.position = self.records[self.position :], len(self.records)
        for record in new:
            yield [record]


class Index:
    def __init__(self, pairs: dict[str, str]) -> None:
        self.pairs = pairs

    def key_set(self) -> Iterable[tuple[str, str]]:
        return self.pairs.items()


class World:
    """A space with three bundles, each with its text and vector, and a deleted one."""

    def __init__(self) -> None:
        self.bundles, self.states = Bundles(), MemoryVectorStates()
        self.texts, self.vectors = Topic(), Topic()
        self.index: Index | None = Index({"1": "t1", "2": "t2", "3": "t3"})
        self.slept: list[float] = []
        self.between = lambda: None

    async def fill(self) -> World:
        for key in ("1", "2", "3"):
            await self.write(key, 1, f"t{key}")
        self.texts.add("4", "t4")
        self.vectors.add("4", "t4")
        await self.write("4", 2, None)
        return self

    async def write(self, key: str, counter: int, text_hash: str | None) -> None:
        meta = Meta("h", 1) if text_hash is not None else None
        await self.bundles.put([(UnitKey(ROOT_UNIT, key), Stored(counter, meta, b"{}"))])
        await self.states.write_texts("s", {key: VectorState(counter, "h" if text_hash else "", text_hash or "")})
        await self.states.write_vectors("s", {key: (text_hash or "", "")})
        self.texts.add(key, text_hash)
        self.vectors.add(key, text_hash)

    async def prove(self, **options: int) -> SpaceProof:
        places = Places(
            self.bundles,
            self.states,
            "s",
            self.texts.read,
            self.vectors.read,
            _decoded,
            _decoded,
            self.index,
        )
        return await prove_complete(places, self, **options)

    def now_us(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return 0.0

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.between()


def _decoded(value: bytes) -> str:
    if value == b"broken":
        raise DecodeError("a record of another space")
    return value.decode()


async def test_a_complete_space_has_one_digest_everywhere() -> None:
    proof = await (await World().fill()).prove()
    expected = KeySetDigest()
    for key in ("3", "1", "2"):
        expected.add(key, f"t{key}")
    assert proof.complete and not proof.unsettled and not proof.named
    assert set(proof.digests.values()) == {expected.hex()}
    assert sorted(proof.digests) == [
        "index",
        "text topic",
        "texts in Redis",
        "vector topic",
        "vectors in Redis",
    ]
    assert (proof.bundles, proof.texts, proof.vectors) == (3, 3, 3)


async def test_every_kind_of_gap_is_named_by_its_keys() -> None:
    world = await World().fill()
    world.texts.add("1", None)
    world.vectors.add("2", "old")
    world.vectors.add("resurrected", "t9")
    world.vectors.add("3", "broken")
    world.index = Index({"1": "t1", "2": "old"})
    await world.bundles.put([(UnitKey(ROOT_UNIT, "never"), Stored(7, Meta("h", 1), b"{}"))])
    await world.states.write_texts("s", {"gone": VectorState(3, "h", "t3")})
    proof = await world.prove()
    assert not proof.complete and proof.unsettled == 0
    found = {(key, one.kind): one.told for key, one in proof.named}
    assert found["1", "the text topic differs from Redis"] == "nothing instead of t1"
    assert found["2", "the vector topic differs from Redis"] == "old instead of t2"
    assert found["resurrected", "the vector topic differs from Redis"] == "t9 instead of nothing"
    assert found["3", "the vector topic differs from Redis"] == f"{space_digest.UNREADABLE} instead of t3"
    assert found["never", "not looked at since the bundle was written"] == "build 7, looked at never"
    assert ("gone", "has a text although the bundle is gone") in found
    assert ("resurrected", "the index differs from the vector topic") in found
    assert len(set(proof.digests.values())) > 1
    assert proof.disagreements["the vector topic differs from Redis"] == 3
    assert "3 keys: the vector topic differs from Redis" in proof.reasons
    assert len((await (await World().fill()).prove(named_keys_max=0)).named) == 0


async def test_what_catches_up_while_it_looks_is_no_gap() -> None:
    world = await World().fill()
    await world.states.write_texts("s", {"1": VectorState(2, "h", "new")})
    world.texts.add("1", "new")

    def catch_up() -> None:
        if len(world.slept) == 2:
            world.states.spaces["s"]["1"] = VectorState(2, "h", "new", "new")
            world.vectors.add("1", "new")
            assert world.index is not None
            world.index.pairs["1"] = "new"

    world.between = catch_up
    proof = await world.prove()
    assert proof.complete and len(world.slept) == 2
    assert len(set(proof.digests.values())) == 1


async def test_a_key_that_never_rests_is_unsettled_and_no_gap() -> None:
    world = await World().fill()

    def move() -> None:
        world.texts.add("1", f"text {len(world.slept)}")

    world.between = move
    await world.states.write_texts("s", {"1": VectorState(2, "h", "new")})
    proof = await world.prove()
    assert (proof.complete, proof.unsettled) == (True, 1)
    assert len(set(proof.digests.values())) == 1, "without the moving key"


async def test_texts_without_a_vector_are_pending_failing_or_refused() -> None:
    world = await World().fill()
    states = world.states
    for key, problem in (("1", ""), ("2", "throttled"), ("3", "refused: the model takes no such text")):
        await states.write_texts("s", {key: VectorState(2, "h", "new", problem=problem)})
        states.spaces["s"][key] = VectorState(2, "h", "new", "", problem)
        world.texts.add(key, "new")
        world.vectors.add(key, None)
    world.index = Index({})
    proof = await world.prove()
    assert (proof.pending, proof.failing, proof.refused) == (1, 1, 1)
    assert proof.problems == {"throttled": 1, "refused: the model takes no such text": 1}
    assert proof.disagreements == {"pending": 1, "failing": 1}, "what never gets a vector holds up nobody"


def test_a_refused_text_whose_old_vector_is_still_there_is_not_complete() -> None:
    state = VectorState(2, "h", "new", "old", "refused: too odd")
    assert [one.kind for one in disagreements(View(2, state, "new", "old"))] == ["failing"]
    deleted = VectorState(3, "", "", "old")
    assert [one.kind for one in disagreements(View(None, deleted, None, "old"))] == ["pending"]


def test_an_expired_bundle_is_a_gap_unless_bundles_expire() -> None:
    view = View(None, VectorState(1, "h", "t1", "t1"), "t1", "t1")
    assert [one.kind for one in disagreements(view)] == ["has a text although the bundle is gone"]
    assert disagreements(view, expiring=True) == []


async def test_places_that_are_not_looked_at_are_not_judged() -> None:
    world = await World().fill()
    await world.states.write_texts("s", {"5": VectorState(1, "h", "t5")})
    world.vectors.add("odd", "t")
    places = Places(None, world.states, "s", None, None, _decoded, _decoded)
    proof = await prove_complete(places, world)
    assert proof.disagreements == {"pending": 1}
    assert sorted(proof.digests) == ["texts in Redis", "vectors in Redis"]
