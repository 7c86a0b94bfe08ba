"""The section `canary`: a row in each source that is written again and again and looked up like any other, and the
context that it travels in, which is made here and runs beside the configured ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field, SecretStr, field_validator

from pipeline.core.addresses import is_web_address
from pipeline.core.section import ConfigPart
from schemas.context import ContextSpec, Embedding, Name
from schemas.yaml_file import Mistake, suggestion

SPEC_VERSION = 1
"""Of the context below: another number builds its bundles anew."""
KEY, SLOTS, PARTITION, NUMBER, WRITTEN = "slot", "slots", "kafka_partition", "number", "written_us"
"""Columns of the table, and fields of the bundle: which of the rows this is; the slots of all rows, with commas; the
partition that its key falls to, null where nobody knows; how often the role has written; when it did, microseconds
since 1970 UTC by the role's clock."""
TEMPLATE = "canary {{ slot }} number {{ number }} written {{ written_us }}"
CONFIDENCE_WINDOW_S = 30.0
"""Of a Scylla source that does not say another: no change comes sooner."""
HEARTBEAT_S = 1.0
"""Between heartbeats of a source that does not say another."""
BEATING = ("postgres", "cassandra", "scylla")
"""Connectors with heartbeats: a lookup's stated age grows only when something stands still."""


class CanarySource(ConfigPart):
    """`table` is made by `ctxpipe canary --prepare` and has to be among the source's `tables`. `login`: keys of the
    source's section that are others for who writes, e.g. its dsn. `contexts`: whether the ages that lookups in contexts
    with this source state are judged too; default: where its connector sends heartbeats. `embedding`: as in a context;
    then searches have to find the newest row as well, within `search_late_after_s`."""

    table: str = Field(min_length=1, description="schema.table, keyspace.table")
    every_s: float | None = Field(default=None, ge=0.1, le=3600)
    late_after_s: float | None = Field(default=None, gt=0, le=86_400)
    login: dict[str, Any] = Field(default_factory=dict, repr=False)
    contexts: bool | None = None
    embedding: Embedding | None = None
    search_late_after_s: float | None = Field(default=None, gt=0, le=86_400)


class CanaryConfig(ConfigPart):
    """`url`: where `ctxpipe serve` answers, or several, of which each has to show the row. `late_after_s` counts from
    the moment a row should have been there: one that comes every 5 s and is late after 10 s is told 15 s after the last
    one that came through."""

    url: list[str] = Field(min_length=1, max_length=100)
    api_key: SecretStr | None = Field(default=None, min_length=1)
    ca: str | None = Field(default=None, description="PEM, relative to this file; for https")
    certificate: str | None = None
    key: str | None = None
    every_s: float = Field(default=5.0, ge=0.1, le=3600)
    late_after_s: float = Field(default=10.0, gt=0, le=86_400)
    timeout_s: float = Field(default=2.0, gt=0, le=60, description="of one write, and of one lookup")
    sources: dict[Name, CanarySource] = Field(min_length=1)

    @field_validator("url", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        for address in value:
            if not is_web_address(address):
                raise ValueError(f"{address!r} is no address of a lookup service; write http://host:port")
        return list(dict.fromkeys(address.rstrip("/") for address in value))


class CanaryPlan(NamedTuple):
    """What one source's canary does: the section above with its defaults filled in."""

    source: str
    context: str
    table: str
    every_s: float
    late_after_s: float
    judges_contexts: bool
    heartbeat_s: float
    searches: bool
    search_late_after_s: float
    login: Mapping[str, Any]

    @property
    def limit_s(self) -> float:
        """A row that a lookup shows and that is older than this should have been followed by another."""
        return self.every_s + self.late_after_s

    @property
    def contexts_limit_s(self) -> float:
        """How old lookups in other contexts may call the source: between heartbeats nothing makes it younger."""
        return self.limit_s + self.heartbeat_s


def context_name(source: str) -> str:
    return f"canary_{source}"


def description(source: str) -> str:
    return f"Rows that `ctxpipe canary` writes into {source}, to see whether they come through."


def is_canary(context: str, described: str) -> bool:
    """Whether a context is one of these: models are not offered them, and find nothing in them."""
    prefix = context_name("")
    return context.startswith(prefix) and described == description(context.removeprefix(prefix))


def canary_plans(canary: CanaryConfig, sources: Mapping[str, Mapping[str, Any]]) -> list[CanaryPlan]:
    """By source, sorted."""
    return [
        _plan(canary, name, one, sources.get(name, {}))
        for name, one in sorted(canary.sources.items(), key=lambda i: i[0])
    ]


def canary_specs(canary: CanaryConfig | None, sources: Mapping[str, Mapping[str, Any]]) -> list[ContextSpec]:
    """The contexts that the canaries travel in."""
    if canary is None:
        return []
    return [_spec(canary.sources[plan.source], plan) for plan in canary_plans(canary, sources)]


def canary_mistakes(canary: CanaryConfig | None, sources: Mapping[str, Mapping[str, Any]]) -> Iterator[Mistake]:
    """What does not fit the sources, at its place in the file."""
    if canary is None:
        return
    for plan in canary_plans(canary, sources):
        at: tuple[str | int, ...] = ("canary", "sources", plan.source)
        section = sources.get(plan.source)
        if section is None:
            yield Mistake(at, f"there is no source {plan.source!r}{suggestion(plan.source, sources)}")
            continue
        if "." not in plan.table.strip("."):
            yield Mistake((*at, "table"), f"{plan.table!r} needs its schema; write public.{plan.table.strip('.')}")
        captured = _captured(section)
        if captured is not None and plan.table not in captured:
            text = f"source {plan.source} does not capture {plan.table}; add it under sources.{plan.source}.tables"
            yield Mistake((*at, "table"), f"{text}, then `ctxpipe canary --prepare` says what else it needs")
        floor_s = _floor_s(section)
        if plan.late_after_s <= floor_s:
            text = f"no change of this source comes before {floor_s:g} s (confidence_window_s); write more than that"
            yield Mistake((*at, "late_after_s"), text)


def _plan(canary: CanaryConfig, name: str, one: CanarySource, section: Mapping[str, Any]) -> CanaryPlan:
    every_s = canary.every_s if one.every_s is None else one.every_s
    late_after_s = canary.late_after_s if one.late_after_s is None else one.late_after_s
    connector = section.get("connector")
    heartbeat_s = section.get("heartbeat_interval_s", HEARTBEAT_S)
    beats = connector in BEATING and (connector != "cassandra" or bool(section.get("heartbeat_table")))
    return CanaryPlan(
        source=name,
        context=context_name(name),
        table=_qualified(section, one.table),
        every_s=every_s,
        late_after_s=late_after_s,
        judges_contexts=beats if one.contexts is None else one.contexts,
        heartbeat_s=float(heartbeat_s) if isinstance(heartbeat_s, int | float) else HEARTBEAT_S,
        searches=one.embedding is not None,
        search_late_after_s=late_after_s if one.search_late_after_s is None else one.search_late_after_s,
        login=one.login,
    )


def _spec(one: CanarySource, plan: CanaryPlan) -> ContextSpec:
    data: dict[str, Any] = {
        "context": plan.context,
        "version": SPEC_VERSION,
        "description": description(plan.source),
        "root": "canary",
        "entities": {"canary": {"source": plan.source, "table": plan.table, "key": [KEY]}},
        "fields": [KEY, SLOTS, PARTITION, NUMBER, WRITTEN],
    }
    if one.embedding is not None:
        given = one.embedding.model_dump(exclude_unset=True)
        data["embedding"] = {**given, "template": given.get("template") or TEMPLATE}
    return ContextSpec.model_validate(data)


def _captured(section: Mapping[str, Any]) -> Sequence[str] | None:
    """None where the section does not tell."""
    tables = section.get("tables")
    if not isinstance(tables, list):
        return None
    return [_qualified(section, table) for table in tables if isinstance(table, str)]


def _qualified(section: Mapping[str, Any], table: str) -> str:
    keyspace = section.get("keyspace")
    return f"{keyspace}.{table}" if keyspace and "." not in table else table


def _floor_s(section: Mapping[str, Any]) -> float:
    if section.get("connector") != "scylla":
        return 0.0
    window = section.get("confidence_window_s", CONFIDENCE_WINDOW_S)
    return float(window) if isinstance(window, int | float) else 0.0


__all__ = [
    "KEY",
    "NUMBER",
    "PARTITION",
    "SLOTS",
    "WRITTEN",
    "CanaryConfig",
    "CanaryPlan",
    "CanarySource",
    "canary_mistakes",
    "canary_plans",
    "canary_specs",
    "context_name",
    "is_canary",
]
