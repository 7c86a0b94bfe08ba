"""A folder with a configuration of one context on the shared servers, and `ctxpipe` roles that run on it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import yaml

from deploy.local.roles import Role
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from schemas.definition import Definition
from tests.support.eventually import eventually
from tests.support.streams import new_name

SOON_MISSED = {"session.timeout.ms": 4000}
"""Of `kafka` in a configuration: who takes over from a killed process need not wait for long."""


class RunningPipeline:
    """`sql` makes the tables, all in schema public. Stop it at the end."""

    def __init__(self, folder: Path, kafka: str, redis_url: str, dsn: str, sql: str, tables: Sequence[str]) -> None:
        self.folder, self.kafka, self.redis_url, self.dsn = folder, kafka, redis_url, dsn
        self.context, self.source = new_name("item").replace("-", "_"), new_name("shop").replace("-", "_")
        self.roles: list[Role] = []
        self._begun = 0
        database = dsn.rsplit("/", 1)[1].split("?")[0]
        section = {"connector": "postgres", "dsn": dsn, "slot": f"pipeline_{database}", "heartbeat_interval_s": 0.2}
        self.config: dict[str, Any] = {
            "kafka": {"bootstrap_servers": kafka, "partitions": 2, **SOON_MISSED},
            "redis": {"url": redis_url},
            "sources": {self.source: {**section, "tables": [f"public.{name}" for name in tables]}},
            "contexts": ["context.yaml"],
        }
        self.config_path = folder / "ctxpipe.yaml"
        self.write_config()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql)

    def write_config(self) -> None:
        self.config_path.write_text(yaml.safe_dump(self.config))

    def write_file(self, name: str, value: dict[str, Any]) -> None:
        (self.folder / name).write_text(yaml.safe_dump(value, sort_keys=False))

    def role(self, *arguments: str) -> Role:
        self._begun += 1
        log = self.folder / f"{self._begun}-{arguments[0]}.log"
        self.roles.append(Role([*arguments, "--config", str(self.config_path)], log, {"PYTHONPATH": os.getcwd()}))
        return self.roles[-1].start()

    def end(self, role: Role) -> None:
        """In order, before the others."""
        role.stop()
        self.roles.remove(role)

    def stop(self) -> None:
        """All at once: nobody waits for what they leave behind."""
        with ThreadPoolExecutor() as threads:
            for ended in [threads.submit(role.stop) for role in self.roles]:
                ended.result()

    async def run(self, *arguments: str) -> tuple[int, list[str], str]:
        """(exit code, lines, what it said beside) of a command that ends."""
        command = [sys.executable, "-m", "pipeline.cli", *arguments, "--config", str(self.config_path)]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=100, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines(), done.stderr

    async def result(self, *arguments: str) -> dict[str, Any]:
        """What a command said last, as JSON."""
        code, lines, told = await self.run(*arguments, "--json")
        assert lines, f"{code} {told}"
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    async def verified(self) -> tuple[int, int, int]:
        """(version, verified, mismatches)"""
        result = await self.result("verify", self.context)
        return result["version"], result["verified"], result["mismatches"]

    async def stores(self, version: int = 1) -> Stores:
        """To be closed."""
        return await open_stores(RedisSettings(self.redis_url, self.context, version))

    async def state(self) -> tuple[int | None, dict[int, Definition | None]]:
        """(serving version, definitions by version)"""
        stores = await self.stores()
        try:
            serving = stores.serving
            return await serving.current(), {n: await serving.definition(n) for n in await serving.versions()}
        finally:
            await stores.close()

    async def until_serving(self, version: int) -> dict[int, Definition | None]:
        async def look() -> tuple[int | None, dict[int, Definition | None]]:
            for role in self.roles:
                role.ensure_running()
            return await self.state()

        return (await eventually(look, lambda seen: seen[0] == version, timeout_s=120, what=f"version {version}"))[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
