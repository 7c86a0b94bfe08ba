"""Key texts: one spelling per value, whatever connector sent it, and a way back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.keys import key_part, key_text, split_key_text


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


@given(st.lists(st.text(), min_size=1))
def test_texts_come_back(parts: list[str]) -> None:
    assert split_key_text(key_text(parts)) == parts
