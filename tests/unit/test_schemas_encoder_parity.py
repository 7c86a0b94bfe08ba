"""The connector builds its records from byte templates: each must mean what the reference encoder writes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.postgres.encoder import Moment, TableEncoder, message_value
from connectors.postgres.pgoutput import UNCHANGED, Relation, RelationColumn
from connectors.postgres.values import BUILT_IN_TYPES, converter_for
from schemas.envelope import decode_record, encode
from schemas.event import ChangeEvent, Operation, Row, version_of
from schemas.record import Record

TYPES = {"id": 23, "name": 25, "amount": 1700, "at": 1114, "f": 701, "raw": 17}
RELATION = Relation(
    0, 1, "public", "odd % name", "d", tuple(RelationColumn(name, oid, -1, name == "id") for name, oid in TYPES.items())
)
MOMENT = Moment(commit_lsn=500, commit_time_us=1_795_459_664_288_432, xid=785, now_ms=9)

texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=10)
rows = st.tuples(
    st.integers(-(2**31), 2**31 - 1).map(lambda number: (str(number), number)),
    st.none() | texts.map(lambda text: (text, text)),
    st.none() | st.sampled_from(["12.50", "NaN", "-0.001"]).map(lambda text: (text, text)),
    st.none() | st.sampled_from([("2026-01-02 03:04:05.6", "2026-01-02T03:04:05.6"), ("infinity", "infinity")]),
    st.none() | st.sampled_from([("1.5", 1.5), ("1e+30", 1e30), ("Infinity", "Infinity")]),
    st.none() | st.sampled_from([("\\xdeadbeef", "3q2+7w=="), ("\\x", "")]),
)


def encoder() -> TableEncoder:
    converters = [converter_for(column.type_oid, -1, BUILT_IN_TYPES) for column in RELATION.columns]
    return TableEncoder("shop", "db", RELATION, ["id"], converters)


def event(operation: Operation, row: Row | None, **more: Any) -> ChangeEvent:
    return ChangeEvent(
        source="shop",
        table="public.odd % name",
        operation=operation,
        row=row,
        version=version_of(500, 321),
        commit_time_us=MOMENT.commit_time_us,
        position='["500","321"]',
        **more,
    )


def assert_same(value: bytes, key: bytes, expected: ChangeEvent) -> None:
    assert decode_record(Record("t", 0, 0, key, value)) == expected
    reference = encode(expected, "db", MOMENT.now_ms, transaction=785)[0]
    assert json.loads(value) == json.loads(reference.value or b"")
    assert key == reference.key


@settings(deadline=None, max_examples=150)
@given(rows, st.sets(st.sampled_from([1, 2, 5])))
def test_row_changes(cells: tuple[Any, ...], unsent: set[int]) -> None:
    tables = encoder()
    wire = [None if cell is None else cell[0].encode() for cell in cells]
    row = {name: None if cell is None else cell[1] for name, cell in zip(TYPES, cells, strict=True)}
    key = {"id": row["id"]}
    fragments = tables.fragments(wire)
    assert_same(tables.row("c", fragments, 321, MOMENT), tables.key(fragments), event(Operation.CREATE, row, key=key))
    partial = tables.fragments([UNCHANGED if i in unsent else value for i, value in enumerate(wire)])
    names = frozenset(list(TYPES)[i] for i in unsent)
    sent = {name: value for name, value in row.items() if name not in names}
    expected = event(Operation.UPDATE, sent, key=key, unavailable=names)
    assert decode_record(Record("t", 0, 0, tables.key(partial), tables.row("u", partial, 321, MOMENT))) == expected
    expected = event(Operation.DELETE, None, key=key, before=key)
    assert_same(tables.delete(fragments, False, 321, MOMENT), tables.key(fragments), expected)
    expected = event(Operation.UPDATE, row, key=key, before=row)
    assert_same(tables.update(fragments, fragments, 321, MOMENT), tables.key(fragments), expected)


def test_truncates_and_messages() -> None:
    assert_same(encoder().truncate(321, MOMENT), b'{"__ctxpipe":"truncate"}', event(Operation.TRUNCATE, None, key=None))
    value = message_value("shop", "db", "mine", b"\x00x", 321, 77, MOMENT)
    decoded = decode_record(Record("t", 0, 0, b'{"prefix":"mine"}', value))
    assert decoded is not None
    assert (decoded.message, decoded.commit_time_us, decoded.table) == (("mine", b"\x00x"), 77, "")
    assert decoded.version == version_of(500, 321)
