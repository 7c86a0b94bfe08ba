"""Merging cell by cell: no order, no repetition, and exactly Cassandra's rules for who wins."""

from __future__ import annotations

import functools
from random import Random
from typing import Any

import pytest

from pipeline.cells import (
    EMPTY,
    RowState,
    Tombstone,
    covers,
    decode_state,
    encode_state,
    exists,
    expired,
    merged,
    next_expiry_us,
    values_of,
    version_of_state,
)
from schemas.mutation import Bound, Cell, Elements, Marker, Mutation

LISTED = frozenset({"v", "w", "tags", "steps", "names"})
COLUMNS = ["id", "v", "w", "tags", "steps", "names"]
PLACES = [f"{n:08x}-0000-1000-8000-000000000000" for n in (5, 3, 9)]


def row(*mutations: Mutation, now_us: int = 0) -> list[Any]:
    state = RowState(key=(1,))
    for mutation in mutations:
        state = expired(merged(state, mutation, LISTED), now_us)
    return values_of(state, COLUMNS)


def update(ts: int, **cells: Any) -> Mutation:
    return Mutation(
        cells={name: value if isinstance(value, Elements) else Cell(ts, value) for name, value in cells.items()}
    )


def random_mutation(random: Random) -> Mutation:
    ts = random.randint(1, 9)
    roll = random.random()
    if roll < 0.2:
        return Mutation(deleted=ts)
    cells: dict[str, Any] = {}
    for name in random.sample(["v", "w", "hidden"], random.randint(0, 2)):
        value = random.choice([None, 1, -1, "x", "xy", True, 1.5])
        cells[name] = Cell(ts, value, random.choice([None, None, 50, 80]) if value is not None else None)
    if random.random() < 0.4:
        kind, column, keys = random.choice(
            [("set", "tags", ["a", "b", 3]), ("list", "steps", PLACES), ("map", "names", ["k", "m"])]
        )
        elements = tuple(
            (key, Cell(ts, random.choice([None, True, "y"]), random.choice([None, 60])))
            for key in random.sample(keys, random.randint(0, 2))
        )
        cells[column] = Elements(kind, elements, random.choice([None, ts - 1]))
    marker = Marker(ts, random.choice([None, 70])) if roll < 0.6 else None
    return Mutation(cells=cells, marker=marker)


@pytest.mark.parametrize("seed", range(300))
def test_any_order_and_any_repetition_give_one_state(seed: int) -> None:
    random = Random(seed)
    mutations = [random_mutation(random) for _ in range(random.randint(2, 8))]
    merge = functools.partial(functools.reduce, lambda state, mutation: merged(state, mutation, LISTED))
    wanted = merge(mutations, EMPTY)
    for _ in range(5):
        shuffled = mutations + random.sample(mutations, random.randint(0, 2))
        random.shuffle(shuffled)
        found = merge(shuffled, EMPTY)
        assert found == wanted and version_of_state(found) == version_of_state(wanted)
    assert decode_state(encode_state(wanted)) == wanted
    assert expired(wanted, 55) == expired(expired(wanted, 55), 55)


@pytest.mark.parametrize("seed", range(300))
def test_a_version_never_goes_back(seed: int) -> None:
    random = Random(seed)
    state = EMPTY
    for _ in range(12):
        after = merged(state, random_mutation(random), LISTED)
        if random.random() < 0.2:
            after = expired(after, random.choice([40, 55, 90]))
        assert version_of_state(after) >= version_of_state(state)
        state = after


def test_a_partial_update_erases_no_other_column() -> None:
    assert row(Mutation(marker=Marker(1), cells={"v": Cell(1, 7), "w": Cell(1, "x")}), update(2, v=8)) == [
        1, 8, "x", None, None, None,
    ]  # fmt: skip


def test_of_one_timestamp_the_deleted_wins_then_the_expiring_then_the_larger_bytes() -> None:
    expiring = Mutation(cells={"v": Cell(5, 1, 90)})
    longer = Mutation(cells={"v": Cell(5, 0, 95)})
    for writes, wanted in (
        ([update(5, v=1), update(5, v=2)], 2),
        ([update(5, v=-1), update(5, v=2)], -1),
        ([update(5, v=-2), update(5, v=-1)], -1),
        ([update(5, v="a"), update(5, v="b")], "b"),
        ([update(5, v=2), expiring], 1),
        ([expiring, longer], 0),
        ([Mutation(cells={"v": Cell(5, "9", raw="00")}), Mutation(cells={"v": Cell(5, "1", raw="01")})], "1"),
    ):
        for order in (writes, writes[::-1]):
            assert row(*order)[1] == wanted
    assert row(update(5, v=9), update(5, v=None)) == [] == row(update(5, v=None), update(5, v=9))


def test_a_row_lives_by_its_marker_or_by_any_value_even_an_unlisted_one() -> None:
    assert row(update(1, v=1), update(2, v=None)) == []
    assert row(Mutation(marker=Marker(1)), update(2, v=None)) == [1, None, None, None, None, None]
    assert row(update(1, hidden="secret")) == [1, None, None, None, None, None]
    assert b"secret" not in encode_state(merged(EMPTY, update(1, hidden="secret"), LISTED))
    assert row(Mutation(marker=Marker(1)), Mutation(deleted=1)) == []
    assert row(Mutation(marker=Marker(1)), Mutation(deleted=3), update(2, v=1)) == []
    assert row(Mutation(deleted=3), update(4, v=1)) == [1, 1, None, None, None, None]


def test_what_lives_for_a_time_dies_by_itself_and_stays_dead_when_it_comes_again() -> None:
    insert = Mutation(marker=Marker(1, 50), cells={"v": Cell(1, 7, 50)})
    state = merged(RowState(key=(1,)), insert, LISTED)
    assert next_expiry_us(state) == 50 and exists(state) and exists(expired(state, 49))
    dead = expired(state, 50)
    assert not exists(dead) and next_expiry_us(dead) is None
    assert not exists(merged(dead, insert, LISTED)), "a late copy of the same write"
    assert version_of_state(dead) > version_of_state(state)
    assert values_of(merged(dead, update(2, w="kept"), LISTED), COLUMNS)[2] == "kept"


def test_collections_are_deltas() -> None:
    add = update(1, tags=Elements("set", (("b", Cell(1, True)), ("a", Cell(1, True)))))
    overwrite = update(5, tags=Elements("set", (("c", Cell(5, True)),), cleared=4))
    remove = update(6, tags=Elements("set", (("c", Cell(6)),)))
    assert row(add)[3] == ["a", "b"]
    assert row(add, overwrite)[3] == ["c"] == row(overwrite, add)[3]
    assert row(add, overwrite, remove) == [], "an empty collection is null"
    steps = Elements("list", tuple((place, Cell(1, number)) for number, place in enumerate(PLACES)))
    assert row(update(1, steps=steps))[4] == [1, 0, 2], "in the order of their places' times"
    names = Elements("map", (("k", Cell(1, 5)), (7, Cell(1, None)), (8, Cell(1, "x"))))
    assert row(update(1, names=names))[5] == {"k": 5, "8": "x"}


def test_ranges_are_compared_by_value() -> None:
    stone = Tombstone(5, Bound((2,), False), Bound((10,), True))
    assert [covers(stone, [value], [None]) for value in (2, 3, 9, 10, 11)] == [False, True, True, True, False]
    deep = Tombstone(5, Bound(("a", 1), True), None)
    assert [covers(deep, values, [None, None]) for values in (["a", 0], ["a", 1], ["b", 0])] == [False, True, True]
    prefix = Tombstone(5, Bound(("a",), True), Bound(("a",), True))
    assert [covers(prefix, values, [None, None]) for values in (["a", 9], ["b", 0])] == [True, False]
    decimals = Tombstone(5, Bound(("9",), True), None)
    assert covers(decimals, ["10"], ["decimal"]) and not covers(decimals, ["10"], [None])
