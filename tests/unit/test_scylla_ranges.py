"""Ranges in a table's own order say the same as what becomes of them in ascending order."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from connectors.scylla.ranges import ascending
from pipeline.cells import Tombstone, newest_cover
from schemas.mutation import Bound

VALUES = range(4)
COLUMNS = 3
bounds = st.builds(
    Bound, st.lists(st.sampled_from(VALUES), min_size=1, max_size=COLUMNS).map(tuple), inclusive=st.booleans()
)


def place(values: tuple[int, ...], descending: list[bool]) -> tuple[int, ...]:
    """Sorts as the table does."""
    return tuple(-value if down else value for value, down in zip(values, descending, strict=False))


def inside(row: tuple[int, ...], start: Bound | None, end: Bound | None, descending: list[bool]) -> bool:
    """By the table's order: a bound of some columns stands before or behind all rows that begin with them."""
    for bound, sign in ((start, 1), (end, -1)):
        if bound is not None:
            own, limit = place(row[: len(bound.values)], descending), place(bound.values, descending)
            if own == limit:
                if not bound.inclusive:
                    return False
            elif (own > limit) != (sign > 0):
                return False
    return True


def sensible(start: Bound | None, end: Bound | None, descending: list[bool]) -> bool:
    """The server writes no range that ends before it starts, nor one around an excluded point."""
    if start is None or end is None:
        return True
    first, last = place(start.values, descending), place(end.values, descending)
    common = min(len(first), len(last))
    if first[:common] == last[:common]:
        return (start.inclusive or len(first) > len(last)) and (end.inclusive or len(last) > len(first))
    return first < last


@given(st.none() | bounds, st.none() | bounds, st.lists(st.booleans(), min_size=COLUMNS, max_size=COLUMNS))
def test_the_same_rows(start: Bound | None, end: Bound | None, descending: list[bool]) -> None:
    if not sensible(start, end, descending):
        return
    stones = [Tombstone(1, lower, upper) for lower, upper in ascending(start, end, descending)]
    for row in product(VALUES, repeat=COLUMNS):
        covered = newest_cover(stones, row, [None] * COLUMNS) is not None
        assert covered == inside(row, start, end, descending), row


def test_a_descending_column_swaps_its_bounds() -> None:
    start, end = Bound((3,), True), Bound((1,), False)
    assert ascending(start, end, [True]) == [(end, start)]
    assert ascending(start, None, [True]) == [(None, start)]
    assert ascending(end, start, [False]) == [(end, start)]


def test_mixed_orders_fall_into_several() -> None:
    found = ascending(Bound((1, 5), False), Bound((3,), True), [False, True])
    assert found == [
        (Bound((1,), True), Bound((1, 5), False)),
        (Bound((1,), False), Bound((3,), True)),
    ]
