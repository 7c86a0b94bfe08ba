"""Debezium's records, as recorded from version 3.5.0: every one against the change that it means."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.envelope import decode_record
from schemas.errors import DecodeError
from schemas.event import ChangeEvent, Operation, version_of
from schemas.record import Record
from tests.support.debezium_fixtures import SCHEMALESS, WITH_SCHEMAS, column, golden_records, plain, with_schemas

TYPES = {
    "public.g": {
        "n10": "decimal(10,2)",
        "nv": "decimal",
        "ts": "timestamp",
        "ts3": "timestamp_ms",
        "tstz": "timestamptz",
        "d": "date",
        "tm": "time_us",
        "iv": "interval_us",
        "j": "json",
        "h": "hstore",
        "by": "bytes",
        "p": "point",
    }
}
COLUMNS = ("id", "n10", "nv", "ts", "ts3", "tstz", "d", "tm", "iv", "j", "u", "ia", "ta", "h", "by", "p", "m", "bg")
FULL = {
    "id": 1,
    "n10": "13.00",
    "nv": "3.14159",
    "ts": "2026-01-02T03:04:05.678901",
    "ts3": "2026-01-02T03:04:05.678",
    "tstz": "2026-01-02T01:04:05.678901Z",
    "d": "2026-01-02",
    "tm": "03:04:05.678901",
    "iv": "PT778H30M",
    "j": '{"a": 1}',
    "u": "3f0e0d5e-0000-4000-8000-000000000001",
    "ia": [1, 2, None],
    "ta": ["x", "y"],
    "h": {"k": "v"},
    "by": "3q2+7w==",
    "p": {"x": 1.0, "y": 2.0},
    "m": "b",
}
BIG = {"bg"}


def empty(identity: int, **more: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), "id": identity, **more}


def g(
    operation: str, key: int | None, row: dict[str, Any] | None, at: tuple[int, int], time_us: int, **more: Any
) -> Any:
    position = more.pop("position", f'["{at[0]}","{at[1]}"]')
    return ChangeEvent(
        source="dbz",
        table="public.g",
        operation=Operation(operation),
        key=None if key is None else {"id": key},
        row=row,
        version=version_of(*at),
        commit_time_us=time_us,
        position=position,
        **more,
    )


def signal(identity: str, kind: str, data: str, at: int, time_us: int) -> ChangeEvent:
    return ChangeEvent(
        source="dbz",
        table="public.debezium_signal",
        operation=Operation.CREATE,
        key={"id": identity},
        row={"id": identity, "type": kind, "data": data},
        version=version_of(at, at),
        commit_time_us=time_us,
        position=f'["{at}","{at}"]',
    )


UNSENT: Any = {"unavailable": frozenset(BIG)}
FIRST, SECOND = "44834ebc-228b-43e4-94a9-eecb47bc9ba2", "2b011e38-2f69-433f-ab7a-f9739c303d78"
WANTED = '{"data-collections":["public.g"],"type":"incremental"}'
OPENED, CLOSED = (
    '{"openWindowTimestamp": "2026-11-23T18:47:44.%sZ"}',
    ('{"openWindowTimestamp": "2026-11-23T18:47:44.%sZ", "closeWindowTimestamp": "2026-11-23T18:47:44.%sZ"}'),
)

EXPECTED = [
    g("c", 1, {**FULL, "n10": "12.50"}, (50848400, 50848400), 1795459664287001, position='[null,"50848400"]'),
    g("u", 1, FULL, (50848496, 50848496), 1795459664288432, position='[null,"50848496"]', **UNSENT),
    g("d", 1, None, (50848872, 50848928), 1795459664289701, before={"id": 1}, new_key={"id": 2}),
    None,
    g("c", 2, {**FULL, "id": 2}, (50848872, 50848928), 1795459664289701, old_key={"id": 1}, **UNSENT),
    g("c", 5, empty(5, ts="infinity", tstz="infinity"), (50849392, 50849392), 1795459664289976),
    g("c", 6, empty(6), (50849592, 50849592), 1795459664290505),
    g("u", 6, empty(6, m="a"), (50849592, 50849728), 1795459664290505),
    g("c", 7, empty(7, newcol=9), (50849864, 50852208), 1795459664291866),
    g("c", 2, {**FULL, "id": 2}, (50848400, 50848400), 1795459664287001, position='[null,"50848400"]'),
    g("r", 5, empty(5, ts="infinity", tstz="infinity", newcol=9), (50853176, 50853176), 1795459664674493),
    g("r", 6, empty(6, m="a", newcol=9), (50853176, 50853176), 1795459664675309),
    g("r", 7, empty(7, newcol=9), (50853176, 50853176), 1795459664676027),
    g("d", 2, None, (50854288, 50854288), 1795459669350597, before={"id": 2}),
    None,
    g("t", None, None, (50854632, 50857520), 1795459669351493),
    signal("s1", "execute-snapshot", WANTED, 50852504, 1795459664292676),
    signal(f"{FIRST}-open", "snapshot-window-open", OPENED % "643754205", 50852848, 1795459664644796),
    signal(f"{FIRST}-close", "snapshot-window-close", CLOSED % ("643754205", "665785672"), 50853176, 1795459664666732),
    signal(f"{SECOND}-open", "snapshot-window-open", OPENED % "677078276", 50853568, 1795459664677593),
    signal(f"{SECOND}-close", "snapshot-window-close", CLOSED % ("677078276", "679924534"), 50853896, 1795459664680542),
    ChangeEvent(
        source="dbz",
        table="",
        operation=Operation.MESSAGE,
        key=None,
        row=None,
        version=version_of(50852392, 50852456),
        commit_time_us=1795459664292218,
        position='["50852392","50852456"]',
        message=("pfx", b"hello"),
    ),
]  # fmt: skip


def without_big(event: ChangeEvent | None) -> ChangeEvent | None:
    """The two rows with the large value: checked for its beginning, then compared without it."""
    if event is None or event.row is None or not isinstance(event.row.get("bg"), str):
        return event
    assert event.row["bg"].startswith("c4ca4238a0b923820dcc509a6f75849b")
    return msgspec.structs.replace(event, row={name: value for name, value in event.row.items() if name != "bg"})


CHANGES = [record for record in golden_records(SCHEMALESS) if record.topic != "dbz.transaction"]


@pytest.mark.parametrize(
    ("record", "expected"),
    list(zip(CHANGES, EXPECTED, strict=True)),
    ids=[f"{record.topic}-{record.offset}" for record in CHANGES],
)
def test_every_recorded_change_without_schemas(record: Record, expected: ChangeEvent | None) -> None:
    assert without_big(decode_record(record, TYPES)) == expected


def test_transaction_records_carry_no_change() -> None:
    records = [record for record in golden_records(SCHEMALESS) if record.topic == "dbz.transaction"]
    assert len(records) == 26
    assert [decode_record(record, TYPES) for record in records] == [None] * 26


def test_snapshot_records_with_schemas_need_no_declared_types() -> None:
    first, second = golden_records(WITH_SCHEMAS)
    row = empty(1, n10="12.50", nv="3.1", u="3f0e0d5e-0000-4000-8000-000000000001", ta=["x"], newcol=9)
    expected = g("r", 1, row, (50858584, 50858584), 1795459770316084, position='[null,"50858584"]')
    assert decode_record(first) == msgspec.structs.replace(expected, source="dbs")
    event = decode_record(second)
    assert event is not None
    assert event.row == empty(2, newcol=9)
    assert event.key == {"id": 2}


PLACEHOLDER = "__debezium_unavailable_value"


@pytest.mark.parametrize(
    "value",
    [
        PLACEHOLDER,
        base64.b64encode(PLACEHOLDER.encode()).decode(),
        PLACEHOLDER.encode().hex(),
        [PLACEHOLDER],
        list(PLACEHOLDER.encode()),
        "uuids",
        {PLACEHOLDER: PLACEHOLDER},
        json.dumps({PLACEHOLDER: PLACEHOLDER}, separators=(",", ":")),
    ],
    ids=["text", "base64", "hex", "array", "codes", "uuids", "map", "map as text"],
)
def test_an_unsent_column_is_unavailable_in_every_form(value: Any) -> None:
    if value == "uuids":
        value = [name_uuid_from_bytes(PLACEHOLDER.encode())]
    event = decode_record(plain({"id": 1, "c": value}), {"p.t": {"c": "text"}})
    assert event is not None
    assert event.row == {"id": 1}
    assert event.unavailable == {"c"}


def name_uuid_from_bytes(name: bytes) -> str:
    """Java's UUID.nameUUIDFromBytes, by its definition: MD5 with version 3 and the IETF variant set by hand."""
    import hashlib

    digest = bytearray(hashlib.md5(name, usedforsecurity=False).digest())
    digest[6] = digest[6] & 0x0F | 0x30
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def test_before_holds_only_what_is_sure() -> None:
    fields = [column("id", "int32"), column("a", "string"), {**column("b", "int32"), "default": 9}]

    def before(**values: Any) -> Any:
        event = decode_record(with_schemas({"id": 1, "a": "x", "b": 1}, fields, before={"id": 1, **values}, op="u"))
        assert event is not None
        return event.before

    assert before(a="y", b=1) == {"id": 1, "a": "y", "b": 1}
    assert before(a="y", b=None) == {"id": 1}
    assert before(a="y", b=9) == {"id": 1}, "a default may stand for null"
    assert before(a=PLACEHOLDER, b=1) == {"id": 1, "b": 1}


def test_old_versions_of_debezium() -> None:
    event = decode_record(plain({"id": 1}, snapshot=True, ts_ms=1_000, sequence=None))
    assert event is not None
    assert (event.version, event.commit_time_us) == (version_of(7, 7), 1_000_000)
    event = decode_record(plain({"id": 1}, sequence='["5", null]', lsn=6))
    assert event is not None
    assert event.version == version_of(5, 6)


GOOD = json.loads(plain({"id": 1}).value or b"")


def altered(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def source(**changes: Any) -> bytes:
    return altered(source={**GOOD["source"], **changes})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\x00\x00\x00\x00\x01abc", "Avro or Protobuf"),
        (b"[]", "no change envelope"),
        (b"null", "no change envelope"),
        (b"{}", "lacks 'op' and 'source'"),
        (b'{"id":1,"name":"x"}', "ExtractNewRecordState"),
        (b'{"schema":{},"payload":null}', "no change envelope"),
        (b'{"schema":null,"payload":' + altered() + b"}", ""),
        (b'{"schema":5,"payload":' + altered() + b"}", "no Kafka Connect schema"),
        (b'{"schema":{"fields":[{"field":"after"}]},"payload":' + altered() + b"}", "no Kafka Connect struct"),
        (altered(op=None), "lacks 'op'"),
        (altered(source=None), "lacks 'source'"),
        (altered(op="x"), "unknown operation 'x'"),
        (altered(op=5), "no change envelope"),
        (altered(after=None), "without 'after'"),
        (altered(after=[1]), "no change envelope"),
        (altered(op="m"), "without 'message'"),
        (altered(op="m", message={"prefix": "a", "content": "&"}), "not base64"),
        (source(connector="mysql"), "connector 'mysql'; known: postgresql"),
        (source(connector=None), "no change envelope"),
        (source(table=""), "does not name"),
        (source(lsn=None), "position"),
        (source(sequence='["a","b"]'), "pair of log positions"),
        (source(sequence='["-1","5"]'), "pair of log positions"),
        (source(sequence="x"), "pair of log positions"),
        (source(lsn=1 << 64), "pair of log positions"),
        (source(ts_us=-1), "no time"),
        (altered(after={"id": 1, "c": True}), "column c: not a value of type decimal(10,2)"),
        (altered(after={"id": 1, "d": 1 << 60}), "column d"),
        (altered(after={"id": 1, "c": {"scale": 10**9, "value": "BOI="}}), "beyond what Postgres can hold"),
        (altered(after={"id": 1, "c": "&&"}), "column c"),
        (b'{"after":{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"op":"\xff"}', "UTF-8"),
        (altered().replace(b'"op": "c"', b'"op": "c", "x": 1e999'), ""),
        (b" " * (16 * 1024 * 1024 + 1), "more than the limit"),
    ],
)  # fmt: skip
def test_broken_records_are_refused_in_one_sentence(value: bytes, words: str) -> None:
    record = Record("x.p.t", 0, 0, b'{"id":1}', value)
    types = {"p.t": {"c": "decimal(10,2)", "d": "date"}}
    if not words:
        assert decode_record(record, types) is not None
        return
    with pytest.raises(DecodeError) as caught:
        decode_record(record, types)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (None, "no key"),
        (b"null", "no key"),
        (b"5", "no JSON object"),
        (b"{}", "no JSON object"),
        (b"{", "the key is not JSON"),
        (b'{"a":"\xff"}', "the key is"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema":{"a":1},"payload":{"id":1}}', "no Kafka Connect struct"),
    ],
)
def test_broken_keys_are_refused(key: bytes | None, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        decode_record(Record("x.p.t", 0, 0, key, altered()))


def test_messages_never_show_the_value() -> None:
    with pytest.raises(DecodeError) as caught:
        decode_record(plain({"id": 1, "c": "secret!"}), {"p.t": {"c": "decimal(10,2)"}})
    assert "secret" not in str(caught.value)


ALL = [record for record in (*golden_records(SCHEMALESS), *golden_records(WITH_SCHEMAS)) if record.value]


@st.composite
def mutated(draw: st.DrawFn) -> Record:
    """A golden record with bytes overwritten, cut out, put in or doubled."""
    record = draw(st.sampled_from(ALL))
    target = draw(st.sampled_from(["key", "value", "header"]))
    content = bytearray({"key": record.key or b"", "value": record.value or b"", "header": b'{"id":2}'}[target])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "json"]))
        if kind == "set":
            content[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut":
            del content[at : at + draw(st.integers(1, 50))]
        elif kind == "insert":
            content[at:at] = draw(st.binary(max_size=6))
        else:
            content[at:at] = draw(st.sampled_from([b"null", b"[]", b"{}", b"1e999", b'"', b"-", b"\\u0000", b"9" * 30]))
    changed: Any = {"key": bytes(content)} if target == "key" else {"value": bytes(content)}
    if target == "header":
        changed = {"headers": (("__debezium.oldkey", bytes(content)), ("__debezium.newkey", bytes(content)))}
    return msgspec.structs.replace(record, **changed)


@settings(max_examples=800, deadline=None)
@given(mutated())
def test_nothing_but_decode_errors_ever_leaves(record: Record) -> None:
    try:
        decode_record(record, TYPES)
    except DecodeError as error:
        assert "\n" not in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([name for name in TYPES["public.g"] if name != "bg"]), json_values)
def test_no_json_value_breaks_a_column_of_any_type(name: str, value: Any) -> None:
    template = json.loads(ALL[0 if ALL[0].topic == "dbz.public.g" else 26].value or b"")
    for envelope in (template, *(json.loads(record.value or b"") for record in golden_records(WITH_SCHEMAS)[:1])):
        (envelope.get("payload") or envelope)["after"][name] = value
        record = Record("dbz.public.g", 0, 0, b'{"id":1}', json.dumps(envelope).encode())
        try:
            decode_record(record, TYPES)
        except DecodeError as error:
            assert name in str(error) or "envelope" in str(error) or "JSON" in str(error)
