"""A whole ctxpipe in one directory: servers, the demo's database, configuration, and roles to start and kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.data import TABLES, Table, read_rows
from deploy.local.roles import Role
from deploy.local.stack import Stack
from pipeline.stores.redis_client import RedisSettings

CONTEXTS = Path(__file__).parent / "contexts"
DATABASE = "flights"
PARTITIONS = 8
LOAD_CHUNK_ROWS = 5_000


def _silent(_news: object) -> None:
    """For callers who don't want to hear."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the servers are. `administration` is Postgres' own database, `dsn` the demo's."""

    kafka: str
    administration: str
    redis: str
    cassandra: str = ""
    cassandra_yaml: Path = Path()

    @property
    def dsn(self) -> str:
        return self.administration.rsplit("/", 1)[0] + f"/{DATABASE}"


class Harness:
    """Order of calls: `up`, `create_tables`, `load`, `write_config`, `role(...).start()`; `close` ends all of it."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.stack = Stack(self.root / "servers")
        self.config_path = self.root / "ctxpipe.yaml"
        self.addresses: Addresses | None = None
        self.roles: list[Role] = []

    def up(self, fresh: bool = True, say: Callable[[str], None] = _silent, extra: Sequence[str] = ()) -> Addresses:
        """Starts Kafka, Postgres, Redis and what is `extra`, emptied unless `fresh` is False. Raises
        EnvironmentProblem."""
        servers = {status.name: status for status in self.stack.up(with_=extra, fresh=fresh, say=say)}
        kafka, postgres, redis = (servers[name].address for name in ("kafka", "postgres", "redis"))
        self.addresses = Addresses(kafka, postgres, redis)
        if "cassandra" in servers:
            yaml_path = Path(servers["cassandra"].data_dir) / "cassandra.yaml"
            self.addresses = replace(self.addresses, cassandra=servers["cassandra"].address, cassandra_yaml=yaml_path)
        return self.addresses

    def use_redis(self, url: str) -> None:
        """Another way to Redis than the server's own address, e.g. through a proxy."""
        assert self.addresses is not None, "up() comes first"
        self.addresses = replace(self.addresses, redis=url)

    @property
    def dsn(self) -> str:
        assert self.addresses is not None, "up() comes first"
        return self.addresses.dsn

    async def create_tables(self, tables: Iterable[Table] = TABLES) -> None:
        """A fresh database with empty tables."""
        import asyncpg

        assert self.addresses is not None, "up() comes first"
        connection = await asyncpg.connect(self.addresses.administration)
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()
        connection = await asyncpg.connect(self.dsn)
        try:
            for table in tables:
                await connection.execute(table.definition)
            await connection.execute("CREATE INDEX ON flights (tailnum); CREATE INDEX ON flights (carrier, origin)")
            await connection.execute("CREATE INDEX ON flights (origin, time_hour)")
        finally:
            await connection.close()

    async def load(self, table: Table, limit: int | None = None, progress: Callable[[int], None] = _silent) -> int:
        """Copies a table's real rows in; returns how many. `progress(count)` is called after each chunk."""
        import asyncpg

        connection = await asyncpg.connect(self.dsn)
        count = 0
        try:
            rows = read_rows(table, limit)
            while chunk := [row for _, row in zip(range(LOAD_CHUNK_ROWS), rows, strict=False)]:
                text = "".join("\t".join(map(_copy_text, row)) + "\n" for row in chunk)
                await connection.copy_to_table(table.name, source=_Once(text.encode()), format="text")
                count += len(chunk)
                progress(len(chunk))
        finally:
            await connection.close()
        return count

    def write_config(
        self,
        contexts: Sequence[str] = ("flight", "airport"),
        *,
        tables: Sequence[Table] = TABLES,
        sources: Mapping[str, Any] | None = None,
        context_folder: Path = CONTEXTS,
        embedding: Mapping[str, Any] | None = None,
        kafka: Mapping[str, Any] | None = None,
    ) -> Path:
        """The configuration that every role reads, and copies of the context files beside it. `tables` are those of
        Postgres, `sources` further ones; a context that `context_folder` lacks is the one for Postgres alone. `kafka`:
        what is to be set there beside the address."""
        assert self.addresses is not None, "up() comes first"
        folder = self.root / "contexts"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in contexts:
            special = context_folder / f"{name}.yaml"
            shutil.copy(special if special.exists() else CONTEXTS / f"{name}.yaml", folder)
        config = {
            "kafka": {"bootstrap_servers": self.addresses.kafka, "partitions": PARTITIONS, **(kafka or {})},
            "redis": {"url": self.addresses.redis},
            "sources": {
                "nyc": {
                    "connector": "postgres",
                    "dsn": self.dsn,
                    "tables": [f"public.{table.name}" for table in tables],
                },
                **(sources or {}),
            },
            **({"embedding": dict(embedding)} if embedding else {}),
            "contexts": ["contexts/*.yaml"],
        }
        self.config_path.write_text(yaml.safe_dump(config, sort_keys=False))
        return self.config_path

    def redis_settings(self, context: str) -> RedisSettings:
        """For a reader of a context's state."""
        assert self.addresses is not None, "up() comes first"
        return RedisSettings(self.addresses.redis, context, 1)

    def role(self, name: str, *arguments: str) -> Role:
        """A role with this configuration; started by the caller, ended by `close` at the latest."""
        number = len(self.roles) + 1
        role = Role([name, *arguments, "--config", str(self.config_path)], self.root / "logs" / f"{number}-{name}.log")
        self.roles.append(role)
        return role

    def close(self, keep: bool = False) -> None:
        """Ends the roles in order, then the servers, and removes the data; with `keep` leaves everything running."""
        if keep:
            return
        for role in reversed(self.roles):
            role.stop()
        self.stack.down()
        shutil.rmtree(self.root, ignore_errors=True)


class _Once:
    """An async source of one piece of bytes, as asyncpg's COPY takes it."""

    def __init__(self, data: bytes) -> None:
        self._pieces = [data]

    def __aiter__(self) -> _Once:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


def _copy_text(value: str | None) -> str:
    if value is None:
        return "\\N"
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
