"""The section `sources.<name>` of ctxpipe.yaml for a Postgres source."""

from __future__ import annotations

from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from pipeline.core.errors import ConfigError
from schemas.topics import table_topic


class PostgresConfig(BaseModel):
    """Defaults suit a source of any size; sizes are bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connector: Literal["postgres"] = "postgres"
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40, description="the source's name, its topics' prefix")
    dsn: SecretStr = Field(description="postgresql://user:password@host:port/database")
    tables: list[str] = Field(min_length=1, description="schema-qualified names, e.g. public.orders")
    row_filters: dict[str, str] = Field(
        default_factory=dict, description="table: SQL condition; used when ctxpipe creates the publication"
    )
    slot: str = Field(default="", pattern=r"^[a-z0-9_]{0,63}$")
    publication: str = Field(default="", max_length=63)
    heartbeat_interval_s: float = Field(default=1.0, gt=0, le=60)
    snapshot: Literal["initial", "never"] = Field(
        default="initial", description="never: only changes after the first start"
    )
    snapshot_readers: int = Field(default=2, ge=1, le=16)
    chunk_rows: int = Field(default=2000, ge=1, le=100_000, description="rows per watermark chunk")
    queue_bytes_max: int = Field(default=32 << 20, ge=1 << 16)
    transaction_memory_bytes_max: int = Field(default=64 << 20, ge=1 << 16)
    spill_directory: str | None = Field(default=None, description="for large transactions; default: the system's")
    slot_wait_s: float = Field(default=20.0, ge=0, description="how long to wait for a slot that is still in use")

    @field_validator("dsn")
    @classmethod
    def _readable(cls, value: SecretStr) -> SecretStr:
        try:
            conninfo_to_dict(value.get_secret_value())
        except psycopg.ProgrammingError:
            # The driver's words would quote the address, password and all.
            raise ValueError("is no address; write postgresql://user:password@host:port/database") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("name"), str):
            default = f"ctxpipe_{data['name']}"
            return {**data, "slot": data.get("slot") or default, "publication": data.get("publication") or default}
        return data

    @model_validator(mode="after")
    def _tables(self) -> PostgresConfig:
        wrong = [table for table in self.tables if "." not in table.strip(".")]
        if wrong:
            raise ValueError(f"tables need their schema, e.g. public.{wrong[0].strip('.')}: {', '.join(wrong)}")
        topics: dict[str, list[str]] = {}
        for table in dict.fromkeys(self.tables):
            topics.setdefault(table_topic(self.name, table), []).append(table)
        for shared in (tables for tables in topics.values() if len(tables) > 1):
            raise ValueError(
                f"{' and '.join(shared)} would share a topic, whose names hold fewer characters, and overwrite each "
                "other's rows there; capture them as two sources"
            )
        strange = sorted(set(self.row_filters) - set(self.tables))
        if strange:
            raise ValueError(f"row_filters for tables that are not captured: {', '.join(strange)}")
        return self


def parse_config(name: str, section: dict[str, Any]) -> PostgresConfig:
    """Raises ConfigError with every mistake at once."""
    try:
        return PostgresConfig.model_validate({**section, "name": name})
    except ValidationError as error:
        raise ConfigError([_sentence(name, item) for item in error.errors()]) from error


def _sentence(name: str, item: Any) -> str:
    where = ".".join(["sources", name, *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        known = ", ".join(sorted(set(PostgresConfig.model_fields) - {"name"}))
        return f"{where}: unknown key. A Postgres source knows: {known}"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"
