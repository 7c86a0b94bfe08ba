"""`ctxpipe dlq` as a person uses it, beside a running worker: choose, look, redrive, discard."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aiokafka import AIOKafkaProducer

from connectors.set_aside import SetAside
from deploy.local.roles import Role
from pipeline.cli import run
from schemas.topics import dead_letter_topic
from tests.integration.test_dlq_box import drop
from tests.support.cli import Done, ctxpipe
from tests.support.eventually import eventually
from tests.support.streams import make_topic, new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]

SPEC = """
context: {context}
version: 1
root: order
entities:
  order: {{source: {source}, table: public.orders, key: [id]}}
  item: {{source: {source}, table: public.items, key: [id]}}
fields: [id, amount, note]
sections:
  items: {{entity: item, kind: many, on: {{order: id}}, order_by: [id], limit: 5, fields: [id, pieces], compose: copy}}
"""
UNSENT = "__debezium_unavailable_value"


class Shop:
    """A context of orders and items on topics of this test's own, and its worker."""

    def __init__(self, folder: Path, kafka: str, redis: str) -> None:
        self.folder, self.kafka = folder, kafka
        self.context, self.source = new_name("orders"), new_name("shop")
        source = {
            "connector": "postgres",
            "dsn": "postgresql://nobody@127.0.0.1:1/none",
            "tables": ["public.orders", "public.items"],
        }
        config = {
            "kafka": {"bootstrap_servers": kafka, "partitions": 2},
            "redis": {"url": redis, "prefix": self.context},
            "sources": {self.source: source},
            "contexts": ["*.context.yaml"],
        }
        (folder / "ctxpipe.yaml").write_text(yaml.safe_dump(config))
        (folder / "a.context.yaml").write_text(SPEC.format(context=self.context, source=self.source))
        environment = {"PYTHONPATH": os.getcwd(), "CTXPIPE_CONFIG": str(folder / "ctxpipe.yaml")}
        self.worker = Role(["worker"], folder / "worker.log", environment)

    def topic(self, table: str) -> str:
        return f"{self.source}.public.{table}"

    def record(self, table: str, lsn: int, row: dict[str, Any], operation: str = "c") -> tuple[str, bytes, bytes]:
        source = {"connector": "postgresql", "version": "ctxpipe-0.1.0", "name": self.source, "schema": "public"}
        source |= {"table": table, "db": "d", "ts_us": 1000, "lsn": lsn, "sequence": f'["{lsn}","{lsn}"]'}
        value = {"before": None, "after": row, "source": source, "op": operation, "ts_ms": 1}
        return self.topic(table), json.dumps({"id": row["id"]}).encode(), json.dumps(value).encode()

    def order(self, number: int, lsn: int, amount: str, note: str = "n") -> tuple[str, bytes, bytes]:
        return self.record("orders", lsn, {"id": number, "amount": amount, "note": note})

    async def produce(self, *records: tuple[str, bytes, bytes]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.kafka) as producer:
            for topic, key, value in records:
                await producer.send_and_wait(topic, value, key=key)

    async def dlq(self, *words: str, code: int = 0) -> Done:
        """In this process, which spares a start each time."""
        done = await asyncio.to_thread(run_inside, "dlq", "--config", str(self.folder / "ctxpipe.yaml"), *words)
        assert done.code == code, (words, done)
        return done

    async def list(self, *words: str) -> Sequence[dict[str, Any]]:
        return (await self.dlq(self.context, "list", "--json", *words)).lines()

    async def bundles(self, *keys: str) -> list[Any]:
        done = await asyncio.to_thread(ctxpipe, "get", self.context, *keys, "--json", folder=self.folder)
        return [line["bundle"] for line in done.lines()]

    async def amounts(self, *keys: str) -> list[str | None]:
        return [(bundle or {}).get("amount") for bundle in await self.bundles(*keys)]


def run_inside(*words: str) -> Done:
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        code = run(words)
    return Done(code, out.getvalue(), told.getvalue())


@pytest.fixture
async def shop(tmp_path: Path, kafka_bootstrap: str, redis_url: str) -> AsyncIterator[Shop]:
    running = Shop(tmp_path, kafka_bootstrap, redis_url)
    for table in ("orders", "items"):
        await make_topic(kafka_bootstrap, running.topic(table), 2, **{"cleanup.policy": "compact"})
    running.worker.start()
    yield running
    assert running.worker.stop() == 0, running.worker.tail()
    assert "Traceback" not in running.worker.log_file.read_text()


async def test_from_a_letter_to_a_decision(shop: Shop) -> None:
    partial = [shop.order(number, 100 + number, "new", UNSENT) for number in range(1, 6)]
    junk = (shop.topic("orders"), b'{"id":9}', b"not json")
    strange = shop.record("items", 50, {"id": 70, "order": 3, "pieces": 7}, "x")
    await shop.produce(*partial, junk, strange)
    letters = await eventually(shop.list, lambda found: len(found) == 7, timeout_s=90)
    by_key = {one["bundle_keys"][0]: one for one in letters if one["topic"] == shop.topic("orders")}
    assert sorted(by_key) == ["1", "2", "3", "4", "5", "9"] and {one["state"] for one in letters} == {"waiting"}
    (item,) = [one for one in letters if one["topic"] == shop.topic("items")]
    assert item["bundle_keys"] == ["3"], "by the column that joins it, though the row is nowhere"
    await narrowed(shop, by_key, item)
    await looked_at(shop, by_key, item)
    await redriven(shop, by_key)
    await discarded(shop, by_key, item)


async def narrowed(shop: Shop, by_key: dict[str, Any], item: dict[str, Any]) -> None:
    async def numbers(*words: str) -> list[int]:
        return [one["number"] for one in await shop.list(*words)]

    ours = sorted(one["number"] for one in by_key.values())
    assert await numbers("--table", "public.items") == [item["number"]]
    assert await numbers("--bundle", "9") == [by_key["9"]["number"]]
    assert await numbers("--reason", "NOT JSON", "--since", "1h") == [by_key["9"]["number"]]
    assert await numbers("--until", "2020-01-01") == []
    page = await numbers("--table", "orders", "--limit", "2")
    assert (
        page == ours[-2:] and await numbers("--table", "orders", "--limit", "4", "--before", str(page[0])) == ours[:-2]
    )
    groups = (await shop.dlq("list", "--by-reason", "--json")).lines()
    assert sorted(group["letters"] for group in groups) == [1, 1, 5] and groups[0]["bundles"] == 5
    plain = (await shop.dlq("list", "--limit", "3")).out
    assert f"{shop.context}/" in plain and "older ones" in plain, "without a name, all contexts and sources"
    for words, told in (
        (("list", "--since", "soon"), "is no time"), ((shop.context, "redrive"), "say which letters"),
        ((shop.context, "discard", "--all", "--because", "x"), "say --yes"), ((shop.context, "show", "x"), "names no"),
        ((shop.context, "show", "999"), "no dead letter has the number 999"),
        ((shop.context, "discard", "--all", "--yes"), "--because"), (("nobody", "list"), shop.context),
    ):  # fmt: skip
        assert told in (await shop.dlq(*words, code=2)).err


async def looked_at(shop: Shop, by_key: dict[str, Any], item: dict[str, Any]) -> None:
    shown = (await shop.dlq(shop.context, "show", str(item["number"]), "--json")).lines()[0]
    wrong = {"context": shop.context, "table": "public.items", "row": "70", "stored_row": "missing"}
    assert shown["affected"] == [{**wrong, "bundle_keys": ["3"], "more": False}] and shown["history"] == []
    done = await asyncio.to_thread(ctxpipe, "dlq", "show", str(by_key["9"]["number"]), folder=shop.folder)
    plain = done.out
    assert "not json" in plain and f"wrong now: {shop.context}: 9 (the row is not there yet)" in plain


async def redriven(shop: Shop, by_key: dict[str, Any]) -> None:
    """Of five rows, the older state comes, of one of them also a newer one; while they are redriven, another newer one
    of a second row comes as well."""
    await shop.produce(*[shop.order(number, number, "old") for number in range(1, 6)], shop.order(2, 900, "newest"))
    await eventually(lambda: shop.amounts("1", "2", "5"), lambda a: a == ["old", "newest", "old"], timeout_s=60)
    again, _ = await asyncio.gather(
        shop.dlq(shop.context, "redrive", "--all", "--json", code=1), shop.produce(shop.order(4, 901, "newest"))
    )
    (told,) = again.lines()
    assert told["applied"] + told["overtaken"] == 5 and told["overtaken"] in (1, 2) and not told["refused"]
    assert sorted(one["attempts"] for one in told["failed"]) == [1, 1]
    wanted = ["new", "newest", "new", "newest", "new"]
    await eventually(lambda: shop.amounts("1", "2", "3", "4", "5"), lambda found: found == wanted, timeout_s=60)
    left = await shop.list()
    assert len(left) == 2 and {one["state"] for one in left} == {"failed"}
    everything = {one["number"]: one for one in await shop.list("--all-states")}
    assert len(everything) == 7 and everything[by_key["2"]["number"]]["state"] == "overtaken"
    assert everything[by_key["1"]["number"]]["decision"]["by"].count("@") == 1
    second = (await shop.dlq(shop.context, "redrive", str(by_key["9"]["number"]), "--json", code=1)).lines()[0]
    assert second["failed"][0]["attempts"] == 2 and len(await shop.list()) == 2, "nothing is set aside once more"
    plain = (await shop.dlq(shop.context, "list")).out
    assert "failed 2x" in plain and "failed 1x" in plain


async def discarded(shop: Shop, by_key: dict[str, Any], item: dict[str, Any]) -> None:
    """With a row that a connector set aside, and one that went away before anybody looked."""
    aside = SetAside(reason="too large", topic=shop.topic("orders"), key='{"id":8}', table="public.orders", size=99)
    await make_topic(shop.kafka, dead_letter_topic(shop.source), **{"retention.ms": "10800000"})
    await shop.produce(*[(dead_letter_topic(shop.source), b'{"id":8}', msgspec.json.encode(aside))] * 3)
    await drop(shop.kafka, shop.source, 1)
    listed = await shop.dlq(shop.context, "list", "--json")
    (row,) = [one for one in listed.lines() if one["of"] == shop.source]
    assert (row["id"], row["bundle_keys"], row["table"]) == (f"{shop.source}/2", ["8"], "public.orders")
    assert f"1 of the dead letters of {shop.source} went away" in listed.err and "expires in 3 h" in listed.err
    refused = await shop.dlq(shop.source, "redrive", "2", code=1)
    assert f"ctxpipe connect {shop.source} --snapshot public.orders" in refused.err
    noted = await shop.dlq(shop.context, "redrive", "--table", "public.orders", code=1)
    assert "1 rows that the connector" in noted.err
    done = await shop.dlq(
        shop.context, "discard", "--table", "orders", "--because", "made by hand", "--yes", "--by", "ann"
    )
    assert "2 discarded; 2 bundles no longer count as wrong" in done.out
    assert [one["number"] for one in await shop.list()] == [item["number"]]
    shown = (await shop.dlq(shop.context, "show", str(by_key["9"]["number"]), "--json")).lines()[0]
    assert [one["outcome"] for one in shown["history"]] == ["failed", "failed", "failed", "discarded"]
    assert shown["state"] == "discarded" and (shown["decision"]["by"], shown["decision"]["why"]) == (
        "ann",
        "made by hand",
    )
    assert (
        await shop.dlq(shop.context, "discard", "--reason", "operation", "--because", "x", "--yes", "--json")
    ).lines() == [{"discarded": 1, "bundles": 1}]
    assert (await shop.dlq(shop.context, "list")).out.startswith("No dead letters.\nnote: 1 of the dead letters")
