"""What the sidecar is started with: its properties, its driver's and its log's settings, its command line. Pure.

Its own post-processing of commit-log segments is off: it would delete segments that it gave up halfway (see
segments.py, which does that work).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from connectors.cassandra.deliveries import LOGGERS
from connectors.cassandra.jvm import FLAGS
from connectors.publisher import RECORD_OVERHEAD_BYTES
from schemas.wire import SIZE_MAX

MAIN_CLASS = "io.debezium.connector.cassandra.CassandraConnectorTask"
REQUEST_BYTES_MAX = 4 * SIZE_MAX + RECORD_OVERHEAD_BYTES
"""A mutation has half a commit-log segment at most, but its JSON may be larger; what a topic refuses is told."""

QUEUE_INTERVAL_MS = 20
"""How long it gathers changes before it sends them, even one alone."""

_LOGGING = """\
<configuration>
  <appender name="STDOUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{ISO8601} %-5level %logger{0} %msg%n</pattern></encoder>
  </appender>
  <logger name="org.apache.kafka" level="WARN"/>
  <logger name="org.eclipse.jetty" level="WARN"/>
  <logger name="com.datastax.oss" level="WARN"/>
{told}  <root level="INFO"><appender-ref ref="STDOUT"/></root>
</configuration>
"""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that differs between two sidecars."""

    source: str
    keyspace: str
    hosts: list[str]
    port: int
    user: str
    password: str
    datacenter: str
    cluster: str
    node: str
    cassandra_yaml: Path
    directory: Path
    bootstrap_servers: str
    http_port: int
    poll_interval_ms: int
    producer: Mapping[str, str] = {}

    @property
    def offsets(self) -> Path:
        return self.directory / "offsets"

    @property
    def relocated(self) -> Path:
        return self.directory / "relocated"

    @property
    def properties_file(self) -> Path:
        return self.directory / "sidecar.properties"

    @property
    def driver_file(self) -> Path:
        return self.directory / "driver.conf"

    @property
    def logging_file(self) -> Path:
        return self.directory / "logback.xml"


def properties(setup: Setup) -> dict[str, str]:
    """Of Debezium's connector. Its producer never gives up: a record that it drops is passed over for ever."""
    poll = str(setup.poll_interval_ms)
    settings = {
        "connector.name": setup.source,
        "topic.prefix": setup.source,
        "cassandra.config": str(setup.cassandra_yaml),
        "cassandra.cluster.name": setup.cluster,
        "cassandra.node.id": setup.node,
        "cassandra.hosts": ",".join(setup.hosts),
        "cassandra.port": str(setup.port),
        "cassandra.driver.config.file": str(setup.driver_file),
        "commit.log.relocation.dir": str(setup.relocated),
        "commit.log.post.processing.enabled": "false",
        "commit.log.real.time.processing.enabled": "true",
        "commit.log.marked.complete.poll.interval.ms": poll,
        "cdc.dir.poll.interval.ms": poll,
        "poll.interval.ms": str(QUEUE_INTERVAL_MS),
        "num.of.change.event.queues": "1",  # with one, it sends in the order of the log: see heartbeat.py
        "offset.backing.store.dir": str(setup.offsets),
        "offset.flush.interval.ms": "1000",
        "http.port": str(setup.http_port),
        "snapshot.mode": "NEVER",
        "decimal.handling.mode": "STRING",
        "varint.handling.mode": "STRING",
        "tombstones.on.delete": "false",
    }
    for side in ("key", "value"):
        settings[f"{side}.converter"] = "org.apache.kafka.connect.json.JsonConverter"
        settings[f"{side}.converter.schemas.enable"] = "false"
        settings[f"kafka.producer.{side}.serializer"] = "org.apache.kafka.common.serialization.ByteArraySerializer"
    producer = {
        "bootstrap.servers": setup.bootstrap_servers,
        "acks": "all",
        "enable.idempotence": "true",
        "delivery.timeout.ms": str((1 << 31) - 1),
        "max.request.size": str(REQUEST_BYTES_MAX),
        "linger.ms": "0",
        **setup.producer,
    }
    return settings | {f"kafka.producer.{key}": value for key, value in producer.items()}


def properties_text(settings: Mapping[str, str]) -> str:
    """In the form that java.util.Properties reads."""
    return "".join(f"{key}={_escaped(value)}\n" for key, value in settings.items())


def logging_text() -> str:
    """Of its log, which also tells what deliveries.py counts."""
    return _LOGGING.replace("{told}", "".join(f'  <logger name="{name}" level="TRACE"/>\n' for name in LOGGERS))


def driver_text(setup: Setup) -> str:
    """Of its own driver, HOCON; JSON is a part of that."""
    # only this keyspace: what it does not know of others it does not send, and can't stumble over
    schema = {"enabled": True, "refreshed-keyspaces": [setup.keyspace]}
    advanced: dict[str, Any] = {"metadata": {"schema": schema}, "reconnect-on-init": True}
    if setup.user:
        login = {"class": "PlainTextAuthProvider", "username": setup.user, "password": setup.password}
        advanced["auth-provider"] = login
    basic = {
        "contact-points": [f"{host}:{setup.port}" for host in setup.hosts],
        "load-balancing-policy": {"local-datacenter": setup.datacenter},
    }
    return json.dumps({"datastax-java-driver": {"basic": basic, "advanced": advanced}}, indent=2)


def command(setup: Setup, java: str, jar: Path, heap_mib: int) -> list[str]:
    words = [java, f"-Xmx{heap_mib}m", "-XX:+ExitOnOutOfMemoryError", *FLAGS]
    words += [f"-Dlogback.configurationFile={setup.logging_file}", f"-Dcassandra.storagedir={setup.directory}"]
    return [*words, "-cp", str(jar), MAIN_CLASS, str(setup.properties_file)]


def _escaped(value: str) -> str:
    """Latin letters only, and nothing that ends a line."""
    units = value.encode("utf-16-be")
    codes = [units[at] << 8 | units[at + 1] for at in range(0, len(units), 2)]
    text = "".join(chr(code) if 0x20 <= code < 0x7F else f"\\u{code:04x}" for code in _doubled(codes))
    return "\\" + text if text.startswith(" ") else text


def _doubled(codes: list[int]) -> list[int]:
    return [one for code in codes for one in ([code, code] if code == _BACKSLASH else [code])]


_BACKSLASH = ord("\\")
