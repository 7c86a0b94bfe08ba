"""How a write falls into rows of the log, as Scylla's split does it."""

from __future__ import annotations

import msgspec

from connectors.scylla.log_statements import Add, Erase, Overwrite, Remove, Write, base_cql, log_parts
from connectors.scylla.log_tables import log_ddl, value_columns
from tests.unit.test_scylla_decoding import TABLE

KEY = {"p": 1, "c": 2}


def test_a_plain_insert_is_one_row() -> None:
    write = Write(kind="insert", key=KEY, ts=10, edits={"v": Overwrite("x"), "u": Overwrite((1, None))})
    (part,) = log_parts(write, TABLE)
    assert part.ts == 10
    assert part.rows == [{**KEY, "v": "x", "u": (1, None), "cdc$deleted_u": True, "cdc$operation": 2}]


def test_an_insert_with_a_time_to_live_falls_into_three() -> None:
    """The marker, the deletion of the collection, which lives for ever, and its elements."""
    write = Write(kind="insert", key=KEY, ts=10, ttl=5, edits={"v": Overwrite("x"), "l": Overwrite({"place": 1})})
    (part,) = log_parts(write, TABLE)
    assert part.rows == [
        {**KEY, "v": "x", "cdc$operation": 2, "cdc$ttl": 5},
        {**KEY, "cdc$deleted_l": True, "cdc$operation": 1},
        {**KEY, "l": {"place": 1}, "cdc$operation": 1, "cdc$ttl": 5},
    ]


def test_a_deleted_collection_is_logged_a_microsecond_late() -> None:
    first, second = log_parts(Write(kind="update", key=KEY, ts=10, edits={"v": Erase(), "l": Erase()}), TABLE)
    assert (first.ts, first.rows) == (10, [{**KEY, "cdc$deleted_v": True, "cdc$operation": 1}])
    assert (second.ts, second.rows) == (11, [{**KEY, "cdc$deleted_l": True, "cdc$operation": 1}])


def test_elements() -> None:
    (part,) = log_parts(Write(kind="update", key=KEY, ts=10, edits={"l": Add({"a": 1}), "u": Remove({"y"})}), TABLE)
    assert part.rows == [{**KEY, "l": {"a": 1}, "u": (None, None), "cdc$deleted_elements_u": {1}, "cdc$operation": 1}]


def test_static_columns_have_no_clustering() -> None:
    (part,) = log_parts(Write(kind="update", key={"p": 1}, ts=10, edits={"st": Overwrite("x")}), TABLE)
    assert part.rows == [{"p": 1, "st": "x", "cdc$operation": 1}]


def test_a_range_stands_in_the_tables_order() -> None:
    (part,) = log_parts(Write(kind="delete range", key={"p": 1}, ts=10, lower=((3,), False), upper=((9,), True)), TABLE)
    assert part.rows == [{"p": 1, "c": 9, "cdc$operation": 5}, {"p": 1, "c": 3, "cdc$operation": 8}]
    (part,) = log_parts(Write(kind="delete range", key={"p": 1}, ts=10, lower=((3,), False)), TABLE)
    assert part.rows == [{"p": 1, "cdc$operation": 5}, {"p": 1, "c": 3, "cdc$operation": 8}]


def test_the_statement_for_the_table() -> None:
    write = Write(kind="update", key=KEY, ts=10, ttl=5, edits={"v": Overwrite("x"), "u": Add({"y": "z"})})
    assert base_cql(write, TABLE) == (
        'UPDATE "ks"."t" USING TIMESTAMP ? AND TTL ? SET "v" = ?, "u"."y" = ? WHERE "p" = ? AND "c" = ?',
        [10, 5, "x", "z", 1, 2],
    )
    write = Write(kind="delete range", key={"p": 1}, ts=10, lower=((3,), True))
    query = 'DELETE  FROM "ks"."t" USING TIMESTAMP ? WHERE "p" = ? AND ("c") >= (?)'
    assert base_cql(write, TABLE) == (query, [10, 1, 3])


def test_the_tables_of_the_log() -> None:
    ddl = log_ddl(TABLE)
    of_list = '"l" frozen<map<timeuuid, int>>, "cdc$deleted_l" boolean, "cdc$deleted_elements_l" frozen<set<timeuuid>>'
    of_type = '"u" frozen<u>, "cdc$deleted_u" boolean, "cdc$deleted_elements_u" frozen<set<smallint>>'
    assert of_list in ddl and of_type in ddl
    declared = "map<frozen<tuple<int, text>>, int>"
    composed = msgspec.structs.replace(TABLE.columns[4], name="m", declared=declared)
    assert value_columns(composed)[2] == '"cdc$deleted_elements_m" frozen<set<frozen<tuple<int, text>>>>'
