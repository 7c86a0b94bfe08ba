"""How the collector watches consumer groups and asks the other roles: section `collector` of `ctxpipe.yaml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr, field_validator

from pipeline.core.addresses import is_web_address
from pipeline.core.section import ConfigPart


class CollectorConfig(ConfigPart):
    """Where `ctxpipe collector` listens, what it watches and how it judges.

    Patterns are of names, with * and ?. `groups` are watched, ours and others; what `ignore` names, groups or topics,
    is left out. `scrape` are metrics pages of the other roles. `url` is where `ctxpipe lag` asks a running collector;
    without it, `ctxpipe lag` samples by itself.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=9108, ge=0, le=65535, description="of /metrics, /lag and the checks; 0 takes a free one")
    url: str | None = Field(default=None, description="of a running collector, e.g. http://collector:9108")
    interval_s: float = Field(default=10.0, ge=0.1, le=300, description="between two samples")
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="of one request to a broker, a source or a page")
    groups: list[str] = Field(default_factory=lambda: ["*"])
    ignore: list[str] = Field(default_factory=list)
    scrape: list[str] = Field(default_factory=list, description="e.g. http://serve-0:9101/metrics")
    scrape_key: SecretStr | None = Field(
        default=None, min_length=1, description="an API key with the scope metrics:read, for pages of serve"
    )
    partitions: bool = Field(default=False, description="true gives every partition series of its own")
    allowed_lag_records: dict[str, int] = Field(
        default_factory=dict, description="by pattern of groups: so many may wait at any time"
    )
    offset_reset: dict[str, Literal["earliest", "latest"]] = Field(
        default_factory=dict, description="by pattern of groups: where they begin without a commit; else earliest"
    )
    samples: int = Field(default=10, ge=3, le=100, description="that a verdict looks back on")
    commit_interval_s: float = Field(default=5.0, gt=0, le=3600, description="consumers commit at least so often")
    late_s: float = Field(default=60.0, gt=0, description="lag that --explain names where no objective says it")
    stuck_s: float = Field(default=300.0, gt=0, description="without a commit although records wait")
    rebalance_s_max: float = Field(default=60.0, gt=0, description="a verdict rests so long while a group rebalances")
    records_max: int = Field(default=1_000, ge=1, le=100_000, description="partitions whose record is read per sample")

    @field_validator("scrape")
    @classmethod
    def _pages(cls, value: list[str]) -> list[str]:
        for address in value:
            if not is_web_address(address):
                raise ValueError(f"{address!r} is no address of a metrics page; write http://host:port/metrics")
        return value

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None and not is_web_address(value):
            raise ValueError("is no address of a collector; write http://host:port")
        return value

    @field_validator("allowed_lag_records")
    @classmethod
    def _not_negative(cls, value: dict[str, int]) -> dict[str, int]:
        if any(records < 0 for records in value.values()):
            raise ValueError("records that may wait are 0 or more")
        return value
