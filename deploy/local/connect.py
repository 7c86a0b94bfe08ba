"""A local Kafka Connect with Debezium's connector for Postgres: topics that we did not write, and a peer to measure."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from deploy.local import install
from deploy.local.kafka import LOGGING
from deploy.local.processes import HOST
from deploy.local.server import Server

ERRORS_TOLD = 5
JSON_CONVERTER = "org.apache.kafka.connect.json.JsonConverter"


class ConnectServer(Server):
    """One standalone worker; it answers when all its connectors and their tasks run."""

    kind = "connect"
    ready_timeout_s = 120.0

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        kafka: str,
        connectors: Mapping[str, Mapping[str, str]],
        name: str | None = None,
        log_dir: Path | None = None,
        heap_mib: int = 512,
    ) -> None:
        """`connectors`: their properties by name, see `postgres_connector`."""
        super().__init__(data_dir, port, name=name, log_dir=log_dir)
        self.kafka, self.connectors, self.heap_mib = kafka, dict(connectors), heap_mib

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def prepare(self) -> None:
        plugins = self.data_dir / "plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        # Connect takes connectors from folders below plugin.path only, though the same jars are on its class path.
        link = plugins / "debezium"
        if not link.is_symlink():
            link.symlink_to(install.jars("connect"))
        (self.data_dir / "log4j2.properties").write_text(LOGGING)
        self._write("worker.properties", self._worker(plugins))
        for name, properties in self.connectors.items():
            self._write(f"{name}.properties", {"name": name, **properties})

    def command(self) -> list[str]:
        return [
            install.java_program(),
            f"-Xmx{self.heap_mib}m",
            f"-Dlog4j2.configurationFile={self.data_dir / 'log4j2.properties'}",
            "-cp",
            f"{install.jars('connect')}/*",
            "org.apache.kafka.connect.cli.ConnectStandalone",
            str(self.data_dir / "worker.properties"),
            *(str(self.data_dir / f"{name}.properties") for name in self.connectors),
        ]

    def answers(self) -> bool:
        try:
            return self._serves() and all(self._runs(name) for name in self.connectors)
        except (OSError, ValueError):
            return False

    def _serves(self) -> bool:
        """It listens before it knows its own paths."""
        with urllib.request.urlopen(f"{self.address}/connectors", timeout=2.0) as response:
            return bool(response.status == 200)

    def _runs(self, name: str) -> bool:
        with urllib.request.urlopen(f"{self.address}/connectors/{name}/status", timeout=2.0) as response:
            status = json.load(response)
        tasks = status.get("tasks", [])
        return bool(tasks) and all(one.get("state") == "RUNNING" for one in (status.get("connector", {}), *tasks))

    def log_tail(self) -> str:
        """Its errors first: after them it ends in order, and says so at length."""
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            return super().log_tail()
        errors = [f"  | {line}" for line in lines if " ERROR " in line]
        return "\n".join([*errors[-ERRORS_TOLD:], super().log_tail()])

    def _worker(self, plugins: Path) -> dict[str, str]:
        return {
            "bootstrap.servers": self.kafka,
            "listeners": self.address,
            "offset.storage.file.filename": str(self.data_dir / "offsets.dat"),
            "offset.flush.interval.ms": "1000",
            "plugin.path": str(plugins),
            "plugin.discovery": "service_load",
            "key.converter": JSON_CONVERTER,
            "value.converter": JSON_CONVERTER,
        }

    def _write(self, name: str, settings: Mapping[str, str]) -> None:
        lines = [f"{key}={value}" for key, value in settings.items()]
        (self.data_dir / name).write_text("\n".join(lines) + "\n")


def postgres_connector(
    dsn: str, prefix: str, tables: Sequence[str], *, schemas: bool = False, partitions: int = 1
) -> dict[str, str]:
    """Properties of Debezium's connector for Postgres, its slot and publication named after `prefix`.

    `schemas`: around every key and value. Its topics are made compacted, with so many partitions. `dsn` in either
    of libpq's forms.
    """
    parts = conninfo_to_dict(dsn)
    found = {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "tasks.max": "1",
        "database.hostname": str(parts.get("host") or HOST),
        "database.port": str(parts.get("port") or 5432),
        "database.user": str(parts.get("user") or "postgres"),
        "database.password": str(parts.get("password") or ""),
        "database.dbname": str(parts.get("dbname") or "postgres"),
        "topic.prefix": prefix,
        "plugin.name": "pgoutput",
        "slot.name": prefix,
        "publication.name": prefix,
        "publication.autocreate.mode": "filtered",
        "table.include.list": ",".join(tables),
        "topic.creation.default.replication.factor": "1",
        "topic.creation.default.partitions": str(partitions),
        "topic.creation.default.cleanup.policy": "compact",
    }
    for part in ("key", "value"):
        found[f"{part}.converter"] = JSON_CONVERTER
        found[f"{part}.converter.schemas.enable"] = str(schemas).lower()
        # Otherwise a null in a column with a default would be written as that default.
        found[f"{part}.converter.replace.null.with.default"] = "false"
    return found
