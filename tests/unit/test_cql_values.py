"""CQL values as canonical JSON: the driver writes the bytes, and says what it reads from them."""

from __future__ import annotations

import datetime
import struct
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from cassandra import cqltypes
from cassandra.util import Duration
from hypothesis import given
from hypothesis import strategies as st

from connectors.cql.times import date_text, duration_text, last_timeuuid, timestamp_text, timeuuid_order, timeuuid_us
from connectors.cql.values import CqlType, UnknownType, canonical, components, pairs, pieces, raw_hex
from pipeline.cells import value_bytes
from schemas.mutation import Cell

PROTOCOL = 4
INT, TEXT = CqlType("int"), CqlType("text")


def written(name: str, value: Any) -> bytes:
    return bytes(cqltypes.lookup_casstype(name).serialize(value, PROTOCOL))


NOON = datetime.datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=datetime.UTC)
GOLDEN = [
    ("int", "Int32Type", -7, -7),
    ("bigint", "LongType", 2**63 - 1, 2**63 - 1),
    ("smallint", "ShortType", -300, -300),
    ("tinyint", "ByteType", -1, -1),
    ("boolean", "BooleanType", True, True),
    ("boolean", "BooleanType", False, False),
    ("text", "UTF8Type", "žluť 🚀", "žluť 🚀"),
    ("ascii", "AsciiType", "", ""),
    ("double", "DoubleType", 0.1, 0.1),
    ("double", "DoubleType", float("nan"), "NaN"),
    ("double", "DoubleType", float("-inf"), "-Infinity"),
    ("float", "FloatType", 0.1, 0.1),
    ("float", "FloatType", 3.4028234663852886e38, 3.4028235e38),
    ("float", "FloatType", float("inf"), "Infinity"),
    ("decimal", "DecimalType", Decimal("-12.50"), "-12.50"),
    ("decimal", "DecimalType", Decimal("1E+3"), "1000"),
    ("decimal", "DecimalType", Decimal("1E-8"), "0.00000001"),
    ("varint", "IntegerType", 2**63 - 1, 2**63 - 1),
    ("varint", "IntegerType", -(2**63) - 1, "-9223372036854775809"),
    ("varint", "IntegerType", 128, 128),
    ("timestamp", "DateType", NOON, "2026-11-23T12:00:00.25Z"),
    ("timestamp", "DateType", datetime.datetime(1969, 12, 31, 23, 59, 59, tzinfo=datetime.UTC), "1969-12-31T23:59:59Z"),
    ("date", "SimpleDateType", datetime.date(2024, 2, 29), "2024-02-29"),
    ("time", "TimeType", 43_200_000_000_001, "12:00:00.000000001"),
    ("uuid", "UUIDType", uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    ("inet", "InetAddressType", "10.0.0.1", "10.0.0.1"),
    ("inet", "InetAddressType", "fe80::1", "fe80::1"),
    ("blob", "BytesType", b"\x00\xff", "AP8="),
    ("blob", "BytesType", b"", ""),
    ("duration", "DurationType", Duration(14, 3, 14_706_500_000_000), "P1Y2M3DT4H5M6.5S"),
    ("duration", "DurationType", Duration(-1, -40, 0), "-P1M40D"),
    ("duration", "DurationType", Duration(0, 0, 0), "PT0S"),
    ("duration", "DurationType", Duration(0, 0, 2**62), duration_text(0, 0, 2**62)),
]


@pytest.mark.parametrize(("name", "cassandra_name", "value", "expected"), GOLDEN)
def test_every_plain_type(name: str, cassandra_name: str, value: Any, expected: Any) -> None:
    found = canonical(written(cassandra_name, value), CqlType(name))
    assert found == expected and type(found) is type(expected)
    assert canonical(None, CqlType(name)) is None


def test_composed_types() -> None:
    listed = written("ListType(Int32Type)", [3, 1])
    assert canonical(listed, CqlType("list", (INT,))) == [3, 1]
    assert [canonical(piece, INT) for piece in pieces(listed)] == [3, 1]
    mapped = written("MapType(Int32Type, UTF8Type)", {1: "a"})
    assert canonical(mapped, CqlType("map", (INT, TEXT))) == {"1": "a"}
    assert pairs(mapped) == [(b"\0\0\0\1", b"a")]
    assert canonical(written("SetType(UTF8Type)", ["a", "b"]), CqlType("set", (TEXT,))) == ["a", "b"]
    pair = written("TupleType(Int32Type, UTF8Type)", (None, "x"))
    assert canonical(pair, CqlType("tuple", (INT, TEXT))) == [None, "x"]
    assert canonical(pair, CqlType("udt", (INT, TEXT), ("a", "b"))) == {"a": None, "b": "x"}
    assert components(pair, 3) == [None, b"x", None], "a field that was added later"
    nested = CqlType("map", (CqlType("tuple", (INT, INT)), CqlType("list", (TEXT,))))
    value = written("MapType(TupleType(Int32Type, Int32Type), ListType(UTF8Type))", {(1, 2): ["a"]})
    assert canonical(value, nested) == {"[1,2]": ["a"]}
    assert str(nested) == "map<tuple<int, int>, list<text>>"


def test_vectors() -> None:
    value = struct.pack(">3f", 1.0, -0.5, 0.25)
    assert canonical(value, CqlType("vector", (CqlType("float"),), size=3)) == [1.0, -0.5, 0.25]
    assert canonical(b"\x01a\x02bc", CqlType("vector", (TEXT,), size=2)) == ["a", "bc"]


def test_an_unknown_type_is_never_guessed() -> None:
    with pytest.raises(UnknownType, match="mystery is unknown"):
        canonical(b"", CqlType("list", (CqlType("mystery"),)))


def test_an_empty_value_is_none_of_the_type_but_there() -> None:
    assert canonical(b"", INT) == ""


@given(st.dates())
def test_dates_as_python_writes_them(day: datetime.date) -> None:
    assert date_text((day - datetime.date(1970, 1, 1)).days) == day.isoformat()


def test_times_outside_of_python() -> None:
    assert timestamp_text(253_402_300_800_000) == "+10000-01-01T00:00:00Z"
    assert timestamp_text(-62_167_219_200_001) == "-0001-12-31T23:59:59.999Z"
    assert date_text(-719_528) == "0000-01-01"


@given(st.integers(0, 2**50), st.binary(min_size=8, max_size=8))
def test_write_timestamps_of_timeuuids(microseconds: int, low: bytes) -> None:
    last = last_timeuuid(microseconds)
    assert timeuuid_us(last) == microseconds
    assert uuid.UUID(bytes=last).time == (microseconds * 10 + 9) + 0x01B21DD213814000
    assert timeuuid_order(last[:8] + low) <= timeuuid_order(last) < timeuuid_order(last_timeuuid(microseconds + 1))


SAMPLES: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "int": ("Int32Type", st.integers(-(2**31), 2**31 - 1)),
    "bigint": ("LongType", st.integers(-(2**63), 2**63 - 1)),
    "varint": ("IntegerType", st.integers(-(2**80), 2**80)),
    "double": ("DoubleType", st.floats()),
    "float": ("FloatType", st.floats(width=32)),
    "decimal": ("DecimalType", st.decimals(allow_nan=False, allow_infinity=False, places=3)),
    "text": ("UTF8Type", st.text(st.characters(exclude_categories=["Cs"]), min_size=1)),
    "boolean": ("BooleanType", st.booleans()),
    "blob": ("BytesType", st.binary(min_size=1)),
    "time": ("TimeType", st.integers(0, 86_399_999_999_999)),
    "duration": ("DurationType", st.builds(Duration, *[st.integers(0, 2**31 - 1)] * 3)),
}


@pytest.mark.parametrize("name", SAMPLES)
@given(data=st.data())
def test_ties_are_decided_as_the_bytes_decide_them(name: str, data: st.DataObject) -> None:
    cassandra_name, values = SAMPLES[name]
    left, right = (written(cassandra_name, data.draw(values)) for _ in range(2))
    assert_same_order(left, right, CqlType(name))


@pytest.mark.parametrize(("name", "form"), [("timestamp", ">q"), ("date", ">I")])
@given(data=st.data())
def test_ties_between_times(name: str, form: str, data: st.DataObject) -> None:
    reach = (-(2**49), 2**49) if name == "timestamp" else (2**31 - 2**23, 2**31 + 2**23)
    left, right = (struct.pack(form, data.draw(st.integers(*reach))) for _ in range(2))
    assert_same_order(left, right, CqlType(name))


def assert_same_order(left: bytes, right: bytes, cql_type: CqlType) -> None:
    one, other = (value_bytes(Cell(1, canonical(v, cql_type), raw=raw_hex(v, cql_type))) for v in (left, right))
    assert (one > other) == (left > right) and (one == other) == (left == right), (left.hex(), right.hex())
    msgspec.json.encode(canonical(left, cql_type))
