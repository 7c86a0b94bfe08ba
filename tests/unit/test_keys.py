"""Key texts: one spelling per value, whatever connector sent it, and a way back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.context import ContextSpec
from schemas.keys import key_part, key_text, plain_decimal, root_key_texts, split_key_text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, "7"),
        ("7", "7"),
        (7.0, "7"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e15, "1000000000000000.0"),
        (10**30, "1" + "0" * 30),
        (True, "true"),
        (None, "%00"),
        ("%00", "%2500"),
        ("a|b", "a%7Cb"),
        ([1, "|"], '[1,"%7C"]'),
    ],
)
def test_one_spelling_per_value(value: Any, expected: str) -> None:
    assert key_part(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[("1.00", "1"), ("1.50", "1.5"), ("-0.00", "0"), ("0.10", "0.1")],
        *((same, same) for same in ("100", "NaN", "01.0", ".50", "1.", "1.0e5", "١.٠", "1.0\n", 7, None)),
    ],
)
def test_decimals_that_are_equal_are_spelt_alike(value: Any, expected: Any) -> None:
    assert plain_decimal(value) == expected


@pytest.mark.parametrize(
    ("types", "expected"), [({"a": "decimal(9,2)"}, "1|2.00|x%7Cy"), ({"b": "numeric"}, "1.00|2|x%7Cy"), ({}, None)]
)
def test_a_key_is_asked_for_in_any_spelling(types: dict[str, str], expected: str | None) -> None:
    entity = {"source": "s", "table": "public.t", "key": ["a", "b", "c"]}
    spec = {"context": "c", "version": 1, "root": "t", "fields": ["a"]}
    spec["entities"] = {"t": {**entity}, "again": {**entity, "types": types}}
    written = "1.00|2.00|x%7Cy"
    assert root_key_texts(ContextSpec.model_validate(spec), [written]) == [expected or written]


@given(st.lists(st.text(), min_size=1))
def test_texts_come_back(parts: list[str]) -> None:
    assert split_key_text(key_text(parts)) == parts
