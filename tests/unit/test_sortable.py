"""Entries compare as their values do, whatever the values."""

from __future__ import annotations

from decimal import Decimal
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


@given(st.lists(VALUES, max_size=3), st.binary(max_size=300))
def test_the_payload_comes_back(key: list[Any], payload: bytes) -> None:
    assert entry_payload(make_entry(b"prefix", key, payload)) == payload


@pytest.mark.parametrize("declared", ["decimal", "decimal(10,2)", "numeric", "float"])
def test_declared_numbers_sort_as_numbers(declared: str) -> None:
    encode = typed(encode_value, declared)
    texts = ["-Infinity", "-10", "-9.5", "0", "9.50", "10", "1e3", "Infinity", "NaN"]
    assert sorted(texts, key=encode) == texts
    assert encode("9.50") == encode("9.5") == encode_value(Decimal("9.5"))
    assert encode("no number") == encode_value("no number")


def test_undeclared_text_sorts_as_text() -> None:
    assert sorted(["9", "10"], key=typed(encode_value, "text")) == ["10", "9"]
