"""Sources whose topics an existing Debezium deployment fills: what a configuration says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from schemas.source_format import SourceFormat
from schemas.topics import table_topic
from schemas.yaml_file import Mistake, mistakes_of

CONNECTOR: Literal["debezium"] = "debezium"


class DebeziumConfig(BaseModel):
    """A section `sources.<name>` with `connector: debezium`; nothing of ours runs for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connector: Literal["debezium"] = CONNECTOR
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40, description="the source's name in contexts")
    topic_prefix: str | None = Field(
        default=None, pattern=r"^[a-zA-Z0-9._-]+$", max_length=200, description="topic.prefix of the deployment"
    )
    tables: list[str] | None = Field(default=None, min_length=1, description="schema.table; only these may be used")
    format: Literal["envelope", "flattened", "advanced"] = Field(
        default="envelope",
        description="flattened: by ExtractNewRecordState; advanced: cdc.output.format of Scylla's connector",
    )
    full_images: bool = Field(default=False, description="Scylla's connector shows whole rows: cdc.include.after=full")
    schema_registry: SecretStr | None = Field(default=None, description="http://host:port, where the topics hold Avro")
    dsn: SecretStr | None = Field(default=None, description="the Postgres behind it; only ctxpipe verify reads it")
    verify: dict[str, Any] | None = Field(
        default=None,
        repr=False,
        description="the database behind it: a connector (postgres, cassandra, scylla), how to connect",
    )

    @field_validator("tables")
    @classmethod
    def _qualified(cls, value: list[str] | None) -> list[str] | None:
        for table in value or ():
            if table.count(".") != 1 or not all(table.split(".")):
                raise ValueError(f"{table!r} is not schema.table (or keyspace.table)")
        return value

    @field_validator("schema_registry")
    @classmethod
    def _http(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("is no address of a schema registry; write http://host:port")
        return value

    @model_validator(mode="after")
    def _images_of_plain_cells(self) -> DebeziumConfig:
        if self.full_images and self.format != "advanced":
            raise ValueError("full_images goes with format: advanced (cdc.output.format of Scylla's connector)")
        return self

    @property
    def prefix(self) -> str:
        return self.topic_prefix or self.name

    def source_format(self) -> SourceFormat:
        return SourceFormat(
            source=self.name,
            topic_prefix=self.prefix,
            flattened=self.format == "flattened",
            plain_cells=self.format == "advanced",
            full_images=self.full_images,
        )


def debezium_sources(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, DebeziumConfig]:
    """Of sections that `section_mistakes` found nothing wrong with."""
    return {
        name: DebeziumConfig.model_validate({**section, "name": name})
        for name, section in sources.items()
        if section.get("connector") == CONNECTOR
    }


def section_mistakes(name: str, section: Mapping[str, Any]) -> Iterator[Mistake]:
    """What is wrong with a section, at its place in the file."""
    try:
        DebeziumConfig.model_validate({**section, "name": name})
    except ValidationError as error:
        for mistake in mistakes_of(error, DebeziumConfig, {}):
            yield Mistake(("sources", name, *mistake.location), mistake.text)


def topic_mistakes(sources: Mapping[str, DebeziumConfig]) -> Iterator[Mistake]:
    """Two sources can't read the same topics: they would say different things of them."""
    by_prefix: dict[str, str] = {}
    for name, source in sources.items():
        other = by_prefix.setdefault(source.prefix, name)
        if other != name:
            text = f"has the same topics as source {other}; keep one of the two"
            yield Mistake(("sources", name, "topic_prefix"), text)


def topic_of(sources: Mapping[str, Mapping[str, Any]], source: str, table: str) -> str:
    """The topic of a table, under the topic prefix of its source where that has another name."""
    section = sources.get(source, {})
    prefix = section.get("topic_prefix") if section.get("connector") == CONNECTOR else None
    return table_topic(prefix or source, table)
