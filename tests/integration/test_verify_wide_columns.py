"""verify over Postgres and a real Cassandra in one context: both sides agree, every planted difference is found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import psycopg
import pytest

from connectors.cql.session import CqlSession
from deploy.local.cassandra import CassandraServer
from deploy.local.processes import HOST
from pipeline.commands.verify import verify_context
from pipeline.core.clock import SystemClock
from pipeline.core.config import Config
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.flow import Flow
from pipeline.merging import Merging
from pipeline.ops.verify import Settings, Verification
from pipeline.plan import compile_plan
from pipeline.stores.redis_store import Stores, context_settings, open_stores
from pipeline.stores.store import AppliedPosition
from schemas.context import ContextSpec
from schemas.mutation import MutationSource
from schemas.record import Record
from tests.support.cassandra import PATIENT, cql_session, fresh_keyspace, start_cassandra
from tests.support.eventually import eventually
from tests.support.servers import LocalRoot
from tests.support.wide_columns import WideTable, postgres_record

pytestmark = pytest.mark.servers

KEYSPACE = "CREATE TABLE {0}.weather (origin text, hour timestamp, temp double, wind int, tags set<text>, \
gauges map<int, int>, history list<int>, PRIMARY KEY (origin, hour)) WITH CLUSTERING ORDER BY (hour DESC); \
CREATE TABLE {0}.readings (station text, day date, at timestamp, airport text, sensor int, amount decimal, \
PRIMARY KEY ((station, day), at)) WITH CLUSTERING ORDER BY (at DESC); \
CREATE INDEX readings_sensor ON {0}.readings (sensor)"
TABLES = """
CREATE TABLE airports (code text PRIMARY KEY, name text);
CREATE TABLE flights (id int PRIMARY KEY, origin text, hour timestamptz);
"""
FLIGHT_SECTIONS: dict[str, Any] = {
    "weather": {
        "entity": "weather",
        "on": {"origin": "origin", "hour": "hour"},
        "fields": ["temp", "tags", "gauges", "history"],
        "compose": "copy",
    },
    "recent": {
        "entity": "weather",
        "kind": "many",
        "on": {"origin": "origin"},
        "fields": ["hour", "temp"],
        "order_by": ["-hour"],
        "limit": 2,
        "compose": "link",
    },
    "climate": {
        "entity": "weather",
        "kind": "many",
        "on": {"origin": "origin"},
        "aggregates": {
            "hours": "count",
            "mean": {"avg": "temp"},
            "windiest": {"max": "wind"},
            "last": {"latest": "temp", "by": "hour"},
        },
    },
    "strongest": {
        "entity": "reading",
        "kind": "many",
        "on": {"airport": "origin"},
        "fields": ["at", "amount"],
        "order_by": ["-amount"],
        "limit": 3,
    },
    "sensors": {
        "entity": "reading",
        "kind": "many",
        "on": {"airport": "origin"},
        "filter": "sensor > 0",
        "group_by": ["sensor"],
        "aggregates": {"readings": "count", "total": {"sum": "amount"}},
    },
}
READING_SECTIONS: dict[str, Any] = {
    "airport": {
        "entity": "airport",
        "on": {"code": "airport"},
        "fields": ["name"],
        "sections": {
            "flights": {
                "entity": "flight",
                "kind": "many",
                "on": {"origin": "code"},
                "fields": ["id"],
                "order_by": ["-id"],
            }
        },
    },
    "siblings": {
        "entity": "reading",
        "kind": "many",
        "on": {"station": "station", "day": "day"},
        "fields": ["at", "amount"],
        "order_by": ["-at"],
        "limit": 2,
    },
    "alike": {"entity": "reading", "kind": "many", "on": {"sensor": "sensor"}, "aggregates": {"readings": "count"}},
}
T = 1_700_000_000_000_000
HOURS = [f"2026-01-02T{hour:02}:00:00Z" for hour in range(4)]


def make_spec(keyspace: str, context: str, root: str, fields: list[str], sections: dict[str, Any]) -> ContextSpec:
    reading_key = {"key": ["station", "day", "at"], "partition_key": ["station", "day"], "types": {"amount": "decimal"}}
    entities = {
        "flight": {"source": "nyc", "table": "public.flights", "key": ["id"]},
        "airport": {"source": "nyc", "table": "public.airports", "key": ["code"]},
        "weather": {"source": "ring", "table": f"{keyspace}.weather", "key": ["origin", "hour"]},
        "reading": {"source": "ring", "table": f"{keyspace}.readings", **reading_key},
    }
    return ContextSpec.model_validate(
        {"context": context, "version": 1, "root": root, "entities": entities, "fields": fields, "sections": sections}
    )


class World:
    """Both databases, Redis, and the flows that bring what is written from the ones to the other."""

    def __init__(self, config: Config, keyspace: str, session: CqlSession, dsn: str) -> None:
        self.config, self.session, self.dsn = config, session, dsn
        origin = MutationSource(config.sources["ring"]["connector"], "ring", keyspace, "weather")
        multi: Any = {"tags": "set", "gauges": "map", "history": "list"}
        self.weather = WideTable(session, origin, ("origin", "hour"), 1, multi)
        readings = MutationSource(origin.connector, "ring", keyspace, "readings")
        self.readings = WideTable(session, readings, ("station", "day", "at"), 2)
        self.flight = make_spec(keyspace, "flight", "flight", ["id", "origin"], FLIGHT_SECTIONS)
        self.reading = make_spec(keyspace, "reading", "reading", ["station", "at", "amount"], READING_SECTIONS)
        self.opened: list[tuple[Stores, Flow, frozenset[str]]] = []
        self.behind_us = 0

    async def open(self, spec: ContextSpec) -> None:
        stores = await open_stores(context_settings(self.config, spec))
        plan = compile_plan(spec)
        merging = Merging(plan, stores.cells, lambda: SystemClock().now_us() - self.behind_us)
        flow = Flow(plan, stores.rows, stores.relations, stores.bundles, in_order=stores.in_order, merging=merging)
        self.opened.append((stores, flow, frozenset(plan.topics)))

    async def process(self, records: Sequence[Record]) -> None:
        for stores, flow, topics in self.opened:
            report = await flow.process([record for record in records if record.topic in topics])
            assert not report.dead_letters, report.dead_letters[0].reason
            await stores.marks.write_applied(report.applied)

    async def apply_postgres(self) -> None:
        """All that Postgres has committed, up to a year from now."""
        time_us = SystemClock().now_us() + 365 * 86_400 * 1_000_000
        topics = ["nyc.public.flights", "nyc.public.airports"]
        positions = {(topic, 0): AppliedPosition("nyc", 1, "", time_us) for topic in topics}
        for stores, _, _ in self.opened:
            await stores.marks.write_applied(positions)

    async def expire(self) -> None:
        """As a worker does beside its batches."""
        while True:
            for _, flow, _ in self.opened:
                await flow.expire(100)
            await asyncio.sleep(0.2)

    async def verify(self, spec: ContextSpec, **settings: Any) -> Verification:
        return await verify_context(self.config, spec, Settings(**{"wait_s": 0, **settings}))

    def sql(self, text: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(cast(Any, text))

    def flight_row(self, number: int, origin: str | None, hour: str | None) -> Record:
        row = {"id": number, "origin": origin, "hour": hour}
        shown = ", ".join("NULL" if value is None else repr(value) for value in row.values())
        self.sql(f"INSERT INTO flights VALUES ({shown})")
        return postgres_record("nyc", "public.flights", {"id": number}, row)

    async def fill(self) -> list[Record]:
        records = [self.flight_row(1, "EWR", HOURS[0]), self.flight_row(2, "JFK", HOURS[1])]
        records += [self.flight_row(3, "LGA", HOURS[3]), self.flight_row(4, None, None)]
        for code, name in {"EWR": "Newark", "JFK": "Kennedy"}.items():
            self.sql(f"INSERT INTO airports VALUES ('{code}', '{name}')")
            row = {"code": code, "name": name}
            records.append(postgres_record("nyc", "public.airports", {"code": code}, row))
        weather, readings = self.weather, self.readings
        for place, hour in enumerate(HOURS):
            row = {"origin": "EWR", "hour": hour, "temp": 10.5 - place, "wind": 5 + place % 3}
            records.append(await weather.insert({**row, "tags": ["wet", "dry"]}, T + place))
            records.append(await weather.insert({**row, "origin": "JFK", "temp": float(place)}, T))
        mixed = {"origin": "EWR", "hour": HOURS[0], "gauges": {"10": 1, "2": 2}, "history": [3, 1, 2]}
        records.append(await weather.insert(mixed, T + 20))
        records.append(await weather.insert({"origin": "EWR", "hour": HOURS[0], "temp": 99.5}, T - 5))
        records.append(await weather.remove_value({"origin": "EWR", "hour": HOURS[1]}, "wind", T + 30))
        records.append(await weather.delete_from({"origin": "JFK"}, "hour", HOURS[2], T + 1))
        records.append(await weather.insert({"origin": "LGA", "hour": HOURS[3], "temp": 1.0}, T))
        records.append(await weather.delete({"origin": "LGA"}, T + 1))
        amounts = ["10.50", "9", "-3.25", "10.5", "0.001"]
        for place, amount in enumerate(amounts):
            key = {"station": "n" if place % 2 else "s", "day": f"2026-01-0{2 + place // 4}", "at": HOURS[place % 4]}
            airport = ["EWR", "JFK", "EWR", "EWR", "ORD"][place]
            row = {**key, "airport": airport, "sensor": place % 3, "amount": amount}
            records.append(await readings.insert(row, T + place))
        return records

    async def stored(self, key: str) -> bytes:
        """Of a flight, without its linked sections."""
        (found,) = await self.opened[0][0].reader.fetch([key])
        assert found.bundle is not None
        return found.bundle.body


@asynccontextmanager
async def open_world(
    server: CassandraServer, redis_url: str, dsn: str, connector: str = "cassandra", applied: bool = True, **login: str
) -> AsyncIterator[World]:
    """Filled on both sides; `applied` False: all is empty, and a worker does the rest."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(cql_session(server, **login))
        keyspace = await stack.enter_async_context(fresh_keyspace(session))
        for statement in KEYSPACE.format(keyspace).split(";"):
            await session.execute(statement)
        ring = {"connector": connector, "hosts": [HOST], "port": server.port, "keyspace": keyspace}
        ring |= {"tables": ["weather", "readings"], **PATIENT, **login}
        ring |= {"data_directory": "nowhere"} if connector == "cassandra" else {"confidence_window_s": 1}
        nyc = {"connector": "postgres", "dsn": dsn, "tables": ["public.flights", "public.airports"]}
        document = {
            "kafka": {"bootstrap_servers": f"{HOST}:1"},
            "redis": {"url": redis_url},
            "sources": {"nyc": nyc, "ring": ring},
        }
        world = World(Config.model_validate(document), keyspace, session, dsn)
        world.sql(TABLES)
        if applied:
            for spec in (world.flight, world.reading):
                await world.open(spec)
                stack.push_async_callback(world.opened[-1][0].close)
            await world.process(await world.fill())
            await world.apply_postgres()
        yield world


@pytest.fixture
async def world(cassandra_server: CassandraServer, redis_url: str, postgres_dsn: str) -> AsyncIterator[World]:
    async with open_world(cassandra_server, redis_url, postgres_dsn) as made:
        yield made


async def test_bundles_joined_over_both_databases_verify(world: World) -> None:
    assert await world.verify(world.flight) == Verification(verified=4, version=1)
    assert await world.verify(world.reading) == Verification(verified=5, version=1)
    weather = b'{"temp":10.5,"tags":["dry","wet"],"gauges":{"10":1,"2":2},"history":[3,1,2]}'
    assert b'"weather":' + weather in await world.stored("1")
    given = await world.verify(world.reading, keys=("s|2026-01-02|2026-01-02T00:00:00Z", "s|2026-01-02", "x|y|z"))
    assert (given.verified, given.mismatches, given.absent) == (1, 0, 2)
    assert (await world.verify(world.flight, sample=2)).verified == 2


async def test_every_planted_difference_is_found_and_a_late_write_is_not_one(world: World) -> None:
    """Some writes never come; another one comes while verify is patient."""
    weather, readings = world.weather, world.readings
    await weather.insert({"origin": "EWR", "hour": HOURS[0], "temp": -1.0}, T + 50)
    await weather.remove_value({"origin": "EWR", "hour": HOURS[0]}, "tags", T + 51)
    await weather.delete({"origin": "JFK", "hour": HOURS[1]}, T + 50)
    await readings.insert({"station": "x", "day": "2026-01-02", "at": HOURS[0], "airport": "LGA", "amount": "1"}, T)
    world.sql("DELETE FROM flights WHERE id = 4")
    late = await weather.insert({"origin": "LGA", "hour": HOURS[3], "temp": 7.0}, T + 60)
    looked_again = asyncio.Event()

    async def arrive() -> None:
        await looked_again.wait()
        await world.process([late])

    def progress(what: str, count: int) -> None:
        if what == "reading differences again":
            looked_again.set()

    arriving = asyncio.create_task(arrive())
    result = await verify_context(world.config, world.flight, Settings(wait_s=2), progress)
    await arriving
    paths = {key: {item.path for item in found} for key, found in result.found}
    climate = {"climate.mean", "recent[1].temp"}
    assert paths["1"] >= {"weather.temp", "weather.tags", "climate.mean"}
    assert paths["2"] >= {"weather", "climate.hours", *climate} - {"recent[1].temp"}
    assert paths["3"] == {"strongest[0]"} and paths["4"] == {""}
    assert (result.mismatches, result.extra) == (4, 1)
    missing = await world.verify(world.reading)
    assert (missing.verified, missing.missing) == (6, 1) and missing.mismatches == 1


async def test_values_near_the_end_of_their_life_are_no_differences(world: World) -> None:
    """The worker's clock is behind, so that the database forgets first."""
    world.behind_us = 2_500_000
    row = {"origin": "LGA", "hour": HOURS[3], "temp": 3.5}
    await world.process([await world.weather.insert(row, time.time_ns() // 1000, life_s=2)])
    expiring = asyncio.create_task(world.expire())
    try:
        assert b'"weather":{"temp":3.5,' in await world.stored("3")
        while b'"weather":null' not in await world.stored("3"):
            assert await world.verify(world.flight) == Verification(verified=4, version=1)
    finally:
        expiring.cancel()


@pytest.mark.parametrize("connector", ["scylla", "cassandra"])
async def test_a_source_with_heartbeats_is_waited_for(
    connector: str, cassandra_server: CassandraServer, redis_url: str, postgres_dsn: str
) -> None:
    async with open_world(cassandra_server, redis_url, postgres_dsn, connector) as world:
        if connector == "cassandra":
            beating = {"heartbeat_table": "beat", "sidecar": {"cassandra_yaml": str(cassandra_server.config_file)}}
            world.config.sources["ring"] |= beating
        with pytest.raises(EnvironmentProblem, match="changes of source ring had not arrived"):
            await world.verify(world.flight)
        write = await world.weather.insert({"origin": "EWR", "hour": HOURS[0], "temp": -1.0}, time.time_ns() // 1000)
        verifying = asyncio.create_task(world.verify(world.flight, wait_s=30))
        await asyncio.sleep(1)
        await world.process([write])
        for table in (world.weather, world.readings):
            await world.process([table.heartbeat(time.time_ns() // 1000 + 3_600_000_000)])
        assert await verifying == Verification(verified=4, version=1)


async def test_a_missing_table_a_wrong_datacenter_and_a_closed_port_are_said(world: World) -> None:
    ring = world.config.sources["ring"]
    ring["local_datacenter"] = "nowhere"
    with pytest.raises(EnvironmentProblem, match=r"source ring: .*no datacenter 'nowhere'; it has: datacenter1"):
        await world.verify(world.flight)
    ring["local_datacenter"], port, ring["port"] = "", ring["port"], 1
    with pytest.raises(EnvironmentProblem, match=r"source ring: .*can't be reached"):
        await world.verify(world.flight)
    ring["port"] = port
    await world.session.execute(f"DROP TABLE {world.readings.name}")
    with pytest.raises(EnvironmentProblem, match=f"source ring: there is no table {world.readings.name} at "):
        await world.verify(world.flight)


async def test_a_login_without_rights_is_told_so(local_root: LocalRoot, redis_url: str, postgres_dsn: str) -> None:
    settings = {"authenticator": "PasswordAuthenticator", "authorizer": "CassandraAuthorizer"}
    server = start_cassandra(local_root, settings=settings)
    try:
        admin = {"user": "cassandra", "password": "cassandra"}
        ignored = (EnvironmentProblem, Retryable)
        await eventually(lambda: can_log_in(server, admin), what="the superuser", ignore=ignored, timeout_s=90)
        async with open_world(server, redis_url, postgres_dsn, **admin) as world:
            await world.session.execute("CREATE ROLE reader WITH PASSWORD = 'pass' AND LOGIN = true")
            world.config.sources["ring"] |= {"user": "reader", "password": "pass"}
            with pytest.raises(EnvironmentProblem, match=r"source ring: .*no permission: .*readings") as refused:
                await world.verify(world.reading)
            assert refused.value.exit_code == 3
            world.config.sources["ring"] |= {"password": "mistyped"}
            with pytest.raises(EnvironmentProblem, match=r"source ring: .*refuses the login") as refused:
                await world.verify(world.reading)
            assert "mistyped" not in str(refused.value)
    finally:
        server.kill()
        server.remove_data()


async def can_log_in(server: CassandraServer, login: dict[str, str]) -> bool:
    """The first role is made a while after the server answers."""
    async with cql_session(server, **login):
        return True
