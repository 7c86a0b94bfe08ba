"""Every role on real servers: its probes from start to end, SIGHUP, and an end in its time though Kafka is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.eventually import eventually
from tests.support.running_pipeline import RunningPipeline, free_port

pytestmark = [pytest.mark.servers, pytest.mark.timeout(200)]

DRAIN_S = 8.0
TABLES = """
CREATE TABLE item (id int PRIMARY KEY, name text);
INSERT INTO item SELECT i, 'red item ' || i FROM generate_series(1, 20) i;
"""


class Deployment(RunningPipeline):
    """Items that are embedded, on a Kafka of its own."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str) -> None:
        super().__init__(folder, kafka, redis_url, dsn, TABLES, ("item",))
        self.config["running"] = {"drain_s": DRAIN_S}
        self.write_config()
        embedding = {"engine": "hash", "dimension": 64, "template": "{{ name }}"}
        entity = {"source": self.source, "table": "public.item", "key": ["id"]}
        spec = {
            "context": self.context, "version": 1, "root": "item", "entities": {"item": entity},
            "fields": ["id", "name"], "embedding": embedding, "serving": {"budget_ms": 5_000},
        }  # fmt: skip
        self.write_file("context.yaml", spec)
        self.ports = {name: free_port() for name in ("connect", "worker", "metrics", "serve")}

    def url(self, name: str, path: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}{path}"

    def log(self, name: str) -> str:
        (found,) = [role.log_file for role in self.roles if role.arguments[0] == name]
        return found.read_text()


@pytest.fixture
def deployment(
    tmp_path: Path, make_kafka: Callable[..., Any], redis_url: str, postgres_dsn: str
) -> Iterator[Deployment]:
    server = make_kafka()
    made = Deployment(tmp_path, server.address, redis_url, postgres_dsn)
    made.server = server
    yield made
    made.stop()


async def test_roles_tell_how_they_are_and_end_in_time(deployment: Deployment) -> None:
    ports = {name: str(port) for name, port in deployment.ports.items()}
    worker = deployment.role(
        "worker", deployment.context, "--health-port", ports["worker"], "--metrics-port", ports["metrics"]
    )
    async with httpx.AsyncClient(timeout=20) as client:

        async def told(name: str, path: str) -> tuple[int, str]:
            answer = await client.get(deployment.url(name, f"{path}?verbose"))
            return answer.status_code, answer.text

        async def until(name: str, path: str, status: int, text: str = "") -> str:
            _, seen = await eventually(
                lambda: told(name, path),
                lambda seen: seen[0] == status and text in seen[1],
                timeout_s=90,
                what=f"{name}{path} {status} {text}",
                ignore=(httpx.HTTPError,),
            )
            return seen

        waits = await until("worker", "/startupz", 503, "`ctxpipe connect` makes")
        assert "[-]processes begun failed" in waits
        assert (await told("worker", "/livez"))[0] == 200, "who waits for topics is alive"
        connect = deployment.role("connect", "--all", "--metrics-port", ports["connect"])
        await until("connect", "/readyz", 200, f"[+]source {deployment.source} read once ok")
        await until("worker", "/readyz", 200)
        own = await until("metrics", "/readyz", 200, "[+]partitions ok")
        assert "[+]connected ok" in own and "ctxpipe_worker_batches_total" in (await told("metrics", "/metrics"))[1]
        await deployment.until_serving(1)
        serve = deployment.role("serve", "--port", ports["serve"])
        await until("serve", "/readyz", 200, "[+]indexes ok")

        # Read again: the level of the log is taken over by the parent and its processes, the rest is said.
        deployment.config["running"] = {"drain_s": 9, "log_level": "debug"}
        deployment.write_config()
        for role in (worker, connect, serve):
            os.kill(role.pid, signal.SIGHUP)
        for name, times in (("worker", 2), ("connect", 1), ("serve", 1)):
            await eventually(lambda: deployment.log(name).count("taken over: running.log_level"), lambda n: n >= times)  # noqa: B023
            assert "need a restart: running.drain_s" in deployment.log(name)

        await asyncio.to_thread(deployment.server.kill)
        await until("worker", "/readyz", 200, "Kafka")
        await until("serve", "/readyz", 200)
        for name in ("worker", "connect", "serve", "metrics"):
            assert (await told(name, "/livez"))[0] == 200, "an outage ends nobody"
    began_s = time.monotonic()
    ends = {}
    for role in deployment.roles:
        os.kill(role.pid, signal.SIGTERM)
    for role in deployment.roles:
        await eventually(lambda: not role.running(), timeout_s=90)  # noqa: B023
        ends[role.arguments[0]] = (role.stop(), round(time.monotonic() - began_s, 1))
    print("ended after, in s:", ends)
    assert all(code == 0 for code, _ in ends.values()), ends
    assert max(took_s for _, took_s in ends.values()) < 3 * DRAIN_S, ends
    for name in ("worker", "connect", "serve"):
        assert "Traceback" not in deployment.log(name) and "killing it" not in deployment.log(name)
