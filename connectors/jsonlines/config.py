"""The section `sources.<name>` of ctxpipe.yaml for a directory of JSON Lines files."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from connectors.registry import SourceConfig
from schemas.topics import table_topic
from schemas.wire import SIZE_MAX

_TABLE = re.compile(r"[^.\s]+\.[^.\s]+")


class FilesConfig(BaseModel):
    """One table: the files that hold it, and what a line means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: str = Field(min_length=1, description="name pattern in the directory, rotated names too: orders.jsonl*")
    key: list[str] = Field(min_length=1, description="columns of the primary key, in order")
    deleted: str = Field(default="", description="a line in which this column is true deletes the row of its key")

    @field_validator("files")
    @classmethod
    def _names_only(cls, value: str) -> str:
        if "/" in value:
            raise ValueError("is a pattern of names in the directory, without /, such as orders.jsonl*")
        return value


class JsonLinesConfig(SourceConfig):
    """Sizes are bytes."""

    connector: Literal["jsonlines"] = "jsonlines"
    directory: str = Field(min_length=1, description="where the files lie; on one file system")
    tables: dict[str, FilesConfig] = Field(
        min_length=1, description="name of two parts, e.g. files.orders: {files: 'orders.jsonl*', key: [id]}"
    )
    poll_interval_s: float = Field(default=0.2, gt=0, le=60)
    heartbeat_interval_s: float = Field(default=1.0, gt=0, le=60)
    batch_bytes_max: int = Field(default=1 << 20, ge=1 << 10)
    line_bytes_max: int = Field(default=SIZE_MAX, ge=1 << 10, description="longer lines are set aside")

    @field_validator("tables")
    @classmethod
    def _table_names(cls, value: dict[str, FilesConfig]) -> dict[str, FilesConfig]:
        wrong = [name for name in value if not _TABLE.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} has not two parts; write files.{wrong[0].replace('.', '_')}")
        topics = [table_topic("s", name) for name in value]
        if len(set(topics)) < len(topics):
            raise ValueError("two tables would share a topic, whose names hold fewer characters")
        return value
