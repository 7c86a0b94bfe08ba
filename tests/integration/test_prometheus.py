"""A real Prometheus scrapes real roles and evaluates the committed rules: no error, and what is well is not alarmed."""

from __future__ import annotations

import asyncio
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import metrics
from tests.support.eventually import eventually
from tests.support.prometheus import alerts, promtool_program, records
from tests.support.prometheus_server import PrometheusServer
from tests.support.running_pipeline import RunningPipeline, free_port
from tests.support.servers import LocalRoot

pytestmark = pytest.mark.servers

SQL = "CREATE TABLE items (id int PRIMARY KEY, title text); INSERT INTO items VALUES (1, 'ink')"


@pytest.fixture
async def world(tmp_path: Path, kafka_bootstrap: str, redis_url: str, postgres_dsn: str) -> AsyncIterator[Any]:
    made = RunningPipeline(tmp_path, kafka_bootstrap, redis_url, postgres_dsn, SQL, ["items"])
    made.config["collector"] = {"port": free_port(), "interval_s": 0.5, "groups": [f"ctxpipe.{made.context}.*"]}
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
    made.stop()


async def test_prometheus_scrapes_the_roles_and_evaluates_every_rule(
    world: RunningPipeline, local_root: LocalRoot
) -> None:
    ports = {"connect": free_port(), "serve": free_port(), "collector": world.config["collector"]["port"]}
    world.role("connect", world.source, "--metrics-port", str(ports["connect"]))
    world.role("serve", "--port", str(ports["serve"]))
    world.role("collector")
    targets = {role: [f"127.0.0.1:{port}"] for role, port in ports.items()}
    server = PrometheusServer(**local_root.place("prometheus"), targets=targets)
    await asyncio.to_thread(server.start)
    try:
        await _watched(server, world, ports)
    finally:
        server.kill()
        server.remove_data()


async def _watched(server: PrometheusServer, world: RunningPipeline, ports: dict[str, int]) -> None:
    async def look() -> tuple[dict[str, float], list[dict[str, Any]]]:
        up = {one.labels["role"]: one.value for one in await asyncio.to_thread(server.query, "up")}
        return up, await asyncio.to_thread(server.rules)

    def all_well(found: tuple[dict[str, float], list[dict[str, Any]]]) -> bool:
        up, rules = found
        return len(up) == len(ports) and all(up.values()) and all(rule["health"] != "unknown" for rule in rules)

    _, rules = await eventually(look, all_well, timeout_s=60, what="all targets up, all rules evaluated")
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == len(alerts()) + len(records())

    watched = 'ctxpipe_collector_up{part="sources"} and on () ctxpipe_source_slot_active == 1'
    await eventually(lambda: asyncio.to_thread(server.query, watched), bool, timeout_s=60, what="the source is watched")
    objectives = {one.labels["slo"]: one.value for one in server.query("ctxpipe:slo_objective:ratio")}
    assert objectives["availability"] == 0.999 and len(objectives) == 4
    # Nobody runs a worker here, and the rules see it; then one runs, and only the missing canary is alarmed.
    await _until_alarmed(server, lambda found: found.get("CtxpipeGroupEmpty") == "pending")
    world.role("worker", world.context)
    assert await _until_alarmed(server, lambda found: set(found) == {"CtxpipeCanarySilent"})
    scraped = {one.labels["__name__"] for one in server.query('{__name__=~"ctxpipe_.+"}')}
    assert scraped <= {name for definition in metrics.DEFINITIONS for name in _series(definition)}
    for port in ports.values():
        assert await asyncio.to_thread(_lint, port) == []


async def _until_alarmed(server: PrometheusServer, accept: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    """Alert → pending or firing."""
    return await eventually(lambda: asyncio.to_thread(server.alerts), accept, timeout_s=60, what="alerts")


def _series(definition: metrics.Definition) -> list[str]:
    if definition.kind == "histogram":
        return [f"{definition.name}_{end}" for end in ("bucket", "sum", "count", "created")]
    return [definition.name, f"{definition.name.removesuffix('_total')}_created"]


def _lint(port: int) -> list[str]:
    """What promtool finds wrong with the metrics of a page that are ours."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        page = answer.read()
    done = subprocess.run(
        [promtool_program(), "check", "metrics"], input=page, capture_output=True, timeout=30, check=False
    )
    return [line for line in (done.stdout + done.stderr).decode().splitlines() if "ctxpipe_" in line]
