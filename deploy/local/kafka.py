"""A local Kafka: one KRaft node that is broker and controller."""

from __future__ import annotations

import base64
import socket
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path

from deploy.local import install
from deploy.local.processes import HOST, choose_port, run
from deploy.local.server import Server

RECORD_BYTES_MAX = 64 * 1024 * 1024
SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "num.partitions": "1",
    # the connector creates its topics with the partitions of the config; a typo must not create another one
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # after kill -9 a broker must wait until its own old session has run out
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "2",
    "message.max.bytes": str(RECORD_BYTES_MAX),
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
}
LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


class KafkaServer(Server):
    """One Kafka node with plain text listeners on the loopback address; topics must be created before use."""

    kind = "kafka"
    ready_timeout_s = 90.0

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        controller_port: int | None = None,
        name: str | None = None,
        log_dir: Path | None = None,
        heap_mib: int = 512,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir, port, name=name, log_dir=log_dir)
        self.controller_port = controller_port or choose_port()
        self.heap_mib = heap_mib
        self.settings = {**SETTINGS, **(settings or {})}

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def prepare(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        lines = [f"{key}={value}" for key, value in {**self.settings, **self._listeners()}.items()]
        self._properties.write_text("\n".join(lines) + "\n")
        (self.data_dir / "log4j2.properties").write_text(LOGGING)
        if not (self.data_dir / "records" / "meta.properties").exists():
            cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            words = [*self._java(128), "kafka.tools.StorageTool", "format"]
            # One word: an identifier may begin with a dash, and would be taken for an option.
            words.append(f"--cluster-id={cluster_id}")
            run([*words, "-c", str(self._properties)], "Formatting the Kafka data directory")

    def command(self) -> list[str]:
        return [*self._java(self.heap_mib), "kafka.Kafka", str(self._properties)]

    def answers(self) -> bool:
        return broker_answers(HOST, self.port)

    @property
    def _properties(self) -> Path:
        return self.data_dir / "server.properties"

    def _listeners(self) -> dict[str, str]:
        return {
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "log.dirs": str(self.data_dir / "records"),
        }

    def _java(self, heap_mib: int) -> list[str]:
        return [
            install.java_program(),
            f"-Xmx{heap_mib}m",
            "-XX:+UseSerialGC" if heap_mib <= 256 else "-XX:+UseG1GC",
            f"-Dlog4j2.configurationFile={self.data_dir / 'log4j2.properties'}",
            "-cp",
            f"{install.jars('kafka')}/*",
        ]


def broker_answers(host: str, port: int) -> bool:
    """True when a broker lists itself in the metadata of its cluster; one short probe, no client library."""
    header = struct.pack(">hhi", 3, 1, 1) + struct.pack(">h", -1)  # Metadata v1, no client id
    request = header + struct.pack(">i", 0)  # no topics
    try:
        with socket.create_connection((host, port), timeout=2.0) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as stream:
                size = stream.read(4)
                body = stream.read(struct.unpack(">i", size)[0]) if len(size) == 4 else b""
    except OSError:
        return False
    return len(body) >= 8 and bool(struct.unpack(">i", body[4:8])[0] > 0)
