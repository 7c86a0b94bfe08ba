"""Avro topics through a real worker: a registry that is away is waited for, unknown schemas set records aside."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaProducer

from deploy.local.roles import Role
from tests.support.cli import ROOT, ctxpipe
from tests.support.eventually import eventually
from tests.support.schema_registry import RegistryServer
from tests.support.streams import make_topic, new_name

pytestmark = pytest.mark.servers

KEY = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "int"}]}
AMOUNT = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}
ROW = {
    "type": "record",
    "name": "Value",
    "fields": [{"name": "id", "type": "int"}, {"name": "amount", "type": ["null", AMOUNT]}],
}


async def test_from_avro_to_bundles(tmp_path: Path, kafka_bootstrap: str, redis_url: str) -> None:
    prefix, context = new_name("avro"), new_name("c")
    topic = f"{prefix}.public.orders"
    entity = {"source": "shop", "table": "public.orders", "key": ["id"]}
    spec = {"context": context, "version": 1, "root": "o", "entities": {"o": entity}, "fields": ["id", "amount"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(spec))
    await make_topic(kafka_bootstrap, topic, 1)
    with RegistryServer(login="reader:secret") as registry:
        source = {"connector": "debezium", "topic_prefix": prefix, "format": "flattened"}
        body = {"sources": {"shop": {**source, "schema_registry": registry.address}}, "contexts": ["c.yaml"]}
        body |= {"kafka": {"bootstrap_servers": kafka_bootstrap}, "redis": {"url": redis_url}}
        (tmp_path / "ctxpipe.yaml").write_text(yaml.safe_dump(body))
        registry.register(1, KEY)
        registry.register(2, ROW)
        registry.refuses = 503
        async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap) as producer:
            for number in range(3):
                value = registry.encode(2, {"id": number, "amount": Decimal(f"{number}.50")})
                await producer.send_and_wait(topic, value, key=registry.encode(1, {"id": number}))
            await producer.send_and_wait(topic, None, key=registry.encode(1, {"id": 1}))
            registry.register(9, ROW)
            value = registry.encode(9, {"id": 2, "amount": Decimal("3.75")})
            unknown = registry.schemas.pop(9)
            await producer.send_and_wait(topic, value, key=registry.encode(1, {"id": 2}))
        log = tmp_path / "worker.log"
        words = ["worker", "--config", str(tmp_path / "ctxpipe.yaml")]
        worker = Role(words, log, {"PYTHONPATH": str(ROOT)}).start()
        try:
            await eventually(lambda: "the schema registry at" in log.read_text(), timeout_s=90, what="it waits")
            registry.refuses = 0

            async def amounts() -> list[Any]:
                done = await asyncio.to_thread(ctxpipe, "get", context, "0", "1", "2", "--json", folder=tmp_path)
                bundles = [json.loads(line)["bundle"] for line in done.out.splitlines()]
                return [bundle and bundle["amount"] for bundle in bundles]

            await eventually(amounts, lambda found: found == ["0.50", None, "2.50"], timeout_s=90)
            letters = await asyncio.to_thread(ctxpipe, "dlq", context, "list", "--json", folder=tmp_path)
            (letter,) = letters.lines()
            assert "has no schema 9" in letter["reason"] and letter["bundle_keys"] == ["2"]
            registry.schemas[9] = unknown
            done = await asyncio.to_thread(ctxpipe, "dlq", context, "redrive", "--all", folder=tmp_path)
            assert (done.code, done.out) == (0, "1 applied\n"), "mended in place, beside the running worker"
            assert await amounts() == ["0.50", None, "3.75"]
            assert "secret" not in log.read_text() and "Traceback" not in log.read_text()
        finally:
            await asyncio.to_thread(worker.stop)
