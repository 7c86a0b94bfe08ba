"""Sums by limbs are exact, in any order, with removals; averages round half to even."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exact import limbs_of, number_of, quotient, total_of

FINITE = st.one_of(
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30).map(str),
)


def _fraction(value: Any) -> Fraction:
    return Fraction(Decimal(repr(value)) if isinstance(value, float) else Decimal(value))


@given(st.lists(st.tuples(FINITE, st.booleans())))
def test_the_total_is_exact_with_removals(changes: list[tuple[Any, bool]]) -> None:
    limbs: dict[int, int] = {}
    expected = Fraction(0)
    for value, removed_again in changes:
        number = number_of(value)
        assert number is not None
        for exponent, limb in limbs_of(number).items():
            assert abs(limb) < 10**9
            limbs[exponent] = limbs.get(exponent, 0) + (0 if removed_again else limb)
        expected += 0 if removed_again else _fraction(value)
    total = total_of(limbs)
    assert Fraction(total) == expected
    assert isinstance(total, int) == (expected.denominator == 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["NaN", "1"], "NaN"),
        (["Infinity", "1"], "Infinity"),
        (["-Infinity", "-1"], "-Infinity"),
        (["Infinity", "-Infinity"], "NaN"),
        ([], 0),
        (["0.1", "0.2"], Decimal("0.3")),
        ([0.1, 0.2], Decimal("0.3")),
    ],
)
def test_special_values_decide_as_postgres_does(values: list[Any], expected: Any) -> None:
    limbs: dict[int, int] = {}
    for value in values:
        for exponent, limb in limbs_of(number_of(value) or 0).items():
            limbs[exponent] = limbs.get(exponent, 0) + limb
    assert total_of(limbs) == expected


@pytest.mark.parametrize("value", [None, True, "abc", "", [1], {"a": 1}, "1e999999", "1_000", " 1", "١٢", "nan"])
def test_what_is_no_number_does_not_count(value: Any) -> None:
    assert number_of(value) is None


@given(st.integers(-(10**20), 10**20), st.integers(1, 10**6), st.integers(0, 8))
def test_quotients_round_half_to_even(total: int, count: int, places: int) -> None:
    assert Fraction(quotient(total, count, places) or 0) == Fraction(
        round(Fraction(total, count) * 10**places), 10**places
    )


def test_a_quotient_over_nothing_is_nothing() -> None:
    assert quotient(5, 0, 2) is None
    assert quotient("NaN", 3, 2) == "NaN"
    assert quotient(Decimal("2.5"), 1, 0) == 2
    assert quotient(Decimal("3.5"), 1, 0) == 4
