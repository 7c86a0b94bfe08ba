"""The section `sources.<name>` of ctxpipe.yaml for a Cassandra source, and of the sidecar that reads the commit log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from connectors.cql.session import CqlServer
from connectors.registry import SourceConfig
from schemas.topics import table_topic

INSTALL = "install"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
_OWN_PROPERTIES = ("bootstrap.servers", "key.serializer", "value.serializer", "acks", "enable.idempotence")


class SidecarConfig(BaseModel):
    """Debezium's connector for Cassandra, run beside the node on whose disk the commit log is.

    `cassandra_yaml` says where the node keeps its change log; the two directory keys only what it leaves to defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    jar: str = Field(default=INSTALL, description="path of the connector's jar; install: fetched by Maven on first use")
    java: str = Field(default="", description="path of a Java 17; empty: looked for")
    heap_mib: int = Field(default=512, ge=128, le=32_768)
    cassandra_yaml: Path = Field(description="path of the node's cassandra.yaml")
    commitlog_directory: Path | None = None
    cdc_raw_directory: Path | None = None
    http_port: int = Field(default=0, ge=0, le=65535, description="of its health check; 0 takes a free one")
    poll_interval_ms: int = Field(default=100, ge=50, le=60_000, description="how often it looks for synced changes")
    cdc_raw_warn_ratio: float = Field(default=0.5, gt=0, lt=1, description="fill of cdc_raw that is told")
    deaths_max: int = Field(default=5, ge=1, le=100, description="deaths without a healthy minute that end connect")
    restart_delay_s: float = Field(default=1.0, gt=0, le=60)
    producer: dict[str, str] = Field(
        default_factory=dict, description="further properties of its Kafka producer, e.g. security.protocol"
    )

    @field_validator("producer")
    @classmethod
    def _foreign(cls, value: dict[str, str]) -> dict[str, str]:
        ours = sorted(set(value) & set(_OWN_PROPERTIES))
        if ours:
            raise ValueError(f"ctxpipe sets {', '.join(ours)} itself, because losing nothing depends on it")
        return value


class CassandraConfig(CqlServer, SourceConfig):
    """Without `sidecar` only the snapshot is read, and somebody else runs Debezium's connector.

    `data_directory` belongs to this source alone: the sidecar's settings, offsets, log and the segments that it has
    read lie there. It should be on the disk of cdc_raw, because segments are moved.
    """

    connector: Literal["cassandra"] = "cassandra"
    keyspace: str = Field(pattern=f"^{_NAME.pattern}$", max_length=48)
    tables: list[str] = Field(min_length=1, description="names of tables of the keyspace")
    data_directory: Path = Field(description="this source's own files, on the disk of the node's cdc_raw")
    snapshot: Literal["initial", "never"] = Field(default="initial", description="never: only changes from now on")
    snapshot_readers: int = Field(default=2, ge=1, le=32)
    snapshot_ranges: int = Field(default=64, ge=1, le=4096, description="parts of the ring; each is where to resume")
    rows_per_second: int = Field(default=20_000, ge=1, description="of the snapshot, over all its readers")
    retention_ms: int = Field(default=-1, ge=-1, description="of the topics; -1 keeps every change for ever")
    watch_interval_s: float = Field(default=2.0, gt=0, le=60, description="how often node and cdc_raw are looked at")
    heartbeat_table: str = Field(
        default="", description="a table of the keyspace that tells the age; empty: unknown age"
    )
    heartbeat_interval_s: float = Field(default=1.0, ge=0.1, le=60)
    sidecar: SidecarConfig | None = None

    @field_validator("tables")
    @classmethod
    def _plain(cls, value: list[str]) -> list[str]:
        """`weather` and `ks.weather` are both written; the keyspace is checked below."""
        wrong = [table for table in value if not all(_NAME.fullmatch(part) for part in table.split(".")[-2:])]
        if wrong:
            raise ValueError(f"are no names of tables: {', '.join(wrong)}")
        return list(dict.fromkeys(value))

    @model_validator(mode="after")
    def _one_keyspace(self) -> CassandraConfig:
        foreign = [table for table in self.tables if "." in table and table.split(".")[0] != self.keyspace]
        if foreign:
            raise ValueError(
                f"tables of other keyspaces than {self.keyspace}: {', '.join(foreign)}; make a source each"
            )
        if len(set(self.table_names)) != len(self.tables):
            raise ValueError("tables names one of them twice")
        return self

    @model_validator(mode="after")
    def _heartbeats_come_back(self) -> CassandraConfig:
        if not self.heartbeat_table:
            return self
        parts = self.heartbeat_table.split(".")
        if len(parts) > 2 or not all(map(_NAME.fullmatch, parts)) or parts[0] not in (parts[-1], self.keyspace):
            raise ValueError(f"heartbeat_table: {self.heartbeat_table!r} is no name of a table of {self.keyspace}")
        if self.heartbeat_name in self.table_names:
            raise ValueError(f"heartbeat_table: {self.heartbeat_table} is captured; it needs a table of its own")
        if self.sidecar is None:
            raise ValueError("heartbeat_table: without sidecar no heartbeat comes back; leave it out")
        return self

    @property
    def heartbeat_name(self) -> str:
        """Without its keyspace; empty: there is none."""
        return self.heartbeat_table.split(".")[-1]

    @property
    def table_names(self) -> list[str]:
        """Without their keyspace."""
        return [table.split(".")[-1] for table in self.tables]

    def qualified(self, table: str) -> str:
        return f"{self.keyspace}.{table}"

    def topic(self, table: str) -> str:
        """As Debezium names it: `<source>.<keyspace>.<table>`."""
        return table_topic(self.name, self.qualified(table))
