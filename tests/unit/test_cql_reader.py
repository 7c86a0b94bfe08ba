"""How the reader behind verify shows, orders and looks up CQL values, without a server."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest

from connectors.cql.reader_plan import Asked, indexed, lookup_of
from connectors.cql.reader_values import order_of, parameter_of, shown, sort_rows
from connectors.cql.schema import Column, TableSchema
from connectors.cql.values import CqlType, canonical

INT, TEXT = CqlType("int"), CqlType("text")


def column(name: str, kind: CqlType, role: str = "regular", position: int = -1, multi_cell: bool = False) -> Column:
    return Column(name, role, position, False, str(kind), kind, multi_cell)


TABLE = TableSchema(
    "ks",
    "t",
    "1",
    (
        column("p", INT, "partition_key", 0),
        column("q", TEXT, "partition_key", 1),
        column("c", CqlType("timestamp"), "clustering", 0),
        column("d", CqlType("decimal"), "clustering", 1),
        column("v", INT),
        column("w", TEXT),
    ),
)


def packed(*pieces: bytes) -> bytes:
    return b"".join([struct.pack(">i", len(piece)) + piece for piece in pieces])


def listed(*pieces: bytes) -> bytes:
    return struct.pack(">i", len(pieces)) + packed(*pieces)


def number(value: int) -> bytes:
    return struct.pack(">i", value)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("int", "7", 7),
        ("int", "007", None),
        ("int", "-0", None),
        ("int", str(1 << 31), None),
        ("tinyint", "-128", -128),
        ("text", "ä", "ä"),
        ("text", "\ud800", None),
        ("ascii", "ä", None),
        ("boolean", "true", True),
        ("boolean", "True", None),
        ("uuid", "5a0d6b3e-4b4f-11ee-be56-0242ac120002", UUID("5a0d6b3e-4b4f-11ee-be56-0242ac120002")),
        ("uuid", "5A0D6B3E-4B4F-11EE-BE56-0242AC120002", None),
        ("timeuuid", "5a0d6b3e-4b4f-41ee-be56-0242ac120002", None),
        ("timestamp", "1970-01-01T00:00:01.5Z", 1500),
        ("timestamp", "1970-01-01T00:00:01.50Z", None),
        ("timestamp", "1970-01-01 00:00:01Z", None),
        ("timestamp", "2023-02-29T00:00:00Z", None),
        ("timestamp", "2024-02-29T00:00:00Z", 1_709_164_800_000),
        ("timestamp", "-6060-01-01T23:59:59.999Z", -253_402_300_800_001),
        ("timestamp", "+10000-01-01T00:00:00Z", 253_402_300_800_000),
        ("timestamp", "+999999999-01-01T00:00:00Z", None),
        ("date", "1969-12-31", (1 << 31) - 1),
        ("date", "1969-12-31T00:00:00Z", None),
        ("date", "1969-13-01", None),
    ],
)
def test_a_key_text_is_looked_up_only_where_a_value_is_spelt_so(kind: str, text: str, expected: Any) -> None:
    read = parameter_of(CqlType(kind))
    assert read is not None
    assert read(text) == expected


@pytest.mark.parametrize("kind", ["decimal", "varint", "double", "inet", "blob", "time", "list"])
def test_types_with_several_spellings_are_not_looked_up(kind: str) -> None:
    assert parameter_of(CqlType(kind)) is None


def test_what_is_written_by_elements_is_shown_as_merging_shows_it() -> None:
    decimals = CqlType("set", (CqlType("decimal"),))
    raw = listed(number(0) + b"\x09", number(0) + b"\x0a")
    assert shown(column("s", decimals))(raw) == ["9", "10"]
    assert shown(column("s", decimals, multi_cell=True))(raw) == ["10", "9"]
    counts = CqlType("map", (INT, INT))
    raw = struct.pack(">i", 2) + packed(number(2), number(1), number(10), number(2))
    assert list(shown(column("m", counts))(raw)) == ["2", "10"]
    assert list(shown(column("m", counts, multi_cell=True))(raw)) == ["10", "2"]
    address = CqlType("udt", (TEXT, INT), ("street", "city"))
    raw = packed(b"Elm") + struct.pack(">i", -1)
    assert shown(column("u", address))(raw) == {"street": "Elm", "city": None}
    assert shown(column("u", address, multi_cell=True))(raw) == {"street": "Elm"}


@pytest.mark.parametrize(
    ("kind", "ascending"),
    [
        ("double", [None, struct.pack(">d", float("-inf")), struct.pack(">d", -1.5), struct.pack(">d", float("nan"))]),
        ("decimal", [None, number(0) + b"\x09", number(1) + b"\x5b", number(0) + b"\x0a"]),
        ("timestamp", [None, struct.pack(">q", -5), struct.pack(">q", 0), struct.pack(">q", 500)]),
        ("date", [None, struct.pack(">I", (1 << 31) - 1), struct.pack(">I", 1 << 31)]),
        ("boolean", [None, b"\0", b"\1"]),
        ("text", [None, b"", b"Z", b"a", "ä".encode()]),
    ],
)
def test_rows_are_in_the_order_of_their_values(kind: str, ascending: list[bytes | None]) -> None:
    key = order_of(CqlType(kind))
    rows = ascending[::-1]
    sort_rows(rows, [(key, False)])
    assert rows == ascending
    sort_rows(rows, [(key, True)])
    assert rows == ascending[::-1]


def test_a_question_takes_as_much_of_the_key_as_it_names() -> None:
    match = {"q": ["a", "b", ""], "d": ["1", "1", "1"], "p": ["1", "no", "2"], "c": ["1970-01-01T00:00:00Z"] * 3}
    asked = Asked.make(TABLE, ["v"], match, (), None)
    lookup = lookup_of(asked, list(match))
    assert lookup is not None
    assert lookup.query == 'SELECT "p", "q", "c", "d", "v" FROM "ks"."t" WHERE "p" = ? AND "q" = ? AND "c" = ?'
    assert sorted(lookup.questions(asked.wanted(match))) == [(1, "a", 0), (2, "", 0)]


def test_a_question_without_the_partition_key_goes_by_an_index_where_few_values_are_wanted() -> None:
    asked = Asked.make(TABLE, ["v"], {"p": ["1"], "w": ["x"]}, (), None)
    assert lookup_of(asked, ["p", "w"]) is None
    lookup = indexed(asked, ["p", "w"], frozenset({"w"}), 1)
    assert lookup is not None and lookup.query.endswith('WHERE "w" = ?')
    assert indexed(asked, ["p", "w"], frozenset({"w"}), 1000) is None
    assert indexed(asked, ["p", "w"], frozenset(), 1) is None


def test_decimals_match_by_value_and_null_matches_nothing() -> None:
    match = {"d": ["1.50"]}
    asked = Asked.make(TABLE, ["v"], match, ["-v", "c"], 2)
    wanted = asked.wanted(match)

    def row(place: int, amount: bytes | None, value: int) -> tuple[bytes | None, ...]:
        return (number(1), b"q", struct.pack(">q", place), amount, number(value))

    rows = [row(0, number(1) + b"\x0f", 3), row(1, number(2) + b"\x00\x96", 5), row(2, number(0) + b"\x02", 7)]
    rows += [row(3, number(1) + b"\x0f", 5), row(4, None, 9)]
    (group,) = asked.grouped(rows, wanted).values()
    first, second = asked.cut(group)
    assert asked.values(first) == asked.values(second) == (5,)
    assert canonical(first[2], CqlType("timestamp")) == "1970-01-01T00:00:00.001Z"
