"""`ctxpipe collector` while it runs: its probes, and what it takes over when its configuration is read again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.local.roles import Role
from tests.support.cli import ROOT
from tests.support.eventually import eventually
from tests.support.running_pipeline import free_port

pytestmark = pytest.mark.servers


async def test_a_collector_takes_another_interval_over(tmp_path: Path, kafka_bootstrap: str, redis_url: str) -> None:
    port, path = free_port(), tmp_path / "ctxpipe.yaml"

    def write(**collector: Any) -> None:
        sections = {"kafka": {"bootstrap_servers": kafka_bootstrap}, "redis": {"url": redis_url}}
        path.write_text(yaml.safe_dump({**sections, "collector": {"port": port, **collector}}))

    write(interval_s=300)
    role = Role(["collector", "--config", str(path)], tmp_path / "log", {"PYTHONPATH": str(ROOT)}).start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:

            async def interval() -> float:
                return (await client.get("/lag")).json()["collector"]["interval_s"]

            await eventually(
                lambda: client.get("/readyz"),
                lambda seen: seen.status_code == 200,
                timeout_s=60,
                ignore=(httpx.HTTPError,),
            )
            assert await interval() == 300 and (await client.get("/livez")).status_code == 200
            write(interval_s=200, samples=20)
            os.kill(role.pid, signal.SIGHUP)
            await eventually(lambda: "taken over: collector.interval_s" in role.log_file.read_text())
            assert "need a restart: collector.samples" in role.log_file.read_text()
    finally:
        assert role.stop() == 0
