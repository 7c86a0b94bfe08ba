"""Whatever arrives on a topic, a batch is processed: a broken record is set aside with its reason, the next go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import msgspec
import pytest

from pipeline.flow import Flow
from pipeline.plan import compile_plan
from pipeline.report import BatchReport, digest_of
from pipeline.stores.memory import MemoryBundles, MemoryRelations, MemoryRows
from schemas.bundle import UnitKey
from schemas.context import ContextSpec
from schemas.record import Record

SPEC = {
    "context": "order",
    "version": 1,
    "root": "o",
    "entities": {
        "o": {"source": "s", "table": "public.o", "key": ["id"], "types": {"n": "decimal", "j": "json"},
              "filter": "not (t == 'hidden')"},
        "l": {"source": "s", "table": "public.l", "key": ["id", "k"], "types": {"n": "decimal"}},
    },
    "fields": ["id", "t", "n", "j", {"name": "hashed", "column": "t", "mask": "hash"},
               {"name": "twice", "value": "n * 2 + 1"}, {"name": "loud", "value": "upper(t)"}],
    "sections": {
        "lines": {"entity": "l", "kind": "many", "on": {"o": "id"}, "order_by": ["-n", "t"], "limit": 5,
                  "fields": ["id", "n", "t"], "compose": "copy"},
        "sums": {"entity": "l", "kind": "many", "on": {"o": "id"}, "compose": "copy",
                 "aggregates": {"c": "count", "s": {"sum": "n"}, "a": {"avg": "n"}, "least": {"min": "n"},
                                "d": {"count_distinct": "t"}, "of_text": {"sum": "t"}}},
        "groups": {"entity": "l", "kind": "many", "on": {"o": "id"}, "group_by": ["t"], "order_by": ["-s"],
                   "aggregates": {"c": "count", "s": {"sum": "n"}}, "compose": "copy"},
    },
}  # fmt: skip
ROW = {"id": "1", "t": '"x"', "n": '"1.5"', "j": '"{}"', "o": "1", "k": "2"}
VALUES = [
    "null", "true", "-0", "1e-300", "1e308", "1e400", "123456789012345678901234567890", "-9223372036854775809",
    '"NaN"', '"-Infinity"', '"1' + "0" * 5000 + '.5"', '"-1E+131071"', '"1e99999999999999999999"', '"sNaN"', '""',
    '"a\\u0000b"', '"\\ud800"', '"\\u2028\\u202e\\ud83d\\ude00"', "{}", '[{"a":null}]', '"\\"\\\\ud800\\""',
    '"[1e400]"',
    '"' + "[" * 5000 + '"', "[" * 900 + "]" * 900, '"hidden"', '"__debezium_unavailable_value"', '"0x10"', '"%|"',
]  # fmt: skip
BODIES = [
    b"", b"null", b"[]", b"{", b"\x00\x01", b"\xff\xfe", b'{"op":"c"}', b'{"payload":{}}', b"[" * 100_000,
    b'{"source":{"connector":5},"op":"c"}', b'{"source":{"connector":"mysql"},"op":"c"}', b"x" * 20_000_000,
]  # fmt: skip
KEYS = [
    None, b"", b"[]", b"\xff", b'{"id":1}', b'{"id":{"a":1}}', b'{"x":1}', b"1", b'{"id":' + b"[" * 5000,
    b'{"id":1e400}', b'{"schema":1,"payload":[1]}', b'{"__ctxpipe":"truncate"}',
]  # fmt: skip


PLAN = compile_plan(ContextSpec.model_validate(SPEC), mask_secret=b"secret")


def new_flow() -> Flow:
    return Flow(PLAN, MemoryRows(), MemoryRelations(), MemoryBundles())


def record(table: str, row: dict[str, str], lsn: int, version: str = "ctxpipe-0.1.0", offset: int = 0) -> Record:
    names = ("id",) if table == "o" else ("id", "k")
    source = {"version": version, "connector": "postgresql", "name": "s", "schema": "public", "table": table,
              "ts_us": 1000, "lsn": lsn, "sequence": f'["{lsn}","{lsn}"]'}  # fmt: skip
    value = f'{{"before":null,"after":{_object(row)},"source":{json.dumps(source)},"op":"c","ts_ms":1}}'
    key = _object({name: row[name] for name in names})
    return Record(f"s.public.{table}", 0, offset, key.encode(), value.encode())


def _object(row: dict[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in row.items()) + "}"


def values_in_places() -> Iterator[tuple[str, str, str, str]]:
    yield from product(ROW, VALUES, ("o", "l"), ("ctxpipe-0.1.0", "2.5.0.Final"))


async def test_no_value_of_any_column_stops_the_flow() -> None:
    good = record("o", {**ROW, "id": "2"}, 1)
    for column, value, table, version in values_in_places():
        flow = new_flow()
        row = {**ROW, column: value}
        report = await flow.process([record("o", ROW if table == "l" else row, 5, version), good])
        if table == "l":
            report = await flow.process([record("l", row, 6, version)])
        stored = await flow.bundles.fetch(["2"])  # type: ignore[attr-defined]
        assert stored[0].bundle.body, (column, value)
        assert all(letter.reason for letter in report.dead_letters), (column, value)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:12]))
async def test_no_record_stops_the_flow(body: bytes) -> None:
    flow = new_flow()
    for key, topic, header in product(KEYS, ("s.public.o", "other"), (b"{", b"[]", b'{"id":1}')):
        broken = Record(topic, 3, 7, key, body, 0, (("__debezium.oldkey", header),))
        report = await flow.process([broken, record("o", {**ROW, "id": "2"}, 1, offset=8)])
        (letter,) = report.dead_letters
        assert letter.record is broken and letter.reason and len(letter.reason) < 300
        assert letter.bundle_keys == (["1"] if topic == "s.public.o" and key == b'{"id":1}' else []) or key in KEYS[5:]
        assert report.applied["s.public.o", 0].offset == 9


async def test_numbers_of_any_size_are_exact() -> None:
    flow = new_flow()
    await flow.process([record("o", {**ROW, "j": "123456789012345678901234567890"}, 1)])
    big = "1" + "0" * 6000
    await flow.process([record("l", {**ROW, "k": str(k), "n": f'"{big}"'}, 2 + k) for k in range(3)])
    body = (await flow.bundles.fetch(["1"]))[0].bundle.body.decode()  # type: ignore[attr-defined]
    assert '"j":123456789012345678901234567890,' in body and f'"s":3{"0" * 6000},' in body and f'"a":{big},' in body


async def test_equal_causes_have_equal_digests() -> None:
    flow = new_flow()

    async def digest(value: bytes) -> str:
        report: BatchReport = await flow.process([Record("s.public.o", 0, 0, b'{"id":1}', value)])
        return report.dead_letters[0].digest

    first = await digest(b"{")
    assert first == await digest(b"nonsense") != await digest(b"{}")
    assert first.startswith("DecodeError in parse ")
    assert digest_of(ValueError("never raised")).startswith("ValueError in nowhere ")


async def test_the_root_keys_that_lack_the_record_are_named() -> None:
    flow = new_flow()
    await flow.process([record("o", ROW, 1), record("o", {**ROW, "id": "9"}, 1)])
    await flow.process([record("l", {**ROW, "id": "5", "o": "9"}, 2)])
    report = await flow.process([Record("s.public.l", 0, 1, b'{"id":5,"k":2}', b"not json")])
    assert report.dead_letters[0].bundle_keys == ["9"]
    assert flow.plan.units[UnitKey("", "9").unit] is flow.plan.root
    whole = record("l", {**ROW, "id": "6", "o": "9"}, 3)
    strange = msgspec.structs.replace(whole, value=(whole.value or b"").replace(b'"op":"c"', b'"op":"x"'))
    report = await flow.process([strange])
    assert report.dead_letters[0].bundle_keys == ["9"], "of a row that is not stored, by what joins it"


def test_records_are_as_they_should_be() -> None:
    """The generator itself: a plain record passes."""
    found: Any = record("l", ROW, 3)
    assert json.loads(found.value)["after"]["k"] == 2 and json.loads(found.key) == {"id": 1, "k": 2}
