"""Avro by a schema registry: the same rows as in JSON, whatever names the types; what can't be read is set aside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from pipeline.core.config import Config, load
from pipeline.core.errors import Retryable
from pipeline.plan import Plan, compile_plan
from pipeline.rows import Change, decode_batch, key_of_record
from pipeline.streams.registry import Registered, Registries, SchemaRegistry
from schemas.avro import parse_schema
from schemas.context import ContextSpec
from schemas.envelope import decode_record
from schemas.errors import DecodeError
from schemas.event import Operation, version_of
from schemas.record import Record
from tests.support.schema_registry import RegistryServer

TIME = "io.debezium.time."
KEY = {"type": "record", "name": "Key", "namespace": "dbserver1.public.t", "fields": [{"name": "id", "type": "int"}]}


def connect(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "connect.version": 1, "connect.name": name, **more}


def logical(kind: str, meaning: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "logicalType": meaning, **more}


COLUMNS: list[tuple[str, Any, Any, Any]] = [
    # name, type, what the writer was given, what the row must say
    ("amount", logical("bytes", "decimal", precision=10, scale=2), Decimal("12.50"), "12.50"),
    (
        "price",
        connect("bytes", "org.apache.kafka.connect.data.Decimal", **{"connect.parameters": {"scale": "2"}}),
        b"\x04\xe2",
        "12.50",
    ),
    ("fixed", logical("fixed", "decimal", name="F", size=4, precision=8, scale=1), Decimal("-1.5"), "-1.5"),
    ("day", logical("int", "date"), date(2026, 1, 2), "2026-01-02"),
    ("clock", logical("long", "time-micros"), time(3, 4, 5, 6), "03:04:05.000006"),
    ("clock_ms", logical("int", "time-millis"), time(3, 4, 5), "03:04:05"),
    ("at", logical("long", "timestamp-micros"), datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
    ("at_ms", logical("long", "timestamp-millis"), datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
    ("local", logical("long", "local-timestamp-micros"), datetime(2026, 1, 2), "2026-01-02T00:00:00"),
    ("micro", connect("long", f"{TIME}MicroTimestamp"), 1_000_001, "1970-01-01T00:00:01.000001"),
    ("zoned", connect("string", f"{TIME}ZonedTimestamp"), "2026-01-02T00:00:00.500000Z", "2026-01-02T00:00:00.5Z"),
    ("days", connect("int", f"{TIME}Date"), 0, "1970-01-01"),
    ("who", logical("string", "uuid"), UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    ("state", {"type": "enum", "name": "State", "symbols": ["new", "paid"]}, "paid", "paid"),
    ("tags", {"type": "array", "items": ["null", "string"]}, ["a", None], ["a", None]),
    ("dates", {"type": "array", "items": connect("int", f"{TIME}Date")}, [1], ["1970-01-02"]),
    ("labels", {"type": "map", "values": "string"}, {"a": "b"}, {"a": "b"}),
    ("raw", "bytes", b"\xde\xad", "3q0="),
    ("ratio", "double", float("nan"), "NaN"),
    ("ok", "boolean", True, True),
    ("nothing", ["null", logical("int", "date")], None, None),
]
ROW = {"type": "record", "name": "Value", "namespace": "dbserver1.public.t", "fields": [{"name": "id", "type": "int"}]}
ROW["fields"] = [*ROW["fields"], *({"name": name, "type": kind} for name, kind, _, _ in COLUMNS)]  # type: ignore[misc]
SOURCE_FIELDS = {"version": "string", "connector": "string", "name": "string", "ts_ms": "long", "schema": "string"}
SOURCE_FIELDS |= {"table": "string", "lsn": "long"}
ENVELOPE = {
    "type": "record",
    "name": "Envelope",
    "namespace": "dbserver1.public.t",
    "fields": [
        {"name": "before", "type": ["null", ROW], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {
            "name": "source",
            "type": {
                "type": "record",
                "name": "Source",
                "fields": [{"name": name, "type": kind} for name, kind in SOURCE_FIELDS.items()],
            },
        },
        {"name": "op", "type": "string"},
    ],
}
SOURCE = {"version": "3.5.0.Final", "connector": "postgresql", "name": "dbserver1", "ts_ms": 5}
SOURCE |= {"schema": "public", "table": "t", "lsn": 7}
GIVEN = {"id": 1, **{name: given for name, _, given, _ in COLUMNS}}


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        server.register(1, KEY)
        server.register(2, ENVELOPE)
        yield server


def record(registry: RegistryServer, row: dict[str, Any], identity: int = 1) -> Record:
    value = registry.encode(2, {"before": None, "after": row, "source": SOURCE, "op": "c"})
    return Record("dbserver1.public.t", 0, 3, registry.encode(1, {"id": identity}), value)


def config_of(tmp_path: Path, **source: Any) -> Config:
    body = {
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "sources": {"shop": {"connector": "debezium", "topic_prefix": "dbserver1", **source}},
    }
    path = tmp_path / "ctxpipe.yaml"
    path.write_text(yaml.safe_dump(body))
    return load(path)


def plan_of(registries: Registries, *fields: str) -> Plan:
    entity = {"source": "shop", "table": "public.t", "key": ["id"]}
    spec = {"context": "c", "version": 1, "root": "t", "entities": {"t": entity}, "fields": ["id", *fields]}
    return compile_plan(ContextSpec.model_validate(spec), formats=registries.formats)


async def test_an_envelope_in_avro_is_the_same_change(registry: RegistryServer, tmp_path: Path) -> None:
    registries = Registries(config_of(tmp_path, schema_registry=registry.address))
    asked = registries.of("shop")
    assert asked is not None
    records = [record(registry, GIVEN), record(registry, {**GIVEN, "id": 2}, 2)]
    await asked.load(records)
    await asked.load(records)
    assert registry.asked == [1, 2], "each schema is asked for once"
    event = decode_record(records[0], form=registries.formats["shop"])
    assert event is not None
    assert event.row == {"id": 1, **{name: expected for name, _, _, expected in COLUMNS}}
    assert (event.key, event.version, event.operation) == ({"id": 1}, version_of(7, 7), Operation.CREATE)
    decoded = decode_batch(plan_of(registries, "amount"), records)
    assert [change.values for change in decoded.changes if isinstance(change, Change)] == [[1, "12.50"], [2, "12.50"]]


async def test_flattened_rows_and_json_keys_in_avro(registry: RegistryServer, tmp_path: Path) -> None:
    flat = {**ROW, "fields": [*ROW["fields"], {"name": "__deleted", "type": ["null", "string"]}]}
    registry.register(3, flat)
    registries = Registries(config_of(tmp_path, schema_registry=registry.address, format="flattened"))
    asked, form = registries.of("shop"), registries.formats["shop"]
    assert asked is not None
    row = Record("t", 0, 3, b'{"id":1}', registry.encode(3, {**GIVEN, "__deleted": None}))
    tombstone = Record("t", 0, 4, registry.encode(1, {"id": 1}), None)
    await asked.load([row, tombstone])
    event = decode_record(row, form=form, table="public.t")
    assert event is not None and event.row is not None and event.row["at"] == "2026-01-02T00:00:00Z"
    gone = decode_record(tombstone, form=form, table="public.t")
    assert gone is not None and (gone.operation, gone.key) == (Operation.DELETE, {"id": 1})


class Recorded:
    """Stages that decode, and nothing else."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.letters: list[str] = []

    async def process(self, records: Any) -> Any:
        self.letters += [letter.reason for letter in decode_batch(self.plan, records).dead_letters]

    async def rebuild(self, keys: Any) -> Any:
        raise AssertionError("not asked for")


async def test_what_the_registry_does_not_know_is_set_aside_until_it_does(
    registry: RegistryServer, tmp_path: Path
) -> None:
    registries = Registries(config_of(tmp_path, schema_registry=registry.address))
    asked = registries.of("shop")
    assert asked is not None
    plan = plan_of(registries, "ok")
    stages = Recorded(plan)
    flow = Registered(stages, {"dbserver1.public.t": asked})
    good = record(registry, GIVEN)
    known = registry.schemas.pop(2)
    await flow.process([good])
    assert "has no schema 2" in stages.letters[-1]
    assert key_of_record(plan.tables["shop.public.t"], good) == "1", "its bundles are known all the same"
    registry.schemas[2] = known
    await flow.process([good])
    assert len(stages.letters) == 1
    broken = Record("dbserver1.public.t", 0, 4, good.key, (good.value or b"")[:20])
    longer = Record("dbserver1.public.t", 0, 5, good.key, (good.value or b"") + b"x")
    await flow.process([broken, longer])
    assert "not what its Avro schema says" in stages.letters[1] and "longer" in stages.letters[2]


@pytest.mark.parametrize(
    ("more", "words"),
    [({"schemaType": "PROTOBUF"}, "of type PROTOBUF"), ({"references": [{"name": "x"}]}, "not supported")],
)
async def test_other_kinds_of_schemas_are_told(registry: RegistryServer, more: dict[str, Any], words: str) -> None:
    registry.register(9, KEY, **more)
    asked = SchemaRegistry(registry.address)
    strange = Record("t", 0, 0, None, b"\x00\x00\x00\x00\x09\x02")
    await asked.load([strange])
    with pytest.raises(DecodeError, match=words):
        asked.translate(strange)


async def test_a_registry_that_is_away_or_refuses_is_waited_for() -> None:
    one = Record("t", 0, 0, None, b"\x00\x00\x00\x00\x01\x02")
    with pytest.raises(Retryable, match="does not answer"):
        await SchemaRegistry("http://127.0.0.1:1").load([one])
    with RegistryServer(login="reader:se%40cret") as server:
        server.register(1, KEY)
        asked = SchemaRegistry(server.address)
        server.refuses = 401
        with pytest.raises(Retryable, match="answers 401; mend user and password") as told:
            await asked.load([one])
        assert "cret" not in str(told.value)
        server.refuses = 0
        await asked.load([one])
        assert server.authorization[-1] == "Basic cmVhZGVyOnNlQGNyZXQ="
        assert asked.translate(one).value == (
            b'{"schema":{"type":"struct","fields":[{"type":"int32","field":"id"}],"name":"dbserver1.public.t.Key"},'
            b'"payload":{"id":1}}'
        )


def test_records_that_are_no_avro_stay_as_they_are() -> None:
    plain = Record("t", 0, 0, b'{"id":1}', b'{"op":"c"}')
    assert SchemaRegistry("http://127.0.0.1:1").translate(plain) == plain
    asyncio.run(SchemaRegistry("http://127.0.0.1:1").load([plain]))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "5",
        "{}",
        '{"type": "nothing"}',
        '{"type": "record", "name": "A", "fields": [{"name": "a", "type": ["null", "A"]}]}',
        '{"type": "record", "name": "A", "fields": [{"name": "a", "type": "unheard.Of"}]}',
    ],
)
def test_what_is_no_schema_is_refused_in_words(text: str) -> None:
    with pytest.raises(DecodeError):
        parse_schema(text)


def test_a_union_of_several_types_spoils_its_own_column_alone() -> None:
    schema = parse_schema('{"type":"record","name":"A","fields":[{"name":"a","type":["null","int","string"]}]}')
    assert b"an Avro union of several types" in bytes(schema.connect)
