"""Rows of a log, byte by byte, as mutations; what is not understood ends it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from connectors.cql.schema import Column, TableSchema
from connectors.cql.times import timeuuid
from connectors.cql.values import CqlType, UnknownType
from connectors.scylla.decoding import Change, LogDecoder
from connectors.scylla.layout import log_layout
from pipeline.core.errors import Fatal
from schemas.mutation import Bound, Cell, Elements, Marker, Mutation

TS = 1_700_000_000_000_000
STREAM = b"\x07" * 16
INT, TEXT, BOOLEAN, TIMEUUID = CqlType("int"), CqlType("text"), CqlType("boolean"), CqlType("timeuuid")
UDT = CqlType("udt", (INT, TEXT), ("x", "y"))


def column(
    name: str, kind: str, declared: str, cql_type: CqlType, *, multi: bool = False, down: bool = False
) -> Column:
    return Column(name, kind, 0, down, declared, cql_type, multi)


TABLE = TableSchema(
    "ks",
    "t",
    "id",
    (
        column("p", "partition_key", "int", INT),
        column("c", "clustering", "int", INT, down=True),
        column("st", "static", "text", TEXT),
        column("v", "regular", "text", TEXT),
        column("l", "regular", "list<int>", CqlType("list", (INT,)), multi=True),
        column("u", "regular", "u", UDT, multi=True),
    ),
)
COLUMNS: list[tuple[str, CqlType]] = [
    ("cdc$stream_id", CqlType("blob")),
    ("cdc$time", TIMEUUID),
    ("cdc$batch_seq_no", INT),
    ("cdc$operation", CqlType("tinyint")),
    ("cdc$ttl", CqlType("bigint")),
    ("cdc$end_of_batch", BOOLEAN),
    ("cdc$closed_time", TIMEUUID),
    ("p", INT),
    ("c", INT),
    ("st", TEXT),
    ("cdc$deleted_st", BOOLEAN),
    ("v", TEXT),
    ("cdc$deleted_v", BOOLEAN),
    ("l", CqlType("map", (TIMEUUID, INT))),
    ("cdc$deleted_l", BOOLEAN),
    ("cdc$deleted_elements_l", CqlType("set", (TIMEUUID,))),
    ("u", UDT),
    ("cdc$deleted_u", BOOLEAN),
    ("cdc$deleted_elements_u", CqlType("set", (CqlType("smallint"),))),
]


def i32(number: int) -> bytes:
    return struct.pack(">i", number)


def packed(*parts: bytes | None) -> bytes:
    return b"".join(i32(-1) if part is None else i32(len(part)) + part for part in parts)


def row(operation: int, *, time: bytes | None = None, **values: bytes | None) -> tuple[bytes | None, ...]:
    named: dict[str, bytes | None] = {
        "cdc$stream_id": STREAM,
        "cdc$time": time or timeuuid(TS * 10, bytes(8)),
        "cdc$operation": struct.pack(">b", operation),
        "p": i32(1),
    }
    named |= {
        name.replace("deleted_", "cdc$deleted_").replace("ttl", "cdc$ttl"): value for name, value in values.items()
    }
    return tuple(named.get(name) for name, _ in COLUMNS)


def decoder(columns: Any = COLUMNS) -> LogDecoder:
    return LogDecoder(log_layout(columns, TABLE))


def decoded(*rows: tuple[bytes | None, ...]) -> list[Change]:
    made = decoder()
    return [made.decode(one) for one in rows]


def test_an_insert_with_a_time_to_live() -> None:
    (change,) = decoded(row(2, c=i32(5), v=b"x", ttl=struct.pack(">q", 60)))
    expires = TS + 60_000_000
    assert change.key == {"p": 1, "c": 5} and change.ts == TS and not change.end_of_batch
    assert change.mutations == [Mutation(marker=Marker(TS, expires), cells={"v": Cell(TS, "x", expires)})]


def test_an_update_that_deletes_and_leaves_untouched() -> None:
    (change,) = decoded(row(1, c=i32(5), deleted_v=b"\x01"))
    assert change.mutations == [Mutation(cells={"v": Cell(TS)})]
    (change,) = decoded(row(1, c=i32(5), v=b""))
    assert change.mutations == [Mutation(cells={"v": Cell(TS, "")})]


def test_a_list_by_its_places() -> None:
    place, gone = timeuuid(1, bytes(8)), timeuuid(2, bytes(8))
    (change,) = decoded(
        row(1, c=i32(5), l=i32(1) + packed(place, i32(7)), deleted_elements_l=i32(1) + packed(gone), deleted_l=b"\x01")
    )
    (found,) = change.mutations[0].cells.values()
    assert isinstance(found, Elements) and found.kind == "list" and found.cleared == TS - 1
    assert [cell for _, cell in found.elements] == [Cell(TS, 7), Cell(TS)]


def test_fields_of_a_user_defined_type() -> None:
    removed = i32(1) + packed(struct.pack(">h", 1))
    (change,) = decoded(row(1, c=i32(5), u=packed(None, None), deleted_elements_u=removed))
    assert change.mutations[0].cells == {"u": Elements("udt", (("y", Cell(TS)),))}
    (change,) = decoded(row(1, c=i32(5), u=packed(i32(3), None)))
    assert change.mutations[0].cells == {"u": Elements("udt", (("x", Cell(TS, 3)),))}
    (change,) = decoded(row(2, c=i32(5), u=packed(None, None)))
    assert change.mutations[0].cells == {}, "a value of nulls alone says nothing"


def test_images_and_static_rows_say_nothing() -> None:
    before, after, static = decoded(row(0, c=i32(1), v=b"x"), row(9, c=i32(1), v=b"y"), row(1, st=b"s"))
    assert not before.mutations and not after.mutations and not static.mutations and static.static


DELETIONS = [(3, "row", 5), (-3, "row", 5), (4, "partition", None), (-4, "partition", None)]


@pytest.mark.parametrize(("operation", "scope", "c"), DELETIONS)
def test_deletions(operation: int, scope: str, c: int | None) -> None:
    (change,) = decoded(row(operation, c=i32(5) if scope == "row" else None))
    assert change.key == {"p": 1, "c": c}
    assert change.mutations == [Mutation(scope=scope, deleted=TS)]  # type: ignore[arg-type]


def test_a_range_of_a_descending_column_is_told_ascending() -> None:
    first, second = decoded(row(5, c=i32(9)), row(8, c=i32(3)))
    assert not first.mutations and second.key == {"p": 1, "c": None}
    assert second.mutations == [Mutation(scope="range", deleted=TS, lower=Bound((3,), False), upper=Bound((9,), True))]
    _, open_ended = decoded(row(6, c=i32(9)), row(7))
    assert open_ended.mutations == [Mutation(scope="range", deleted=TS, upper=Bound((9,), False))]


def test_half_a_range_is_not_guessed() -> None:
    with pytest.raises(Fatal, match="ends a range that it did not begin"):
        decoded(row(8, c=i32(3)))
    with pytest.raises(Fatal, match="ends a range that it did not begin"):
        decoded(row(5, c=i32(9)), row(8, c=i32(3), time=timeuuid(TS * 10 + 10, bytes(8))))


def test_an_operation_that_nobody_knows() -> None:
    with pytest.raises(Fatal, match="operation 10, which this version does not know"):
        decoded(row(10, c=i32(1)))


def test_the_end_of_a_batch() -> None:
    values = dict(zip([name for name, _ in COLUMNS], row(1, c=i32(1), v=b"x"), strict=True))
    values["cdc$end_of_batch"] = b"\x01"
    assert decoder().decode(tuple(values.values())).end_of_batch


def test_a_log_that_is_none_and_types_that_are_none() -> None:
    with pytest.raises(Fatal, match=r"has no column cdc\$operation; it is no CDC log"):
        decoder([one for one in COLUMNS if one[0] != "cdc$operation"])
    with pytest.raises(UnknownType, match="mystery"):
        decoder([(name, CqlType("mystery") if name == "v" else kind) for name, kind in COLUMNS])


def test_columns_that_the_table_does_not_have_are_named() -> None:
    layout = log_layout([*COLUMNS, ("dropped", INT), ("cdc$deleted_dropped", BOOLEAN)], TABLE)
    assert layout.missing == ("dropped",)
