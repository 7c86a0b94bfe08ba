"""The canary on real servers, each role as a person runs it: up, late when something stands still, and up again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from deploy.local.roles import Role
from pipeline.commands._canary_looking import read_canaries
from pipeline.core.config import load
from tests.support.eventually import eventually
from tests.support.kafka_records import read_all
from tests.support.running_pipeline import RunningPipeline, free_port

pytestmark = pytest.mark.servers

TABLE = "ctxpipe_canary"
SQL = "CREATE TABLE items (id int PRIMARY KEY, title text); INSERT INTO items VALUES (1, 'ink')"


@pytest.fixture
async def world(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> AsyncIterator[Any]:
    made = RunningPipeline(tmp_path, kafka_bootstrap, redis_url, postgres_dsn, SQL, ["items", TABLE])
    made.config["canary"] = {
        "url": f"http://127.0.0.1:{free_port()}",
        "every_s": 0.5,
        "late_after_s": 3,
        "sources": {made.source: {"table": f"public.{TABLE}", "embedding": {"engine": "hash"}}},
    }
    made.write_config()
    made.write_file(
        "context.yaml",
        {
            "context": made.context,
            "version": 1,
            "root": "item",
            "entities": {"item": {"source": made.source, "table": "public.items", "key": ["id"]}},
            "fields": ["id", "title"],
        },
    )
    yield made
    for role in made.roles:
        os.killpg(role.pid, signal.SIGCONT)
    made.stop()


@contextmanager
def frozen(*roles: Role) -> Iterator[None]:
    """Stopped as a machine that hangs: no connection ends, nothing answers."""
    for role in roles:
        os.killpg(role.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for role in roles:
            os.killpg(role.pid, signal.SIGCONT)


class Page:
    """What the running role says of its one source."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.base = ""

    def get(self, path: str) -> str:
        self.role.ensure_running()
        if not self.base:
            log = self.role.log_file.read_text()
            self.base = log.partition("metrics at ")[2].partition("/metrics")[0]
        with urllib.request.urlopen(self.base + path, timeout=10) as answer:
            body: bytes = answer.read()
        return body.decode()

    def figures(self) -> dict[str, float]:
        """Name of a metric of the source → its value."""
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith("ctxpipe_canary_")]
        return {line.partition("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if 'le="' not in line}

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.get("/canaries"))["canaries"][0]
        return state

    async def until(self, up: bool, accept: Callable[[str], bool] = lambda reason: True) -> dict[str, Any]:
        """Until it says so, and the gauge as well."""

        async def look() -> dict[str, Any]:
            state = await asyncio.to_thread(self.state)
            return {**state, "gauge": (await asyncio.to_thread(self.figures)).get("ctxpipe_canary_up")}

        def fits(state: dict[str, Any]) -> bool:
            return state["up"] is up and state["gauge"] == float(up) and accept(state["reason"])

        return await eventually(
            look, fits, timeout_s=90, what=f"canary up {up}", ignore=(OSError, ValueError, IndexError)
        )


def execute(world: RunningPipeline, statement: str) -> None:
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        connection.execute(statement)


async def test_what_stands_still_is_told_at_the_lookup(world: RunningPipeline, kafka_bootstrap: str) -> None:
    canary_context = f"canary_{world.source}"
    made = await world.result("canary", "--prepare")
    assert [one["severity"] for one in made["findings"]] == ["ok", "note"]
    assert f"ctxpipe connect {world.source}" in made["findings"][1]["mend"]
    world.role("connect", world.source)
    items, rows = world.role("worker", world.context), world.role("worker", canary_context, "--role", "bundles")
    texts = world.role("worker", canary_context, "--role", "embedding")
    serve = world.role("serve", "--port", world.config["canary"]["url"].rsplit(":", 1)[1])
    canary = world.role("canary", "--metrics-port", "0")
    page = Page(canary)

    well = await page.until(True)
    assert well["reason"] == "" and well["age_s"] < 10
    assert page.get("/readyz") == "ok\n"
    await _every_partition_has_a_row(world, kafka_bootstrap)
    code, _, told = await world.run("verify", canary_context)
    assert code == 0, told
    config = load(world.config_path)
    (seen,) = await eventually(lambda: read_canaries(config), lambda found: found[0].up, what="who only reads sees it")
    assert (seen.source, seen.rows, seen.late, seen.reason) == (world.source, 2, (), "")
    figures = page.figures()
    assert figures["ctxpipe_canary_seen_total"] == figures["ctxpipe_canary_seconds_count"] > 0
    assert figures["ctxpipe_canary_seconds_sum"] > 0 and figures["ctxpipe_canary_written_total"] % 2 == 0

    with frozen(rows):
        late = await page.until(False, lambda reason: "lookups at" in reason)
        assert late["age_s"] > 3 and "partition" in " ".join(late["late"])
        assert not (await read_canaries(load(world.config_path)))[0].up
    await page.until(True)

    with frozen(items, texts):
        wanted = (f"lookups in context {world.context}", "searches at")
        late = await page.until(False, lambda reason: all(words in reason for words in wanted))
        assert f"context {world.context}" in late["late"]
    await page.until(True)

    execute(world, f"ALTER TABLE {TABLE} RENAME TO away")
    await page.until(False, lambda reason: "takes no rows" in reason and "--prepare" in reason)
    execute(world, f"ALTER TABLE away RENAME TO {TABLE}")
    await page.until(True)

    with frozen(serve):
        await page.until(False, lambda reason: "gave no answer within" in reason)
        assert page.get("/livez") == "ok\n" and "[~]canary of" in page.get("/readyz?verbose")
        world.end(canary)
    log = canary.log_file.read_text()
    told, back = log.count(" is late:"), log.count(" is back after ")
    assert told == back + 1 >= 4 and "Traceback" not in log, log
    assert canary.stop() == 0


async def _every_partition_has_a_row(world: RunningPipeline, bootstrap: str) -> None:
    records = await read_all(bootstrap, [f"{world.source}.public.{TABLE}"])
    written = {record.partition for record in records if record.key.startswith(b'{"slot"')}
    assert written == {0, 1}


async def test_what_has_to_be_mended_first_is_said(world: RunningPipeline) -> None:
    execute(world, f"CREATE TABLE {TABLE} (id int PRIMARY KEY)")
    code, lines, _ = await world.run("canary", "--prepare")
    assert code == 1 and "has other columns than it must have (id; key id)" in " ".join(lines)
    execute(world, f"DROP TABLE {TABLE}")
    code, lines, _ = await world.run("canary", "--prepare")
    assert code == 0 and "was made in" in lines[0]
    code, lines, _ = await world.run("canary", "--prepare")
    assert code == 0 and f"public.{TABLE} is there" in lines[0]
    world.config["canary"]["sources"][world.source]["login"] = {"dsn": "postgresql://127.0.0.1:1/nowhere"}
    world.write_config()
    code, lines, _ = await world.run("canary", "--prepare")
    assert code == 3 and "can't be reached" in lines[0]
    del world.config["canary"]
    world.write_config()
    code, _, told = await world.run("canary")
    assert code == 2 and "has no section canary; write canary: {url:" in told
