"""Entries compare as their values do, whatever the values."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sortable import encode_descending, encode_value, entry_payload, make_entry, typed

NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40),
)
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text())
MOMENTS = [
    "-infinity",
    "0045-12-31T23:59:59Z BC",
    "0044-03-15 BC",
    "0044-03-15T12:00:00Z BC",
    "0044-03-15T12:00:00.5Z BC",
    "0044-03-16T00:00:00 BC",
    "0001-01-01",
    "2026-01-02",
    "2026-01-02T03:04:04.999999Z",
    "2026-01-02T03:04:05",
    "2026-01-02T03:04:05Z",
    "2026-01-02T03:04:05.000001Z",
    "2026-01-02T03:04:05.5",
    "2026-01-02T03:04:05.5Z",
    "2026-01-02T03:04:05.55Z",
    "2026-01-02T03:04:06Z",
    "9999-12-31T23:59:59.9Z",
    "10000-01-01T00:00:00Z",
    "10000-01-01T00:00:00.1Z",
    "99999-01-01T00:00:00",
    "294276-12-31T23:59:59.999999Z",
    "infinity",
]
"""As they follow each other. Those without a zone stand in columns of their own, and still differ from the others."""


def _order(value: Any) -> tuple[int, Any]:
    if value is None:
        return 0, 0
    if isinstance(value, bool):
        return 1, value
    if isinstance(value, str):
        return 3, value.encode("utf-8", "surrogatepass")
    return 2, Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


@given(VALUES, VALUES)
def test_bytes_compare_like_values(a: Any, b: Any) -> None:
    left, right = encode_value(a), encode_value(b)
    assert (left < right) == (_order(a) < _order(b))
    assert (left == right) == (_order(a) == _order(b))
    assert (encode_descending(a) < encode_descending(b)) == (_order(a) > _order(b))


@given(VALUES, VALUES)
def test_no_value_is_the_beginning_of_another(a: Any, b: Any) -> None:
    left, right = encode_value(a), encode_value(b)
    assert left == right or not left.startswith(right)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_payload_comes_back(prefix: bytes, payload: bytes) -> None:
    assert entry_payload(make_entry(prefix, payload)) == payload


def test_times_sort_as_moments() -> None:
    """Z is greater than the dot and the digits, so by code point the whole second would come last of all."""
    shuffled = Random(1).sample(MOMENTS, len(MOMENTS))
    for declared in (None, "timestamptz"):
        assert sorted(shuffled, key=typed(encode_value, declared)) == MOMENTS
        assert sorted(shuffled, key=typed(encode_descending, declared)) == MOMENTS[::-1]
    encoded = [encode_value(text) for text in MOMENTS]
    assert len(set(encoded)) == len(encoded)
    assert not [one for one in encoded for other in encoded if one is not other and other.startswith(one)]


@given(st.from_regex(r"(2026|0044|10000)-01-02(T03:04:05(\.5)?Z?)?( BC)?(\x00|\x01|Z)?", fullmatch=True), st.text())
def test_what_looks_like_a_time_differs_from_all_other_text(one: str, other: str) -> None:
    for text in (other, one + other, one[:-1]):
        assert (encode_value(one) == encode_value(text)) == (one == text)
        assert one == text or not encode_value(text).startswith(encode_value(one))


def test_times_that_are_declared_text_sort_as_text() -> None:
    assert sorted(MOMENTS, key=typed(encode_value, "text")) == sorted(MOMENTS)
    assert sorted(MOMENTS, key=typed(encode_descending, "text")) == sorted(MOMENTS, reverse=True)
    assert typed(encode_descending, "text")(7) == encode_descending(7)


def test_numbers_of_parts_are_no_dates() -> None:
    texts = ["12345-01-02", "1999-01-02", "2"]
    assert sorted(texts, key=encode_value) == texts


@pytest.mark.parametrize("declared", ["decimal", "decimal(10,2)", "numeric", "float"])
def test_declared_numbers_sort_as_numbers(declared: str) -> None:
    encode = typed(encode_value, declared)
    texts = ["-Infinity", "-10", "-9.5", "0", "9.50", "10", "1e3", "Infinity", "NaN"]
    assert sorted(texts, key=encode) == texts
    assert encode("9.50") == encode("9.5") == encode_value(Decimal("9.5"))
    assert encode("no number") == encode_value("no number")


def test_undeclared_text_sorts_as_text() -> None:
    assert sorted(["9", "10"], key=typed(encode_value, "text")) == ["10", "9"]
