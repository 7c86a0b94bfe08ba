"""The near cache: what it may say in every order of reads, changes and flushes, and what it holds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from pipeline.stores import near_cache
from pipeline.stores.near_cache import UNKNOWN, NearBundle, NearCache
from schemas.bundle import (
    ROOT_UNIT,
    FragmentReference,
    Meta,
    RowReference,
    SourceState,
    Stored,
    UnitKey,
    decode_stored,
    encode_stored,
)

ROOT, PLANE = UnitKey(ROOT_UNIT, "flight"), UnitKey("plane", "N1")


def stored(counter: int, fragments: Sequence[UnitKey] = (), body: bytes = b"{}") -> Stored:
    references = [FragmentReference(1, name.unit, name.key) for name in fragments]
    return Stored(counter, Meta(hash=f"{counter:032x}", spec_version=1, fragments=references), body)


def cache(bytes_max: int = 1 << 20) -> NearCache:
    made = NearCache(bytes_max)
    made.confirmed_at_s = 0.0
    return made


def filled(near: NearCache, values: dict[UnitKey, Stored | None]) -> NearCache:
    near.fill(near.begin(), values)
    return near


def counter_of(near: NearCache, key: str) -> int | None:
    found = near.bundle(key)
    return None if found is None or found.fetched.bundle is None else found.fetched.bundle.counter


def test_a_bundle_is_known_when_all_its_fragments_are() -> None:
    near = filled(cache(), {ROOT: stored(1, [PLANE])})
    assert near.bundle("flight") is None
    filled(near, {PLANE: stored(2)})
    found = near.bundle("flight")
    assert found is not None
    assert found.fetched.bundle == stored(1, [PLANE])
    assert found.fetched.fragments == {("plane", "N1"): stored(2)}
    assert (near.hits, near.misses) == (1, 1)


def test_what_redis_has_none_of_is_known_too() -> None:
    near = filled(cache(), {ROOT: stored(1, [PLANE]), PLANE: None, UnitKey(ROOT_UNIT, "none"): None})
    assert near.fragment("plane", "N1") is None
    assert near.fragment("plane", "N2") is UNKNOWN
    flight, none = near.bundle("flight"), near.bundle("none")
    assert flight is not None and flight.fetched.fragments == {}
    assert none is not None and none.fetched.bundle is None


def test_a_deleted_one_is_there_for_nobody() -> None:
    near = filled(cache(), {ROOT: Stored(7, None, b"")})
    found = near.bundle("flight")
    assert found is not None and found.fetched.bundle is None


def test_a_null_reference_and_one_that_comes_twice_need_nothing_more() -> None:
    references = [FragmentReference(1, "plane", "N1"), FragmentReference(2, "plane", "N1")]
    bundle = Stored(1, Meta("h", 1, fragments=[*references, FragmentReference(3, "plane", None)]), b"{}")
    near = filled(cache(), {ROOT: bundle, PLANE: stored(2)})
    found = near.bundle("flight")
    assert found is not None and list(found.fetched.fragments) == [("plane", "N1")]


def test_nothing_is_filled_in_while_nobody_tells_of_changes() -> None:
    near = NearCache(1 << 20)
    filled(near, {ROOT: stored(1)})
    assert near.bundle("flight") is None and len(near) == 0


class TestTheSameObject:
    @pytest.fixture
    def near(self) -> NearCache:
        return filled(cache(), {ROOT: stored(1, [PLANE]), PLANE: stored(2)})

    def kept(self, near: NearCache) -> NearBundle:
        found = near.bundle("flight")
        assert found is not None
        found.memo = "made of it"
        return found

    def test_until_something_changes(self, near: NearCache) -> None:
        found = self.kept(near)
        assert near.bundle("flight") is found

    def test_also_when_the_same_is_read_again(self, near: NearCache) -> None:
        found = self.kept(near)
        filled(near, {ROOT: stored(1, [PLANE]), PLANE: stored(2), UnitKey(ROOT_UNIT, "other"): None})
        assert near.bundle("flight") is found and found.memo == "made of it"

    @pytest.mark.parametrize("name", [ROOT, PLANE])
    def test_not_when_another_is_read(self, near: NearCache, name: UnitKey) -> None:
        found = self.kept(near)
        filled(near, {name: stored(9, [PLANE] if name is ROOT else [])})
        again = near.bundle("flight")
        assert again is not None and again is not found and again.memo is None

    @pytest.mark.parametrize("name", [ROOT, PLANE])
    def test_not_after_one_was_invalidated_and_filled_with_the_very_same(self, near: NearCache, name: UnitKey) -> None:
        found = self.kept(near)
        near.invalidate([name])
        assert near.bundle("flight") is None
        filled(near, {name: stored(1, [PLANE]) if name is ROOT else stored(2)})
        again = near.bundle("flight")
        assert again is not None and again is not found

    def test_nor_after_a_flush(self, near: NearCache) -> None:
        self.kept(near)
        near.flush()
        assert near.bundle("flight") is None
        assert (len(near), near.bytes_used, near.flushes) == (0, 0, 1)


def test_a_hot_fragment_leaves_all_its_bundles() -> None:
    keys = [f"flight {number}" for number in range(1_000)]
    values: dict[UnitKey, Stored | None] = {UnitKey(ROOT_UNIT, key): stored(1, [PLANE]) for key in keys}
    near = filled(cache(1 << 24), {**values, PLANE: stored(2)})
    assert all(near.bundle(key) is not None for key in keys)
    near.invalidate([PLANE])
    assert all(near.bundle(key) is None for key in keys)
    filled(near, {PLANE: stored(3)})
    for key in keys:
        found = near.bundle(key)
        assert found is not None and found.fetched.fragments["plane", "N1"].counter == 3


class _Redis:
    """One value, a connection that tells of its changes, and the near cache behind it."""

    def __init__(self) -> None:
        self.value, self.near = 1, cache()
        self.ticket, self.read = 0, 0

    def begin(self) -> None:
        self.ticket = self.near.begin()

    def execute(self) -> None:
        self.read = self.value

    def fill(self) -> None:
        self.near.fill(self.ticket, {ROOT: stored(self.read)})

    def write(self) -> None:
        self.value += 1

    def tell(self) -> None:
        self.near.invalidate([ROOT])

    def flush(self) -> None:
        self.near.flush()


READ, CHANGE, LOST = ("begin", "execute", "fill"), ("write", "tell"), ("write", "flush")


def merges(*sequences: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every order of these steps in which each sequence keeps its own."""
    if not any(sequences):
        yield ()
        return
    for number, sequence in enumerate(sequences):
        if sequence:
            rest = [s[1:] if n == number else s for n, s in enumerate(sequences)]
            for order in merges(*rest):
                yield (sequence[0], *order)


@pytest.mark.parametrize("changes", [(CHANGE,), (CHANGE, CHANGE), (LOST,), (CHANGE, LOST)], ids=str)
def test_a_read_and_changes_in_every_order(changes: tuple[tuple[str, ...], ...]) -> None:
    """What was told of is never answered from before it, however late the read comes."""
    orders = list(merges(READ, *changes))
    assert len(orders) >= 10
    for order in orders:
        redis = _Redis()
        told = 1
        for step in order:
            getattr(redis, step)()
            if step in ("tell", "flush"):
                told += 1
            known = counter_of(redis.near, "flight")
            assert known is None or known >= told, order
    # And it is of use: a read without a change in between stays.
    redis = _Redis()
    for step in READ:
        getattr(redis, step)()
    assert counter_of(redis.near, "flight") == 1


class ReadsAndChanges(RuleBasedStateMachine):
    """Several reads on their way at once, two names, marks that run out; `truth` is what Redis holds and `told` up to
    where it has told of changes."""

    reads = Bundle("reads")

    @initialize()
    def start(self) -> None:
        self.near = cache()
        self.truth, self.told = {ROOT: 1, PLANE: 1}, {ROOT: 1, PLANE: 1}
        self.pending: list[UnitKey] = []

    @rule(target=reads, names=st.sets(st.sampled_from([ROOT, PLANE]), min_size=1))
    def begin(self, names: set[UnitKey]) -> dict[str, object]:
        return {"ticket": self.near.begin(), "names": names, "values": None}

    @rule(read=reads)
    def execute(self, read: dict[str, object]) -> None:
        if read["values"] is None:
            read["values"] = {name: self.truth[name] for name in read["names"]}  # type: ignore[attr-defined]

    @rule(read=consumes(reads))
    def fill(self, read: dict[str, object]) -> None:
        values = read["values"]
        if values is not None:
            fragments = {ROOT: [PLANE], PLANE: []}
            filling = {name: stored(at, fragments[name]) for name, at in values.items()}  # type: ignore[attr-defined]
            self.near.fill(read["ticket"], filling)  # type: ignore[arg-type]

    @rule(name=st.sampled_from([ROOT, PLANE]))
    def write(self, name: UnitKey) -> None:
        self.truth[name] += 1
        self.pending.append(name)

    @rule()
    def tell(self) -> None:
        names, self.pending = self.pending, []
        self.near.invalidate(list(dict.fromkeys(names)))
        self.told = dict(self.truth)

    @rule()
    def tell_of_many_others(self) -> None:
        self.near.invalidate([UnitKey("other", str(number)) for number in range(3)])

    @rule()
    def lose_the_connection(self) -> None:
        self.pending = []
        self.near.flush()
        self.told = dict(self.truth)

    @invariant()
    def nothing_is_older_than_what_was_told(self) -> None:
        found = self.near.bundle("flight")
        if found is not None and found.fetched.bundle is not None:
            assert found.fetched.bundle.counter >= self.told[ROOT]
            assert all(one.counter >= self.told[PLANE] for one in found.fetched.fragments.values())
        plane = self.near.fragment("plane", "N1")
        assert not isinstance(plane, Stored) or plane.counter >= self.told[PLANE]


@pytest.fixture(autouse=True)
def _few_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_cache, "MARKS_MAX", 2)


TestReadsAndChanges = ReadsAndChanges.TestCase
TestReadsAndChanges.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def test_marks_are_bounded_and_a_read_older_than_the_oldest_fills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_cache, "MARKS_MAX", 10)
    near = cache()
    old = near.begin()
    for number in range(12):
        near.invalidate([UnitKey("other", str(number))])
    assert len(near._marks) == 10
    near.fill(old, {ROOT: stored(1)})
    assert near.bundle("flight") is None
    filled(near, {ROOT: stored(1)})
    assert near.bundle("flight") is not None


class TestBytes:
    def test_the_least_recently_used_goes_first(self) -> None:
        near = cache()
        for key in "abc":
            filled(near, {UnitKey(ROOT_UNIT, key): stored(1)})
            assert near.bundle(key) is not None
        near.bytes_max = near.bytes_used
        assert near.bundle("a") is not None
        filled(near, {UnitKey(ROOT_UNIT, "d"): stored(1)})
        assert [near.bundle(key) is not None for key in "bac"] == [False, True, True]
        assert near.evictions == 1 and near.bytes_used <= near.bytes_max

    def test_fragments_of_a_bundle_in_use_stay_with_it(self) -> None:
        near = cache(60_000)
        filled(near, {ROOT: stored(1, [PLANE]), PLANE: stored(2, body=b"y" * 5_000)})
        for number in range(100):
            assert near.bundle("flight") is not None, number
            filled(near, {UnitKey(ROOT_UNIT, str(number)): stored(1, body=b"x" * 5_000)})
        assert near.evictions > 80 and near.bytes_used <= 60_000

    def test_one_that_is_larger_than_all_is_not_kept(self) -> None:
        near = filled(cache(5_000), {ROOT: stored(1, body=b"x" * 6_000)})
        assert near.bundle("flight") is None and near.bytes_used == 0

    def test_nor_one_that_is_too_large_with_what_is_made_of_it(self) -> None:
        near = filled(cache(9_000), {ROOT: stored(1, [PLANE], b"x" * 3_000), PLANE: stored(2, body=b"y" * 2_000)})
        assert near.bundle("flight") is None
        assert near.bytes_used <= 9_000

    def test_none_at_all(self) -> None:
        near = filled(cache(0), {ROOT: stored(1), PLANE: None})
        assert near.bundle("flight") is None and len(near) == 0 and near.bytes_used == 0

    def test_what_goes_is_taken_off(self) -> None:
        near = cache()
        values: dict[UnitKey, Stored | None] = {ROOT: stored(1, [PLANE]), PLANE: stored(2)}
        for names in [[ROOT], [PLANE], [ROOT, PLANE]] * 3:
            filled(near, values)
            assert near.bundle("flight") is not None
            near.invalidate(names)
            assert near.bundle("flight") is None
        near.invalidate([ROOT, PLANE])
        assert (len(near), near.bytes_used) == (0, 0)

    @pytest.mark.parametrize("length", [0, 300, 3_000])
    def test_what_is_counted_is_what_the_interpreter_takes(self, length: int) -> None:
        """With what its user makes of it: the spliced bytes."""

        def value(number: int, fragments: Sequence[UnitKey] = ()) -> Stored:
            references = [FragmentReference(1, name.unit, name.key) for name in fragments]
            sources = {"nyc": SourceState(f"{number:032d}", 10**15 + number)}
            rows = [RowReference(1, f"row {number}", f"{number:032d}", 10**15)] * 3
            meta = Meta(f"{number:032x}", 1, sources, references, rows=rows, tokens={"": 10, "plane": 3})
            return decode_stored(encode_stored(Stored(10**15 + number, meta, b"x" * length)))

        def build(make: Callable[[], NearCache]) -> tuple[NearCache, int]:
            tracemalloc.start()
            made = make()
            taken = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            return made, taken

        def make() -> NearCache:
            near = cache(1 << 30)
            for number in range(1_000):
                own = UnitKey("plane", f"N{number}")
                filled(near, {UnitKey(ROOT_UNIT, f"key {number}"): value(number, [own]), own: value(number)})
            for number in range(1_000):
                found = near.bundle(f"key {number}")
                assert found is not None
                found.memo = b"y" * (2 * length)
            return near

        near, taken = build(make)
        assert 0.8 * taken <= near.bytes_used <= 1.5 * taken, (near.bytes_used, taken)


def test_what_was_there_lately_is_answered_with_what_was_said_of_it_then() -> None:
    near, said = NearCache(1_000_000), [1]
    near.label_now = lambda: said[0]
    near.confirmed_at_s = 10.0
    near.fill(near.begin(), {ROOT: stored(1, [PLANE]), PLANE: stored(1)})
    first = near.bundle(ROOT.key)
    assert first is not None and near.lately(ROOT.key, 99.0) == (first, None), "what holds now needs no time"
    near.invalidate([PLANE])
    assert near.bundle(ROOT.key) is None and near.lately(ROOT.key, 10.0) == (first, 1)
    said[0], near.confirmed_at_s = 2, 10.1
    near.invalidate([ROOT])
    assert near.lately(ROOT.key, 10.0) == (first, 1), "the oldest of what is said of its parts"
    assert near.lately(ROOT.key, 10.05) is None and near.lately(ROOT.key, 10.0) is None, "too long ago, for good"
    near.fill(near.begin(), {ROOT: stored(2, [PLANE]), PLANE: stored(2)})
    second = near.bundle(ROOT.key)
    assert second is not None and second is not first and near.lately(ROOT.key, 10.0) == (second, None)
    near.invalidate([ROOT])
    assert near.lately(ROOT.key, 10.0) == (second, 2)
    near.flush()
    assert near.lately(ROOT.key, 0.0) is None, "another server may answer now"
    alone = NearCache(1_000_000)
    alone.confirmed_at_s = 1.0
    alone.fill(alone.begin(), {ROOT: stored(1, [PLANE]), PLANE: stored(1)})
    assert alone.bundle(ROOT.key) is not None
    alone.invalidate([PLANE])
    assert alone.lately(ROOT.key, 0.0) is None, "nobody says how old it is"


def test_what_made_room_is_not_answered_lately() -> None:
    near = NearCache(1_000_000)
    near.label_now = lambda: 1
    near.confirmed_at_s = 1.0
    near.fill(near.begin(), {ROOT: stored(1, [PLANE]), PLANE: stored(1)})
    assert near.bundle(ROOT.key) is not None
    near.bytes_max = 0
    near.fill(near.begin(), {UnitKey("", "other"): stored(1)})
    assert len(near) == 0 and near.lately(ROOT.key, 0.0) is None, "nobody tells of its changes any more"
