"""The section `sources.<name>` of ctxpipe.yaml for a Scylla source."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from connectors.cql.session import CqlServer
from connectors.registry import SourceConfig
from schemas.topics import table_topic

LOG_SUFFIX = "_scylla_cdc_log"
US = 1_000_000
_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,47}$"


class Shard(BaseModel):
    """Several processes share the streams of a source: this one reads the groups that fall to `number` of `of`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = Field(default=0, ge=0, description="counted from 0")
    of: int = Field(default=1, ge=1, le=1024)

    @model_validator(mode="after")
    def _inside(self) -> Shard:
        if self.number >= self.of:
            raise ValueError(f"number {self.number} is not below of {self.of}; the processes are counted from 0")
        return self


class Metadata(BaseModel):
    """Where the generations are told. Only tests and other servers than Scylla keep them elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keyspace: str = Field(default="system_distributed", pattern=_NAME)
    timestamps: str = Field(default="cdc_generation_timestamps", pattern=_NAME)
    streams: str = Field(default="cdc_streams_descriptions_v2", pattern=_NAME)
    tablets_keyspace: str = Field(default="system", pattern=_NAME)
    tablets_timestamps: str = Field(default="cdc_timestamps", pattern=_NAME)
    tablets_streams: str = Field(default="cdc_streams", pattern=_NAME)


class ScyllaConfig(SourceConfig, CqlServer):
    """`confidence_window_s` is the latency floor: a write is read when it is that old, because writes of the same time
    may still be on their way until then. Shorter is sooner; too short loses late writes."""

    connector: Literal["scylla"] = "scylla"
    keyspace: str = Field(pattern=_NAME)
    tables: list[str] = Field(min_length=1, description="names of tables with CDC enabled, without their keyspace")
    confidence_window_s: float = Field(default=30.0, gt=0, le=3600, description="age at which writes are read")
    window_s: float = Field(default=30.0, gt=0, le=86_400, description="what is read at once when behind")
    pause_s: float = Field(default=0.1, gt=0, le=60, description="after a window with changes, when not behind")
    idle_pause_s: float = Field(default=0.2, gt=0, le=60, description="after a window without changes")
    heartbeat_interval_s: float = Field(default=1.0, gt=0, le=60)
    generations: Literal["auto", "vnodes", "tablets"] = Field(
        default="auto", description="how the keyspace's streams are laid out; auto asks the server"
    )
    metadata: Metadata = Metadata()
    bypass_cache: Literal["auto", "never"] = Field(
        default="auto", description="auto: reads of the log leave the server's cache alone, where it knows how"
    )
    log_ttl_s: int | None = Field(
        default=None, ge=0, description="how long the log is kept, 0 for ever; default: the table's own, else a day"
    )
    shard: Shard = Shard()
    snapshot: Literal["initial", "never"] = Field(
        default="initial", description="initial: rows that are older than the log are read from the tables, too"
    )
    snapshot_readers: int = Field(default=2, ge=1, le=32)
    snapshot_ranges: int = Field(default=64, ge=1, le=65_536, description="parts of the ring, each read and stored")
    rows_per_second: int = Field(default=20_000, ge=1, description="of the snapshot, over all its readers")
    queue_bytes_max: int = Field(default=8 << 20, ge=1 << 16)
    retention_ms: int = Field(default=-1, ge=-1, description="how long topics keep a change, -1 for ever")

    @model_validator(mode="after")
    def _distinct(self) -> ScyllaConfig:
        if len(set(self.tables)) < len(self.tables):
            raise ValueError("a table is listed twice in tables")
        logs = [table for table in self.tables if table.endswith(LOG_SUFFIX)]
        if logs:
            raise ValueError(f"{', '.join(logs)}: write the table, not its log; the log is found by itself")
        dotted = [table for table in self.tables if "." in table]
        if dotted:
            raise ValueError(f"{', '.join(dotted)}: tables are written without their keyspace; that is {self.keyspace}")
        return self

    @property
    def confidence_us(self) -> int:
        return int(self.confidence_window_s * US)

    @property
    def position_name(self) -> str:
        """Under what the position is kept: each of several processes has its own."""
        return self.name if self.shard.of == 1 else f"{self.name}.{self.shard.number}of{self.shard.of}"

    def topic(self, table: str) -> str:
        return table_topic(self.name, f"{self.keyspace}.{table}")
