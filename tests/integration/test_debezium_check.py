"""`ctxpipe check` on topics that others fill: missing, forgetful, unreadable ones; undeclared columns."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaProducer

from schemas.record import Record
from tests.support.cli import Done, ctxpipe
from tests.support.debezium_fixtures import SCHEMALESS, golden_records
from tests.support.schema_registry import RegistryServer
from tests.support.streams import make_topic, new_name

pytestmark = pytest.mark.servers

TYPES = {"n10": "decimal(10,2)", "tm": "time_us"}


class Place:
    """A folder with one source, called shop, and one context over some of its tables."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, **source: Any) -> None:
        self.folder, self.prefix = folder, new_name("dbz")
        body = {
            "kafka": {"bootstrap_servers": kafka},
            "redis": {"url": redis_url},
            "contexts": ["c.yaml"],
            "sources": {"shop": {"connector": "debezium", "topic_prefix": self.prefix, **source}},
        }
        (folder / "ctxpipe.yaml").write_text(yaml.safe_dump(body))

    def context(self, table: str, *fields: str, key: str = "id", **types: str) -> None:
        entity = {"source": "shop", "table": table, "key": [key], "types": types}
        spec = {"context": new_name("c"), "version": 1, "root": "t", "entities": {"t": entity}}
        (self.folder / "c.yaml").write_text(yaml.safe_dump({**spec, "fields": [key, *fields]}))

    async def check(self) -> tuple[Done, dict[str, dict[str, Any]]]:
        done = await asyncio.to_thread(ctxpipe, "check", "--json", folder=self.folder)
        found = json.loads(done.out.splitlines()[-1])["findings"]
        return done, {one["subject"]: one for one in found}


async def produce(kafka: str, topic: str, records: list[Record], **configs: str) -> None:
    await make_topic(kafka, topic, 2, **configs)
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for record in records:
            await producer.send_and_wait(topic, record.value, key=record.key, headers=list(record.headers))


async def test_a_fit_topic_and_its_undeclared_columns(tmp_path: Path, kafka_bootstrap: str, redis_url: str) -> None:
    place = Place(tmp_path, kafka_bootstrap, redis_url)
    topic = f"{place.prefix}.public.g"
    records = [record for record in golden_records(SCHEMALESS) if record.topic == "dbz.public.g"][:5]
    await produce(kafka_bootstrap, topic, records, **{"cleanup.policy": "compact"})
    place.context("public.g", "n10", "tm", "ts", "by", **TYPES)
    done, found = await place.check()
    assert done.code == 0, done.out
    assert found[f"shop: topic {topic}"]["message"] == "2 partitions; compacted"
    told = {subject for subject, one in found.items() if one["severity"] == "warning"}
    assert told == {"shop: public.g.ts", "shop: public.g.by"}
    assert "ts: timestamp_ms or timestamp_us" in found["shop: public.g.ts"]["mend"]
    assert "by: decimal(precision,scale), or bytes" in found["shop: public.g.by"]["mend"]
    assert any(one["message"].startswith("5 records at the end") for one in found.values())


async def test_what_is_unfit(tmp_path: Path, kafka_bootstrap: str, redis_url: str) -> None:
    place = Place(tmp_path, kafka_bootstrap, redis_url, tables=["public.g", "public.flat", "ks.cells"])
    envelopes = [record for record in golden_records(SCHEMALESS) if record.topic == "dbz.public.g"][:1]
    await produce(kafka_bootstrap, f"{place.prefix}.public.gg", envelopes)
    flat = [Record("", 0, 0, b'{"id":1}', b'{"id":1,"v":"a"}')]
    await produce(kafka_bootstrap, f"{place.prefix}.public.flat", flat)
    source = {"connector": "scylla", "name": "x", "ts_us": 1, "keyspace_name": "ks", "table_name": "cells"}
    cells = {"source": source, "op": "c", "before": None, "after": {"id": 1, "v": {"value": "a"}}}
    written = [Record("", 0, 0, b'{"id":1}', json.dumps(cells).encode())]
    await produce(kafka_bootstrap, f"{place.prefix}.ks.cells", written, **{"cleanup.policy": "compact"})
    place.context("public.flat", "v")
    done, found = await place.check()
    assert done.code == 1
    missing = found[f"shop: topic {place.prefix}.public.g"]
    assert missing["severity"] == "unfit" and f"There is {place.prefix}.public.gg" in missing["mend"]
    unread = found[f"shop: topic {place.prefix}.public.flat"]
    assert unread["severity"] == "unfit" and "format: flattened" in unread["message"]
    compacted = found[f"shop: topic {place.prefix}.ks.cells"]
    assert compacted["severity"] == "unfit" and "is compacted" in compacted["message"]


async def test_declared_types_that_do_not_fit_and_topics_that_forget(
    tmp_path: Path, kafka_bootstrap: str, redis_url: str
) -> None:
    place = Place(tmp_path, kafka_bootstrap, redis_url, format="flattened")
    topic = f"{place.prefix}.public.flat"
    await produce(kafka_bootstrap, topic, [Record("", 0, 0, b'{"id":1}', b'{"id":1,"v":"a lot"}')])
    place.context("public.flat", "v", v="decimal(10,2)")
    done, found = await place.check()
    assert done.code == 1
    assert found[f"shop: topic {topic}"]["severity"] == "warning"
    assert "forgets records after 7 days" in found[f"shop: topic {topic}"]["message"]
    assert any("column v: not a value of type decimal(10,2)" in one["message"] for one in found.values())


async def test_a_schema_registry_that_is_away(tmp_path: Path, kafka_bootstrap: str, redis_url: str) -> None:
    with RegistryServer() as registry:
        address = registry.address
    place = Place(tmp_path, kafka_bootstrap, redis_url, schema_registry=address)
    avro = Record("", 0, 0, b"\x00\x00\x00\x00\x01\x02", b"\x00\x00\x00\x00\x02\x02")
    await produce(kafka_bootstrap, f"{place.prefix}.public.t", [avro])
    place.context("public.t", "v")
    done, found = await place.check()
    assert done.code == 3 and "does not answer" in found["shop: topics"]["message"]
