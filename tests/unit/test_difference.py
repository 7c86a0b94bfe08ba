"""Differences between two bundles: what counts as one, and how it is shown."""

from __future__ import annotations

import pytest

from pipeline.ops.difference import ABSENT, Difference, differences


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        (b'{"a":1}', b'{ "a": 1.0 }'),
        (b'{"a":1e-7}', b'{"a":0.0000001}'),
        (b'{"a":"\xc3\xa9"}', b'{"a":"\\u00e9"}'),
        (None, None),
    ],
)
def test_spelling_is_no_difference(source: bytes | None, stored: bytes | None) -> None:
    assert differences(source, stored) == []


@pytest.mark.parametrize(
    ("source", "stored", "expected"),
    [
        (b'{"a":1}', b'{"a":true}', ("a", "1", "true")),
        (b'{"a":1}', b'{"a":"1"}', ("a", "1", '"1"')),
        (b'{"a":0.1}', b'{"a":0.10000000000000001}', ("a", "0.1", "0.10000000000000001")),
        (b'{"a":null}', b"{}", ("a", "null", ABSENT)),
        (b"{}", b'{"secret":1}', ("secret", ABSENT, "1")),
        (b'{"p":{"l":[{"i":1},{"i":2}]}}', b'{"p":{"l":[{"i":1},{"i":3}]}}', ("p.l[1].i", "2", "3")),
        (b'{"l":[1,2]}', b'{"l":[1]}', ("l[1]", "2", ABSENT)),
        (b'{"l":[1]}', b'{"l":[1,2]}', ("l[1]", ABSENT, "2")),
        (b'{"a":1,"b":2}', b'{"b":2,"a":1}', ("", "order a, b", "order b, a")),
        (b'{"a":1}', None, ("", '{"a":1}', ABSENT)),
        (None, b'{"a":1}', ("", ABSENT, '{"a":1}')),
        (b'{"a":1}', b'{"a":', ("", '{"a":1}', 'not JSON: {"a":')),
        (b'{"a":1}', b"\xff", ("", '{"a":1}', "not JSON: \ufffd")),
    ],
)
def test_a_difference_is_named_by_its_path(
    source: bytes | None, stored: bytes | None, expected: tuple[str, ...]
) -> None:
    assert differences(source, stored) == [Difference(*expected)]


def test_long_values_are_cut() -> None:
    (found,) = differences(b'{"a":"%b"}' % (b"x" * 1000), b'{"a":""}')
    assert len(found.source) == 200


def test_the_top_is_the_field_or_section() -> None:
    assert Difference("plane.recent[2].id", "1", "2").top == "plane"
    assert Difference("recent[2].id", "1", "2").top == "recent"
