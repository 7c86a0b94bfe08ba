"""Debezium's values, in every form that a column type gives them, against the canonical value that they mean."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas.envelope import decode_record
from schemas.errors import DecodeError
from schemas.types import UnknownValue
from tests.support.debezium_fixtures import column, plain, with_schemas

TIME = "io.debezium.time."
CONNECT = "org.apache.kafka.connect.data."
SPARSE = column("c", "struct", "io.debezium.data.SparseDoubleVector")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (column("c", "bytes", f"{CONNECT}Decimal", scale="2"), "/w==", "-0.01"),
        (column("c", "bytes", f"{CONNECT}Decimal", scale="0"), "BOI=", "1250"),
        (column("c", "bytes", f"{CONNECT}Decimal", scale="-3"), "BOI=", "1250000"),
        (column("c", "bytes", f"{CONNECT}Decimal", scale="20"), "AQ==", "0.00000000000000000001"),
        (column("c", "struct", "io.debezium.data.VariableScaleDecimal"), {"scale": 1, "value": "Hw=="}, "3.1"),
        (column("c", "int32", f"{TIME}Date"), 20455, "2026-01-02"),
        (column("c", "int32", f"{TIME}Date"), -719163, "0001-12-31 BC"),
        (column("c", "int32", f"{TIME}Date"), 2932897, "10000-01-01"),
        (column("c", "int32", f"{TIME}Date"), 2147483647, "infinity"),
        (column("c", "int32", f"{CONNECT}Date"), 0, "1970-01-01"),
        (column("c", "int64", f"{TIME}Timestamp"), -1, "1969-12-31T23:59:59.999"),
        (column("c", "int64", f"{TIME}MicroTimestamp"), 9223372036825200000, "infinity"),
        (column("c", "int64", f"{TIME}MicroTimestamp"), -9223372036832400000, "-infinity"),
        (column("c", "int64", f"{TIME}MicroTimestamp"), 951782400000000, "2000-02-29T00:00:00"),
        (column("c", "int64", f"{TIME}Timestamp"), 9223372036825200, "infinity"),
        (column("c", "int64", f"{TIME}Timestamp"), -9223372036832400, "-infinity"),
        (column("c", "int32", f"{TIME}Date"), -2147472692, "infinity"),
        (column("c", "int32", f"{TIME}Date"), -2147472691, "-infinity"),
        (column("c", "int64", f"{TIME}NanoTimestamp"), 1_500_000_000, "1970-01-01T00:00:01.5"),
        (column("c", "string", f"{TIME}ZonedTimestamp"), "2026-01-02T01:04:05.600Z", "2026-01-02T01:04:05.6Z"),
        (column("c", "string", f"{TIME}ZonedTimestamp"), "infinity", "infinity"),
        (column("c", "string", f"{TIME}ZonedTimestamp"), "-infinity", "-infinity"),
        (column("c", "string", f"{TIME}ZonedTimestamp"), "+10000-01-01T00:00:00.50Z", "10000-01-01T00:00:00.5Z"),
        (column("c", "string", f"{TIME}ZonedTimestamp"), "-0043-03-15T00:00:00Z", "0044-03-15T00:00:00Z BC"),
        (column("c", "string", f"{TIME}ZonedTimestamp"), "2026-01-02T01:00:00.50+02:00", "2026-01-01T23:00:00.5Z"),
        (column("c", "string", f"{TIME}IsoDate"), "0000-12-31Z", "0001-12-31 BC"),
        (column("c", "string", f"{TIME}IsoTimestamp"), "-infinity", "-infinity"),
        (column("c", "int32", f"{TIME}Time"), 60_500, "00:01:00.5"),
        (column("c", "int64", f"{TIME}MicroTime"), 86_400_000_000, "24:00:00"),
        (column("c", "int64", f"{TIME}NanoTime"), 1_000, "00:00:00.000001"),
        (column("c", "string", f"{TIME}ZonedTime"), "02:04:05.60Z", "02:04:05.6+00"),
        (column("c", "int64", f"{TIME}MicroDuration"), 0, "PT0S"),
        (column("c", "int64", f"{TIME}MicroDuration"), -5_500_000, "PT-5.5S"),
        (column("c", "string", f"{TIME}Interval"), "P0Y1M2DT0H0M0S", "P1M2D"),
        (column("c", "string", f"{TIME}Interval"), "P1Y0M0DT-4H0M5.50S", "P1YT-4H5.5S"),
        (column("c", "string", f"{TIME}Interval"), "P0Y0M0DT0H0M0S", "PT0S"),
        (column("c", "bytes", "io.debezium.data.Bits", length="5"), "Eg==", "10010"),
        (column("c", "bytes", "io.debezium.data.Bits", length="12"), "AQg=", "100000000001"),
        (column("c", "bytes", "io.debezium.data.Bits", length="12"), "AQ==", "000000000001"),
        (column("c", "bytes", "io.debezium.data.Bits", length="12"), "", "000000000000"),
        (column("c", "bytes", "io.debezium.data.Bits", length="2147483647"), "BQ==", "00000101"),
        (column("c", "boolean"), True, True),
        (column("c", "double"), "NaN", "NaN"),
        (column("c", "bytes"), "3q2+7w==", "3q2+7w=="),
        (column("c", "struct", "io.debezium.data.geometry.Geometry"), {"wkb": "AQE=", "srid": None}, "0101"),
        (column("c", "array", "io.debezium.data.DoubleVector"), [1.0, 2.5], "[1,2.5]"),
        (SPARSE, {"dimensions": 5, "vector": [[3, 2.0], [1, 1.5]]}, "{1:1.5,3:2}/5"),
        (SPARSE, {"dimensions": 5, "vector": {"1": 1.5}}, "{1:1.5}/5"),
        (column("c", "string", "io.debezium.data.Ltree"), "a.b", "a.b"),
        ({**column("c", "array"), "items": column("", "int32", f"{TIME}Date")}, [0, None], ["1970-01-01", None]),
        (column("c", "map"), {"k": None}, {"k": None}),
    ],
)
def test_values_with_schemas(field: dict[str, Any], value: Any, expected: Any) -> None:
    event = decode_record(with_schemas({"id": 1, "c": value}, [column("id", "int32"), field]))
    assert event is not None
    assert event.row == {"id": 1, "c": expected}


UNKNOWN = column("c", "struct", "io.debezium.data.New")


@pytest.mark.parametrize("field", [UNKNOWN, {**column("c", "array"), "items": UNKNOWN}], ids=["itself", "in an array"])
def test_a_type_that_is_unknown_here_spoils_its_own_column_alone(field: dict[str, Any]) -> None:
    fields = [column("id", "int32"), field, column("d", "string")]
    row = {"id": 1, "c": [{}], "d": "x"}
    event = decode_record(with_schemas(row, fields, before=row, op="u"))
    assert event is not None and event.row is not None
    assert isinstance(event.row.pop("c"), UnknownValue)
    assert event.row == event.before == {"id": 1, "d": "x"}
    event = decode_record(with_schemas({**row, "c": None}, fields))
    assert event is not None and event.row == {"id": 1, "c": None, "d": "x"}


def test_a_key_of_a_type_that_is_unknown_here_names_no_row() -> None:
    with pytest.raises(DecodeError, match=r"column c: .* io\.debezium\.data\.New \(this type is unknown here\)"):
        decode_record(with_schemas({"c": {}}, [UNKNOWN]))


def test_a_key_is_as_canonical_as_the_row() -> None:
    event = decode_record(with_schemas({"day": 0}, [column("day", "int32", f"{TIME}Date")]))
    assert event is not None
    assert event.key == event.row == {"day": "1970-01-01"}


def test_a_key_or_header_without_a_schema_takes_the_forms_of_the_row() -> None:
    record = with_schemas({"day": 0}, [column("day", "int32", f"{TIME}Date")])
    record = msgspec.structs.replace(record, key=b'{"day":0}', headers=(("__debezium.oldkey", b'{"day":1}'),))
    event = decode_record(record)
    assert event is not None
    assert event.key == event.row == {"day": "1970-01-01"}
    assert event.old_key == {"day": "1970-01-02"}


@pytest.mark.parametrize(
    ("kind", "value", "expected"), [("string", "0E-8", "0.00000000"), ("string", "12.50", "12.50"), ("double", 1, "1")]
)
def test_a_declared_decimal_is_one_though_the_schema_says_text_or_float(kind: str, value: Any, expected: str) -> None:
    record = with_schemas({"id": 1, "c": value}, [column("id", "int32"), column("c", kind)])
    event = decode_record(record, {"p.t": {"c": "decimal(10,8)"}})
    assert event is not None
    assert event.row == {"id": 1, "c": expected}


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        ("decimal(10,2)", "BOI=", "12.50"),
        ("decimal(10,2)", "12.50", "12.50"),
        ("decimal(10,2)", 12.5, "12.5"),
        ("decimal(10,2)", {"scale": 2, "value": "BOI="}, "12.50"),
        ("decimal(10,0)", "BOI=", "1250"),
        ("decimal", "1250", "1250"),
        ("decimal", "1.5E-8", "0.000000015"),
        ("decimal(10,8)", "0E-8", "0.00000000"),
        ("decimal(10,0)", "-12", "-12"),
        ("bits(12)", "AQ==", "000000000001"),
        ("numeric", "NAN", "NaN"),
        ("decimal", 7, "7"),
        ("timestamp_ms", 1, "1970-01-01T00:00:00.001"),
        ("timestamp", "2026-01-02T03:04:05.60Z", "2026-01-02T03:04:05.6"),
        ("timestamptz_us", 1, "1970-01-01T00:00:00.000001Z"),
        ("date_ms", 86_400_000, "1970-01-02"),
        ("date", "2026-01-02", "2026-01-02"),
        ("time_ns", 1_000_000_000, "00:00:01"),
        ("time_ns", 3_723_000_000_001, "01:02:03.000000001"),
        ("time_us", 86_400_000_000, "24:00:00"),
        ("time_ms", 1_500, "00:00:01.5"),
        ("bits(3)", "BQ==", "101"),
        ("date[]", [0, None], ["1970-01-01", None]),
        ("decimal(10,2)[]", ["BOI="], ["12.50"]),
        ("hstore", {"a": None}, {"a": None}),
        ("json", '{"a": 1.0}', '{"a": 1.0}'),
        ("json", {"a": 1}, '{"a":1}'),
        ("text", "x", "x"),
    ],
)
def test_declared_types_say_what_the_wire_leaves_open(declared: str, value: Any, expected: Any) -> None:
    event = decode_record(plain({"id": 1, "c": value}), {"p.t": {"c": declared}})
    assert event is not None
    assert event.row == {"id": 1, "c": expected}


def test_structs_that_speak_for_themselves_need_no_declaration() -> None:
    row = {"id": 1, "n": {"scale": 5, "value": "BMsv"}, "p": {"x": 1.0, "y": 2.0, "wkb": "", "srid": None}}
    event = decode_record(plain(row))
    assert event is not None
    assert event.row == {"id": 1, "n": "3.14159", "p": {"x": 1.0, "y": 2.0}}


def test_decimal_text_under_a_declared_scale_is_refused_with_the_remedy() -> None:
    with pytest.raises(DecodeError, match=r"column c: .* declare decimal if the wire holds the number as text"):
        decode_record(plain({"id": 1, "c": "12500"}), {"p.t": {"c": "decimal(10,0)"}})
