"""A local Cassandra node, version 5 or 4.1, that writes its change log (CDC)."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from connectors.cassandra.jvm import FLAGS
from deploy.local import install
from deploy.local.processes import HOST, choose_port
from deploy.local.server import Server

OPTIONS_FRAME = struct.pack(">BBhBi", 0x04, 0, 0, 0x05, 0)  # protocol 4, "which options do you know?"
SUPPORTED_OPCODE = 0x06

LOGGING = """\
<configuration>
  <appender name="STDOUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{ISO8601} %-5level %logger{20} %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="STDOUT"/></root>
</configuration>
"""


class CassandraServer(Server):
    """One node; tables created WITH cdc = true leave their changes in `cdc_raw_dir`."""

    kind = "cassandra"
    ready_timeout_s = 120.0

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *,
        storage_port: int | None = None,
        name: str | None = None,
        log_dir: Path | None = None,
        heap_mib: int = 1024,
        settings: Mapping[str, object] | None = None,
        major: int = 5,
    ) -> None:
        """`settings` are added to cassandra.yaml, e.g. cdc_total_space and cdc_block_writes. `major` is 5 or 4."""
        super().__init__(data_dir, port, name=name, log_dir=log_dir)
        self.settings = dict(settings or {})
        self.jars = "cassandra" if major == 5 else f"cassandra-{major}"
        self.storage_port = storage_port or choose_port()
        self.heap_mib = heap_mib

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def cdc_raw_dir(self) -> Path:
        return self.data_dir / "cdc_raw"

    def prepare(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        # JSON is YAML, and it quotes paths rightly
        self.config_file.write_text(json.dumps({**self._settings(), **self.settings}, indent=2))
        (self.data_dir / "logback.xml").write_text(LOGGING)

    def command(self) -> list[str]:
        words = [install.cassandra_java_program(), f"-Xmx{self.heap_mib}m", f"-Xms{self.heap_mib // 4}m"]
        words += FLAGS
        properties = {
            "cassandra.config": self.config_file.as_uri(),
            "cassandra.storagedir": str(self.data_dir),
            "cassandra-foreground": "yes",
            "cassandra.ring_delay_ms": "1000",
            "cassandra.superuser_setup_delay_ms": "0",  # there is no other node that could have made the first role
            "cassandra.skip_wait_for_gossip_to_settle": "0",
            "logback.configurationFile": str(self.data_dir / "logback.xml"),
        }
        words += [f"-D{key}={value}" for key, value in properties.items()]
        jars = install.jars(self.jars)
        # version 4 measures its memory with an agent; version 5 does without
        words += [f"-javaagent:{agent}" for agent in jars.glob("jamm-0.3*.jar")]
        return [*words, "-cp", f"{jars}/*", "org.apache.cassandra.service.CassandraDaemon"]

    def answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=2.0) as connection:
                connection.sendall(OPTIONS_FRAME)
                header = connection.recv(9)
        except OSError:
            return False
        return len(header) == 9 and header[4] == SUPPORTED_OPCODE

    @property
    def config_file(self) -> Path:
        """Its cassandra.yaml; the connector's sidecar reads it, too."""
        return (self.data_dir / "cassandra.yaml").absolute()

    def _settings(self) -> dict[str, object]:
        data = self.data_dir
        seed = {"class_name": "org.apache.cassandra.locator.SimpleSeedProvider"}
        return {
            "cluster_name": "ctxpipe",
            "num_tokens": 1,
            "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
            "data_file_directories": [str(data / "data")],
            "commitlog_directory": str(data / "commitlog"),
            "commitlog_sync": "periodic",
            "commitlog_sync_period": "1000ms",
            "commitlog_segment_size": "1MiB",
            "cdc_enabled": True,
            "cdc_raw_directory": str(self.cdc_raw_dir),
            "saved_caches_directory": str(data / "saved"),
            "hints_directory": str(data / "hints"),
            "seed_provider": [{**seed, "parameters": [{"seeds": f"{HOST}:{self.storage_port}"}]}],
            "listen_address": HOST,
            "rpc_address": HOST,
            "storage_port": self.storage_port,
            "native_transport_port": self.port,
            "start_native_transport": True,
            "endpoint_snitch": "SimpleSnitch",
            "authenticator": "AllowAllAuthenticator",
            "authorizer": "AllowAllAuthorizer",
            "auto_bootstrap": False,
        }
