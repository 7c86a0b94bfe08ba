"""The examples as somebody runs them, on real servers: the demo's tables and its flight context, as its files say."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.demo.data import AIRLINES, AIRPORTS, FLIGHTS, PLANES, TABLES, WEATHER, read_rows
from deploy.demo.harness import CONTEXTS
from pipeline.client import AsyncClient
from schemas.context_file import read_context
from tests.integration.test_client_search import Fleet, fleet, world  # noqa: F401
from tests.support.cli import ROOT
from tests.support.eventually import eventually
from tests.support.running_pipeline import RunningPipeline, free_port

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

LIMITS = {FLIGHTS: 300, WEATHER: 200, PLANES: None, AIRPORTS: None, AIRLINES: None}
SCHEDULED = "UPDATE flights SET dep_time = NULL, dep_delay = NULL, arr_time = NULL WHERE flight_id IN (1, 2)"


class Airport(RunningPipeline):
    """The first flights of 2013, of which two have not left yet; the context keeps its history."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        definitions = ";".join(table.definition for table in TABLES)
        super().__init__(folder, kafka, redis_url, dsn, definitions, [table.name for table in TABLES])
        with psycopg.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
            for table in TABLES:
                with cursor.copy(f"COPY {table.name} FROM STDIN") as copy:
                    for row in read_rows(table, LIMITS[table]):
                        copy.write_row(row)
            cursor.execute(SCHEDULED)
        spec = read_context(CONTEXTS / "flight.yaml").spec.model_dump(mode="json", exclude_defaults=True)
        for entity in spec["entities"].values():
            entity["source"] = self.source
        spec |= {"context": self.context, "history": {"retention_s": 600}}
        spec["serving"]["budget_ms"] = 5_000
        self.write_file("context.yaml", spec)
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.role("connect", self.source)
        self.role("worker")
        await self.until_serving(1)
        self.role("serve", "--port", str(self.port))
        async with AsyncClient(self.url) as client:
            await eventually(
                lambda: client.get(self.context, "1"), lambda seen: seen.fresh, timeout_s=60, ignore=(Exception,)
            )


@pytest.fixture
async def airport(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> AsyncIterator[Airport]:
    made = Airport(tmp_path, kafka_bootstrap, redis_url, postgres_dsn)
    try:
        await made.start()
        yield made
    finally:
        await asyncio.to_thread(made.stop)


async def typed(*words: str) -> tuple[int, list[str], str]:
    command = [sys.executable, "-m", *words]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr


async def orchestrated(airport: Airport, *words: str) -> list[dict[str, Any]]:
    given = ("--dsn", airport.dsn, "--context", airport.context, "--source", airport.source, "--budget-ms", "5000")
    code, lines, told = await typed("deploy.demo.examples.orchestrator", *given, *words)
    assert code == 0, told
    return [json.loads(line) for line in lines]


async def test_the_orchestrator(airport: Airport) -> None:
    # Flights 1 and 2 are made late by their carriers' record, flight 3 has left, the last does not exist.
    with psycopg.connect(airport.dsn, autocommit=True) as connection:
        connection.execute("UPDATE flights SET dep_delay = 90 WHERE flight_id BETWEEN 10 AND 300")
    first, second, left, none, again = await orchestrated(airport, "--url", airport.url, "1", "2", "3", "999999", "1")
    for line in (first, second):
        assert line["decision"] == "estimate_delay" and line["confirmed"] is True, line
        assert line["after"]["status"] == "fresh" and line["status"] == "fresh" and line["tokens"] > 0
        assert "no language model" in line["model"]
    assert left["decision"] == "no_action" and left["reason"] == "it has left"
    assert none["decision"] == "ask_staff" and none["status"] in ("missing", "fallback")
    assert again["status"] == "fresh" and again["decision"] in ("no_action", "estimate_delay")
    with psycopg.connect(airport.dsn) as connection:
        row = connection.execute("SELECT dep_delay FROM flights WHERE flight_id = 2").fetchone()
    assert row == (second["minutes"],)
    # The log leads back to what the model saw before it acted.
    async with AsyncClient(airport.url) as client:
        past = await client.by_id(airport.context, first["id"])
        assert past is not None and past.hash == first["hash"] and past.data["dep_delay"] is None
        assert (await client.get(airport.context, "1")).data["dep_delay"] is not None
    (direct,) = await orchestrated(airport, "--redis", airport.redis_url, "3")
    assert (direct["decision"], direct["status"]) == ("no_action", "fresh")
    code, _, told = await typed("deploy.demo.examples.orchestrator", "--dsn", airport.dsn, "1")
    assert code == 2 and "give one of --url and --redis" in told


@pytest.mark.parametrize("example", ["langchain_planes", "llamaindex_planes"])
async def test_documents_of_frameworks(fleet: Fleet, example: str) -> None:  # noqa: F811
    code, lines, told = await typed(f"deploy.demo.examples.{example}", fleet.url, "wide body jet", fleet.name)
    assert code == 0 and len(lines) == 3, told
    assert " N1 [fresh] " in lines[0] and "wide body jet" in lines[0]
