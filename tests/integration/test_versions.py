"""A changed spec is built beside the serving version and takes its place: on a real pipeline, under lookups."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pipeline.commands._composition import propose
from pipeline.core.config import load
from pipeline.core.errors import ConfigError, Fatal
from pipeline.stores.redis_client import RedisClient, RedisSettings
from pipeline.stores.redis_store import RedisServing, open_stores
from pipeline.streams.compose import context_stream
from schemas.bundle import ROOT_UNIT, Meta, Stored, UnitKey
from schemas.context import ContextSpec
from schemas.definition import Definition
from tests.support.eventually import eventually
from tests.support.running_pipeline import RunningPipeline, free_port

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

ORDERS = 400
TABLES = """
CREATE TABLE orders (id int PRIMARY KEY, customer_id int, shop_id int, amount int, note text);
CREATE TABLE customers (id int PRIMARY KEY, name text, tier text);
CREATE TABLE shops (id int PRIMARY KEY, town text);
INSERT INTO orders SELECT i, i % 10, i % 100, i, 'note ' || i FROM generate_series(1, 400) i;
INSERT INTO customers SELECT i, 'customer ' || i, 'tier ' || i % 3 FROM generate_series(0, 9) i;
INSERT INTO shops SELECT i, 'town ' || i FROM generate_series(0, 99) i;
"""
OLD = {"order": {"id", "amount", "customer", "shop"}, "customer": {"name"}}
NEW = {"order": {"id", "amount", "note", "customer", "shop"}, "customer": {"name", "tier"}}
SHAPES = {1: OLD, 2: NEW}


class Pipeline(RunningPipeline):
    """Orders, their customers and shops, in the shape that is asked for."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        super().__init__(folder, kafka, redis_url, dsn, TABLES, ("orders", "customers", "shops"))

    def spec(self, version: int, shape: dict[str, set[str]]) -> ContextSpec:
        tables = {"order": "orders", "customer": "customers", "shop": "shops"}
        spec = {
            "context": self.context,
            "version": version,
            "root": "order",
            "entities": {
                name: {"source": self.source, "table": f"public.{table}", "key": ["id"]}
                for name, table in tables.items()
            },
            "fields": sorted(shape["order"] - {"customer", "shop"}),
            "sections": {
                "customer": {"entity": "customer", "on": {"id": "customer_id"}, "fields": sorted(shape["customer"])},
                "shop": {"entity": "shop", "on": {"id": "shop_id"}, "fields": ["town"]},
            },
            "serving": {"budget_ms": 10_000, "max_age_ms": 60_000},
        }
        return ContextSpec.model_validate(spec)

    def write_spec(self, version: int, shape: dict[str, set[str]]) -> None:
        self.write_file("context.yaml", self.spec(version, shape).model_dump(mode="json", exclude_defaults=True))


@pytest.fixture
def pipeline(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    yield made
    made.stop()


class Lookups:
    """Asks without a pause, one key and many; every answer must be whole and of one version."""

    def __init__(self, context: str, port: int) -> None:
        self.path, self.seen = f"/v1/contexts/{context}", {1: 0, 2: 0}
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)

    async def one(self) -> None:
        latest = 1
        while True:
            for key in range(1, ORDERS, 7):
                response = await self.client.get(f"{self.path}/{key}")
                latest = self._checked([response.json()], response.status_code, latest)

    async def many(self) -> None:
        latest, keys = 1, [str(key) for key in range(1, ORDERS, 5)]
        while True:
            response = await self.client.post(f"{self.path}:batchGet", json={"keys": keys})
            latest = self._checked(response.json()["answers"], response.status_code, latest)

    def _checked(self, answers: list[dict[str, Any]], status: int, latest: int) -> int:
        assert status == 200, answers
        versions = {answer["spec_version"] for answer in answers}
        assert len(versions) == 1, "one query, two versions"
        (version,) = versions
        assert version >= latest, "back to the old version"
        for answer in answers:
            bundle = answer["bundle"]
            assert {"order": set(bundle), "customer": set(bundle["customer"])} == SHAPES[version], answer
            assert bundle["shop"]["town"].startswith("town "), answer
        self.seen[version] += 1
        return version


async def change(dsn: str) -> None:
    """Steady changes of every table until cancelled."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for number in range(1_000_000):
            key = number * 37 % ORDERS + 1
            await connection.execute("UPDATE orders SET amount = amount + 1, note = %s WHERE id = %s", (number, key))
            await connection.execute("UPDATE customers SET tier = %s WHERE id = %s", (f"tier {number}", number % 10))
            await connection.execute("UPDATE shops SET town = %s WHERE id = %s", (f"town {number}", number % 100))
            await asyncio.sleep(0.01)


async def test_a_changed_spec_takes_over_under_lookups(pipeline: Pipeline) -> None:
    pipeline.write_spec(1, OLD)
    pipeline.role("connect", pipeline.source)
    port = free_port()
    pipeline.role("serve", "--port", str(port))
    old_worker = pipeline.role("worker")
    definitions = await pipeline.until_serving(1)
    # 40 orders show one customer, 4 one shop.
    assert definitions[1] is not None and definitions[1].composition == {"customer": "link", "shop": "copy"}
    _, lines, _ = await pipeline.run("check", "--json")
    costs = {cost["section"]: cost for cost in json.loads(lines[-1])["sections"]}
    assert {name: cost["auto"] for name, cost in costs.items()} == definitions[1].composition
    assert {name: cost["copy_writes_per_change_max"] for name, cost in costs.items()} == {"customer": 40, "shop": 4}

    lookups = Lookups(pipeline.context, port)
    async with lookups.client:
        tasks = [asyncio.create_task(work) for work in (lookups.one(), lookups.many(), change(pipeline.dsn))]
        await asked(tasks, lookups, 1)
        pipeline.write_spec(2, NEW)
        assert await pipeline.verified() == (1, ORDERS, 0), "verifies what serves, by the spec that it was built from"
        new_worker = pipeline.role("worker")
        await asked(tasks, lookups, 2)
        old_worker.stop()
        await asked(tasks, lookups, 2)
        for task in tasks:
            task.cancel()
    assert lookups.seen[1] and lookups.seen[2]
    assert await pipeline.verified() == (2, ORDERS, 0)
    code, lines, _ = await pipeline.run("get", pipeline.context, "7", "--json")
    assert code == 0 and json.loads(lines[0])["spec_version"] == 2
    code, lines, _ = await pipeline.run("get", pipeline.context, "7", "--json", "--version", "1")
    assert code == 0 and set(json.loads(lines[0])["bundle"]) == OLD["order"], "the old version's state is still there"
    assert new_worker.running()


async def asked(tasks: list[asyncio.Task[None]], lookups: Lookups, version: int) -> None:
    """Until this version has answered fifty times more; nothing may have gone wrong on the way."""
    wanted = lookups.seen[version] + 50

    def look() -> int:
        for task in tasks:
            if task.done():
                task.result()
        return lookups.seen[version]

    await eventually(look, lambda count: count >= wanted, timeout_s=90, what=f"answers of version {version}")


@pytest.fixture(params=["redis_url", "redis_cluster_url"])
async def serving(request: pytest.FixtureRequest) -> AsyncIterator[RedisServing]:
    cluster = request.param == "redis_cluster_url"
    client = RedisClient(RedisSettings(request.getfixturevalue(request.param), "order", 1, cluster=cluster))
    yield RedisServing(client)
    await client.close()


async def test_the_first_definition_is_kept(pipeline: Pipeline, serving: RedisServing) -> None:
    spec = pipeline.spec(1, OLD)
    assert await serving.known(spec) is None and await serving.versions() == []
    first = {"customer": "link", "shop": "copy"}
    assert await serving.remember(spec, first) == Definition(spec, first)
    assert await serving.remember(spec, {"customer": "copy", "shop": "copy"}) == Definition(spec, first)
    served = spec.model_copy(update={"description": "newer"})
    assert await serving.restore(served, first) == Definition(spec, first)
    assert await serving.remember(served, {}) == Definition(served, first) == await serving.definition(1)
    with pytest.raises(ConfigError, match=r"version 1 is built from \(fields, sections.customer\). Write version: 2"):
        await serving.remember(pipeline.spec(1, NEW), first)
    await serving.remember(pipeline.spec(5, NEW), first)
    with pytest.raises(ConfigError, match="Write version: 6"):
        await serving.known(pipeline.spec(1, NEW))
    assert await serving.versions() == [1, 5]


async def test_no_promotion_leads_back(serving: RedisServing) -> None:
    found = []
    for version in (2, 1, 10, 9):
        await serving.promote(version)
        found.append(await serving.current())
    assert found == [2, 2, 10, 10]


async def test_a_definition_of_another_release_is_fatal(serving: RedisServing) -> None:
    await serving.client.run("SET", "ctxpipe:order:v1:{0}:definition", b'{"format":2}')
    with pytest.raises(Fatal, match="order version 1 belongs to another release"):
        await serving.definition(1)


async def test_a_spec_that_changed_under_its_number_is_refused(pipeline: Pipeline) -> None:
    pipeline.write_spec(1, OLD)
    stores = await open_stores(RedisSettings(pipeline.redis_url, pipeline.context, 1))
    await stores.serving.remember(pipeline.spec(1, OLD), {})
    await stores.serving.promote(1)
    await stores.bundles.put([(UnitKey(ROOT_UNIT, "7"), Stored(1, Meta("h", 1), b'{"id":7}'))])
    await stores.close()
    pipeline.write_spec(1, NEW)
    for command in (("worker",), ("verify", pipeline.context)):
        code, _, told = await pipeline.run(*command)
        assert code == 2, told
        assert told.count("differs from what version 1 is built from (fields, sections.customer)") == 1
        assert "Write version: 2" in told
    code, lines, told = await pipeline.run("get", pipeline.context, "7", "--json")
    assert code == 0 and json.loads(lines[0])["bundle"] == {"id": 7}, "lookups go on, and say so"
    assert "Write version: 2" in told
    code, _, told = await pipeline.run("get", pipeline.context, "7", "--version", "3")
    assert code == 2 and "nothing of version 3; versions with state: 1" in told


async def test_a_worker_process_refuses_a_changed_spec_itself(pipeline: Pipeline) -> None:
    """Redis may be away when `ctxpipe worker` looks, and back when its processes start."""
    stores = await open_stores(RedisSettings(pipeline.redis_url, pipeline.context, 1))
    await stores.serving.remember(pipeline.spec(1, OLD), {})
    await stores.close()
    pipeline.write_spec(1, NEW)
    stream = context_stream(load(pipeline.config_path), pipeline.spec(1, NEW))
    with pytest.raises(ConfigError, match="Write version: 2"):
        await stream.open()
    code, lines, _ = await pipeline.run("check")
    assert code == 1 and any("unfit" in line and "Write version: 2" in line for line in lines), lines
    pipeline.write_spec(1, OLD)
    assert (await pipeline.run("check"))[0] == 0


async def test_what_is_proposed_is_what_workers_agree_on(pipeline: Pipeline) -> None:
    config, spec = load(pipeline.config_path), pipeline.spec(1, OLD)
    proposals = await propose(config, [spec])
    assert proposals == {pipeline.context: {"customer": "link", "shop": "copy"}}
    opened = await context_stream(config, spec, proposal=proposals[pipeline.context]).open()
    await opened.close()
    assert await propose(config, [spec]) == {}, "decided: not measured again"
    late = await context_stream(config, spec, proposal={"customer": "copy", "shop": "link"}).open()
    await late.close()
    assert (await pipeline.state())[1] == {1: Definition(spec, proposals[pipeline.context])}


async def test_a_source_that_is_away_leaves_the_default_rule(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    spec = pipeline.spec(1, OLD)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for listener, reason in ((closed, "can't be reached"), (silent, "did not answer within 0.3 s")):
            dsn = f"postgresql://nobody@127.0.0.1:{listener.getsockname()[1]}/nothing"
            config = load(pipeline.config_path)
            config.sources[pipeline.source]["dsn"] = dsn
            caplog.clear()
            assert await propose(config, [spec], timeout_s=0.3) == {}
            (line,) = caplog.messages
            assert (
                line.startswith(f"{pipeline.context}: sections left to auto follow the default rule") and reason in line
            )
