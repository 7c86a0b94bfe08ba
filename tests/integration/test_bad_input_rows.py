"""One pipeline and everything odd that can come through it: rows of strange values, and broken records on a topic."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from deploy.local.roles import Role
from tests.support.cli import ctxpipe
from tests.support.eventually import eventually_sync
from tests.support.servers import SharedServers, fresh_database
from tests.support.streams import new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

SECRET = "a secret of many words"
TABLES = """
CREATE TABLE things (id bigint PRIMARY KEY, t text, j json, b bytea, n numeric, f double precision, i bigint, a text[]);
CREATE TABLE parts (name text, thing bigint, n numeric, PRIMARY KEY (name, thing));
"""
SPEC = """
context: {context}
version: 1
root: thing
entities:
  thing: {{source: {source}, table: public.things, key: [id], types: {{j: json, n: decimal}}}}
  part: {{source: {source}, table: public.parts, key: [name, thing], types: {{n: decimal}}}}
fields: [id, t, j, b, n, f, i, a, {{name: hashed, column: t, mask: hash}}]
sections:
  parts: {{entity: part, kind: many, on: {{thing: id}}, order_by: [-n, name], limit: 20, fields: [name, n]}}
  sums:
    entity: part
    kind: many
    on: {{thing: id}}
    aggregates: {{count: count, sum: {{sum: n}}, avg: {{avg: n}}, least: {{min: n}}, most: {{max: n}}}}
  by_name: {{entity: part, kind: many, on: {{thing: id}}, group_by: [name], aggregates: {{sum: {{sum: n}}}}}}
serving: {{max_age_ms: 60000}}
"""

HUGE = "9" * 120 + "." + "1" * 40
WIDE = "7" * 5000
ODD = "ع\u202eabc\u2028\u2029 🧑‍🚀 𝔘 \x01\x7f \\u0000 ''\" % | {}\ufeff\ufffd"
NESTED = "[" * 1500 + "]" * 1500
TEXTS = [ODD, "", "%|%00", '"__debezium_unavailable"', "x" * 300_000, "\t\r\n"]
DOCUMENTS = [
    '{"nul": "\\u0000", "emoji": "\\ud83d\\ude00", "n": 12345678901234567890123}', '"\\ud800 alone"', NESTED,
    '{"a": 1, "a": 2}', '"' + ODD.replace("\\", "\\\\").replace('"', '\\"').replace("\x01", "\\u0001") + '"', "1e-300",
]  # fmt: skip
BYTES = [b"", b"\x00", bytes(range(256))]
NUMERICS = [HUGE, f"-{HUGE}", WIDE, "0.0000000000000000000000000000000001", "NaN", "Infinity", "-0", "1E+1000"]
FLOATS = ["1e-300", "-1.7976931348623157e308", "5e-324", "NaN", "-Infinity", "-0", "0.1", "1e22"]
INTEGERS = [2**63 - 1, -(2**63), 2**53 + 1, 0]


class Pipeline:
    """Postgres, Kafka and Redis of the session, with a connector and a worker of this module's own."""

    def __init__(self, folder: Path, kafka: str, redis: str, dsn: str) -> None:
        self.folder, self.kafka, self.dsn = folder, kafka, dsn
        self.context, self.source = new_name("odd"), new_name("shop")
        source = {"connector": "postgres", "dsn": dsn, "tables": ["public.things", "public.parts"]}
        config = {
            "kafka": {"bootstrap_servers": kafka, "partitions": 2},
            "redis": {"url": redis, "prefix": self.context},
            "sources": {self.source: source},
            "contexts": ["odd.yaml"],
            "mask_secret": "${ODD_SECRET}",
        }
        (folder / "ctxpipe.yaml").write_text(yaml.safe_dump(config))
        (folder / "odd.yaml").write_text(SPEC.format(context=self.context, source=self.source))
        self.connector = self._role("connect", self.source, "--metrics-port", "0").start()
        self.worker = self._role("worker", "--metrics-port", "0").start()

    def _role(self, *words: str) -> Role:
        config = str(self.folder / "ctxpipe.yaml")
        return Role([*words, "--config", config], self.folder / f"{words[0]}.log", {"ODD_SECRET": SECRET})

    def topic(self, table: str) -> str:
        return f"{self.source}.public.{table}"

    def run(self, *words: str, timeout_s: float = 90) -> Any:
        self.connector.ensure_running()
        self.worker.ensure_running()
        return ctxpipe(*words, folder=self.folder, timeout_s=timeout_s, ODD_SECRET=SECRET)

    def sql(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement, values or None)  # type: ignore[arg-type]

    def bundle(self, key: int) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.run("get", self.context, str(key), "--json").lines()[0]["bundle"]
        return found

    def verify(self) -> int:
        """Raises when a bundle is not what SQL says; the number of bundles."""
        done = self.run("verify", self.context, "--json", "--wait", "60")
        assert done.code == 0, done.err + done.out[-3000:] + self.worker.tail()
        return int(done.lines()[-1]["verified"])

    def letters(self) -> list[dict[str, Any]]:
        done = self.run("dlq", self.context, "list", "--json")
        assert done.code == 0, done.err
        return list(done.lines())

    def metrics(self, role: Role) -> dict[str, float]:
        """`name{labels}` → value of a role."""
        words = role.log_file.read_text().split()
        (address,) = {word.strip('",') for word in words if "/metrics" in word}
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def close(self) -> None:
        for role in (self.worker, self.connector):
            assert role.stop() == 0
            assert "Traceback" not in role.log_file.read_text()


@pytest.fixture(scope="module")
def pipeline(servers: SharedServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with fresh_database(servers.postgres(), f"odd_{os.getpid()}") as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(TABLES)
        insert_odd_rows(dsn, start=0)
        running = Pipeline(tmp_path_factory.mktemp("odd"), servers.kafka(), servers.redis(), dsn)
        yield running
        running.close()


def insert_odd_rows(dsn: str, start: int) -> int:
    """Each odd value once, in rows numbered from `start`; how many."""
    columns = {"t": TEXTS, "j": DOCUMENTS, "b": BYTES, "n": NUMERICS, "f": FLOATS, "i": INTEGERS}
    rows = [(column, value) for column, values in columns.items() for value in values]
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number, (column, value) in enumerate(rows, start):
            connection.execute(f"INSERT INTO things (id, {column}) VALUES (%s, %s)", (number, value))  # type: ignore[arg-type]
        connection.execute("UPDATE things SET a = %s WHERE id = %s", ([ODD, None, "NULL", "{}", 'a"b\\'], start))
        parts = [(f"p{number}", start + 1 + number // 4, value) for number, value in enumerate(NUMERICS)]
        for part in [(ODD[:40], start, HUGE), *parts]:
            connection.execute("INSERT INTO parts VALUES (%s, %s, %s)", part)
    return len(rows)


def test_odd_rows_arrive_unharmed_by_snapshot_and_by_stream(pipeline: Pipeline) -> None:
    snapshot = pipeline.verify()
    count = insert_odd_rows(pipeline.dsn, start=1000)
    assert snapshot == count
    assert pipeline.verify() == 2 * count
    first, streamed = pipeline.bundle(0), pipeline.bundle(1000)
    assert first is not None and streamed is not None
    assert first["t"] == streamed["t"] == ODD and first["a"] == streamed["a"] == [ODD, None, "NULL", "{}", 'a"b\\']
    expected: list[tuple[str, list[Any]]] = [
        ("t", TEXTS), ("j", [json.loads(DOCUMENTS[0]), DOCUMENTS[1], NESTED]),
        ("b", [base64.b64encode(value).decode() for value in BYTES]), ("n", [*NUMERICS[:6], "0", "1" + "0" * 1000]),
        ("f", [1e-300, -1.7976931348623157e308, 5e-324, "NaN", "-Infinity", 0, 0.1, 1e22]), ("i", INTEGERS),
    ]  # fmt: skip
    starts = {"t": 0, "j": 6, "b": 12, "n": 15, "f": 23, "i": 31}
    keys = [
        str(start + place) for column, values in expected for start in (starts[column],) for place in range(len(values))
    ]
    found = pipeline.run("get", pipeline.context, *keys, "--json").lines()
    got = [found[place]["bundle"] for place in range(len(keys))]
    wanted = [(column, value) for column, values in expected for value in values]
    for bundle, (column, value) in zip(got, wanted, strict=True):
        assert bundle[column] == value, (bundle["id"], column)


def test_a_masked_field_is_its_hash_under_the_configured_secret(pipeline: Pipeline) -> None:
    pipeline.verify()
    bundle = pipeline.bundle(0)
    assert bundle is not None
    assert bundle["hashed"] == hmac.new(SECRET.encode(), ODD.encode(), hashlib.sha256).hexdigest()[:32]


def envelope(pipeline: Pipeline, table: str, row: dict[str, Any], **changes: Any) -> bytes:
    """Of a change that is newer than all that Postgres may say; `changes` of its parts."""
    lsn = 2**62
    source = {"version": "ctxpipe-0.1.0", "connector": "postgresql", "name": pipeline.source, "schema": "public"}
    source |= {"table": table, "lsn": lsn, "sequence": f'["{lsn}","{lsn}"]', "ts_us": int(time.time() * 1e6)}
    return json.dumps({"before": None, "after": row, "op": "c", "source": source, **changes}).encode()


def broken_records(pipeline: Pipeline) -> list[tuple[bytes, bytes, str]]:
    """(key, value, words of the reason) of records that can never be applied."""
    good = envelope(pipeline, "things", {"id": 3})
    key = b'{"id":3}'
    return [
        (key, b"not json at all", "not JSON"),
        (key, b'{"after": {"id": 3}}', "no change envelope"),
        (key, good.replace(b'"postgresql"', b'"mysql"'), "no decoder for records of connector 'mysql'"),
        (key, good.replace(b'"things"', b'"unheard_of"'), "table public.unheard_of on topic"),
        (b"null", good, "no key"),  # a compacted topic refuses records without any
        (b'{"nr": 3}', good, "lacks column id"),
        (key, good.replace(b'"op": "c"', b'"op": "x"'), "unknown operation"),
        (key, good.replace(b'"id": 3}', b'"id": 3, "t": %b}' % (b"[" * 300 + b"]" * 300)), "levels deep"),
        (key, good.replace(b'"id": 3}', b'"id": 3, "t": "\\ud800"}'), "not JSON"),
        (key, b"\xff\xfe", "not"),
        (key, envelope(pipeline, "things", {"id": 3, "t": "x" * 20_000_000}), "more than the limit"),
        (b'{"id":' + b"[" * 3000, b"{", "not JSON"),
    ]


async def produce(pipeline: Pipeline, topic: str, records: list[tuple[bytes, bytes]]) -> list[tuple[int, int]]:
    """(partition, offset) of each, all in partition 0. Our own topics take no larger record than workers read; those
    that others made do."""
    admin = AIOKafkaAdminClient(bootstrap_servers=pipeline.kafka)
    await admin.start()
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(32 << 20)})])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=pipeline.kafka, max_request_size=64 << 20) as producer:
        sent = [await producer.send_and_wait(topic, value, key=key, partition=0) for key, value in records]
    return [(found.partition, found.offset) for found in sent]


def test_broken_records_are_set_aside_and_the_next_go_on(pipeline: Pipeline) -> None:
    pipeline.verify()
    broken = broken_records(pipeline)
    topic = pipeline.topic("things")
    places = asyncio.run(produce(pipeline, topic, [(key, value) for key, value, _ in broken]))
    after = asyncio.run(produce(pipeline, topic, [(b'{"id":77}', envelope(pipeline, "things", {"id": 77}))]))
    assert after[0] > places[-1]
    letters = eventually_sync(pipeline.letters, lambda found: len(found) >= len(broken), timeout_s=60)
    for letter, place, (_, value, words) in zip(letters, places, broken, strict=True):
        assert (letter["topic"], letter["partition"], letter["offset"]) == (topic, *place)
        assert words in letter["reason"] and letter["value_bytes"] == len(value)
        assert letter["digest"].split()[0] in ("DecodeError", "Poison") and len(letter["digest"].split()[-1]) == 8
        # The key tells, or the row in it; of the last record neither can be read.
        assert letter["bundle_keys"] == ([] if value == b"{" else ["3"]), letter
        assert letter["truncated"] is (len(value) > 1_000_000)
    eventually_sync(lambda: pipeline.bundle(77), timeout_s=30)
    shown = pipeline.run("dlq", pipeline.context, "show", str(letters[0]["number"]), "--json").lines()[0]
    assert base64.b64decode(shown["value"]) == b"not json at all" and base64.b64decode(shown["key"]) == b'{"id":3}'
    plain = pipeline.run("dlq", pipeline.context, "list")
    assert plain.code == 0 and "not JSON" in plain.out and f"{topic}/0@{places[0][1]}" in plain.out
    assert pipeline.run("dlq", pipeline.context, "show", "99999").code == 2
    _redriven(pipeline, letters)
    # What no source stands behind is surplus, and verify says so; taking it away makes all equal again.
    assert pipeline.run("verify", pipeline.context, "--json", "--wait", "60").code == 1
    gone = envelope(pipeline, "things", {"id": 77}, op="d", after=None, before={"id": 77}).replace(
        b"4611686018427387904", b"4611686018427387905"
    )
    asyncio.run(produce(pipeline, topic, [(b'{"id":77}', gone)]))
    pipeline.verify()


def _redriven(pipeline: Pipeline, letters: list[dict[str, Any]]) -> None:
    """Records come again, whole, the one of 20 MB from its own topic; what still does not work says why."""
    numbers = [str(letters[0]["number"]), str(letters[10]["number"])]
    done = pipeline.run("dlq", pipeline.context, "redrive", *numbers, "--json")
    failed = [(letters[place]["number"], letters[place]["reason"]) for place in (0, 10)]
    assert done.code == 1 and [(one["number"], one["reason"]) for one in done.lines()[0]["failed"]] == failed
    assert len(pipeline.letters()) == len(letters), "nothing is set aside twice"


def test_a_second_connector_on_the_slot_is_refused(pipeline: Pipeline) -> None:
    done = pipeline.run("connect", pipeline.source)
    (message,) = done.told()
    assert done.code == 3 and "two connectors on one slot" in message and str(pipeline.connector.pid) in message
    config = yaml.safe_load((pipeline.folder / "ctxpipe.yaml").read_text())
    other = {**config["sources"][pipeline.source], "slot": f"ctxpipe_{pipeline.source}"}
    config["sources"]["intruder"] = other
    (pipeline.folder / "second.yaml").write_text(yaml.safe_dump(config))
    done = pipeline.run("connect", "intruder", "--config", "second.yaml")
    (message,) = done.told()
    assert done.code == 3 and f"ctxpipe_{pipeline.source}" in message and "another slot" in message
    pipeline.sql("UPDATE things SET i = 5 WHERE id = 0")
    pipeline.verify()


def test_connector_and_worker_show_their_metrics(pipeline: Pipeline) -> None:
    pipeline.sql("INSERT INTO things (id) VALUES (500)")
    pipeline.sql("UPDATE things SET t = 'moved' WHERE id = 500")
    pipeline.sql("DELETE FROM things WHERE id = 500")
    pipeline.verify()
    source, context = pipeline.source, pipeline.context

    def connector(name: str, labels: str = "") -> float:
        return pipeline.metrics(pipeline.connector).get(f'ctxpipe_connector_{name}{{{labels}source="{source}"}}', 0.0)

    for operation in ("snapshot", "create", "update", "delete"):
        eventually_sync(lambda o=operation: connector("events_total", f'operation="{o}",'), timeout_s=30)  # type: ignore[misc]
    seen = pipeline.metrics(pipeline.connector)
    assert seen[f'ctxpipe_connector_snapshot_rows_total{{source="{source}",table="public.things"}}'] >= 35
    assert connector("published_records_total") > 70 and connector("published_bytes_total") > 500_000
    assert {f'ctxpipe_connector_{name}{{source="{source}"}}' for name in ("queue_bytes", "reconnects_total")} <= set(
        seen
    )
    eventually_sync(
        lambda: "ctxpipe_connector_position_lag_bytes" in str(pipeline.metrics(pipeline.connector)), timeout_s=30
    )

    worker = pipeline.metrics(pipeline.worker)
    for name in ("batches_total", "events_total", "round_trips_total", "batch_seconds_count", "batch_records_sum"):
        assert worker[f'ctxpipe_worker_{name}{{context="{context}"}}'] > 0, name
    assert worker[f'ctxpipe_worker_bundles_total{{context="{context}",kind="bundle"}}'] >= 35
    assert worker[f'ctxpipe_worker_dead_letters_total{{context="{context}"}}'] == len(pipeline.letters())
    assert worker[f'ctxpipe_worker_lag_records{{context="{context}"}}'] >= 0
    assert worker[f'ctxpipe_worker_applied_age_seconds{{context="{context}",source="{source}"}}'] < 3600
    assert f'ctxpipe_worker_stale_total{{context="{context}"}}' in worker
