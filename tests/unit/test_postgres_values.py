"""Postgres text output → canonical JSON: a golden table, and the arrays and hstores that need a parser."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.postgres.values import BUILT_IN_TYPES, PostgresType, canonical, converter_for, parts_of
from pipeline.core.errors import Fatal, Poison

BY_NAME = {found.name: oid for oid, found in BUILT_IN_TYPES.items()}
TYPES = {
    **BUILT_IN_TYPES,
    22: PostgresType(22, "int2vector", category="A", element=21),
    1007: PostgresType(1007, "_int4", category="A", element=23),
    1009: PostgresType(1009, "_text", category="A", element=25),
    1185: PostgresType(1185, "_timestamptz", category="A", element=1184),
    90001: PostgresType(90001, "mood", kind="e", category="E"),
    90002: PostgresType(90002, "price", kind="d", category="N", base=1700, modifier=655366),
    90003: PostgresType(90003, "hstore"),
    90004: PostgresType(90004, "pair", kind="c", category="C"),
    90005: PostgresType(90005, "_mood", category="A", element=90001),
    90006: PostgresType(90006, "flag", kind="d", category="V", base=1560, modifier=1),
    603: PostgresType(603, "box", category="G"),
    1020: PostgresType(1020, "_box", category="A", element=603, delimiter=";"),
}

GOLDEN = [
    ("int8", b"-9223372036854775808", -9223372036854775808),
    ("int4", b"0", 0),
    ("float8", b"1.7976931348623157e+308", 1.7976931348623157e308),
    ("float8", b"5e-324", 5e-324),
    ("float8", b"NaN", "NaN"),
    ("float8", b"-Infinity", "-Infinity"),
    ("float4", b"Infinity", "Infinity"),
    ("numeric", b"12345678901234567890.000000000000000001", "12345678901234567890.000000000000000001"),
    ("numeric", b"NaN", "NaN"),
    ("bool", b"t", True),
    ("bool", b"f", False),
    ("text", b"", ""),
    ("text", 'Ünï "quoted" \\ \t\n \x7f \U0001f600'.encode(), 'Ünï "quoted" \\ \t\n \x7f \U0001f600'),
    ("jsonb", b'{"a": [1, "\\u00e9"]}', '{"a": [1, "\\u00e9"]}'),
    ("bytea", b"\\x", ""),
    ("bytea", b"\\x00ff10", "AP8Q"),
    ("date", b"2026-01-02", "2026-01-02"),
    ("date", b"0044-03-15 BC", "0044-03-15 BC"),
    ("date", b"infinity", "infinity"),
    ("timestamp", b"2026-01-02 03:04:05.6", "2026-01-02T03:04:05.6"),
    ("timestamp", b"infinity", "infinity"),
    ("timestamp", b"-infinity", "-infinity"),
    ("timestamptz", b"2026-01-02 03:04:05.678901+00", "2026-01-02T03:04:05.678901Z"),
    ("timestamptz", b"294276-12-31 23:59:59.999999+00", "294276-12-31T23:59:59.999999Z"),
    ("timestamptz", b"4713-01-01 00:00:00+00 BC", "4713-01-01T00:00:00Z BC"),
    ("timestamptz", b"-infinity", "-infinity"),
    ("time", b"24:00:00", "24:00:00"),
    ("interval", b"P1Y2M3DT4H5M6.7S", "P1Y2M3DT4H5M6.7S"),
    ("uuid", b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("varbit", b"1010", "1010"),
    ("point", b"(1.5,-2)", {"x": 1.5, "y": -2}),
    ("point", b"(NaN,Infinity)", {"x": "NaN", "y": "Infinity"}),
]


@pytest.mark.parametrize(("type_name", "output", "expected"), GOLDEN)
def test_golden(type_name: str, output: bytes, expected: object) -> None:
    assert canonical(output, converter_for(BY_NAME[type_name], -1, TYPES)) == expected


@pytest.mark.parametrize(
    ("oid", "modifier", "output", "expected"),
    [
        (1560, 1, b"1", True),
        (1560, 3, b"101", "101"),
        (90006, -1, b"0", False),
        (1007, -1, b"{}", []),
        (1007, -1, b"{1,NULL,-3}", [1, None, -3]),
        (1007, -1, b"[0:1]={5,6}", [5, 6]),
        (1007, -1, b"{{1,2},{3,4}}", [[1, 2], [3, 4]]),
        (1009, -1, b'{a,"b,c","NULL",NULL,"q\\"\\\\",""}', ["a", "b,c", "NULL", None, 'q"\\', ""]),
        (1185, -1, b'{"2026-01-02 03:04:05+00"}', ["2026-01-02T03:04:05Z"]),
        (90005, -1, b"{glad,sad}", ["glad", "sad"]),
        (1020, -1, b"{(2,2),(1,1);(4,4),(3,3)}", ["(2,2),(1,1)", "(4,4),(3,3)"]),
        (22, -1, b"1 2 3", "1 2 3"),
        (90001, -1, b"glad", "glad"),
        (90002, -1, b"1.50", "1.50"),
        (90004, -1, b'(1,"a b")', '(1,"a b")'),
        (90003, -1, b'"a"=>"1", "b"=>NULL, "q\\"\\\\"=>"x, y=>z"', {"a": "1", "b": None, 'q"\\': "x, y=>z"}),
        (90003, -1, b"", {}),
    ],
)
def test_types_from_the_catalog(oid: int, modifier: int, output: bytes, expected: object) -> None:
    assert canonical(output, converter_for(oid, modifier, TYPES)) == expected


def test_null_and_unknown() -> None:
    assert canonical(None, None) is None
    with pytest.raises(Fatal, match="99999"):
        converter_for(99999, -1, TYPES)
    assert parts_of(99999, TYPES) == {99999}
    assert parts_of(7, {7: PostgresType(7, "_x", category="A", element=8)}) == {8}
    for broken in (b'{"a', b"{1", b"x"):
        try:
            msgspec.json.decode(converter_for(1007, -1, TYPES)(broken))  # type: ignore[misc]
        except (Poison, msgspec.DecodeError):
            continue
        pytest.fail(f"{broken!r} passed")
    with pytest.raises(Poison):
        canonical(b"a=>b", converter_for(90003, -1, TYPES))


def array_output(items: list[str | None]) -> bytes:
    """As Postgres prints text[]."""
    quoted = []
    for item in items:
        if item is None:
            quoted.append("NULL")
        else:
            escaped = item.replace("\\", "\\\\").replace('"', '\\"')
            quoted.append(f'"{escaped}"')
    return f"{{{','.join(quoted)}}}".encode()


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.lists(st.none() | TEXTS))
def test_any_text_array(items: list[str | None]) -> None:
    assert canonical(array_output(items), converter_for(1009, -1, TYPES)) == items


@given(TEXTS)
def test_any_text(value: str) -> None:
    assert canonical(value.encode(), converter_for(25, -1, TYPES)) == value
