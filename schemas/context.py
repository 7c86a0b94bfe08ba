"""The context spec: what a data engineer declares, one YAML file per context. See README for a walk through it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
Column = Annotated[str, Field(min_length=1, max_length=128)]
Compose = Literal["copy", "link", "auto"]
Mask = Literal["hash", "redact", "last4"]
AGGREGATES_MAX = 100
"""Of one section: each has a number of its own in the names of counters, where 127 is the last one."""
AggregateFunction = Literal["count", "sum", "avg", "min", "max", "latest", "count_distinct", "share"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Entity(Part):
    """A source table under the name that this context gives it."""

    source: Name
    table: str = Field(description="schema-qualified, e.g. public.orders")
    key: list[Column] = Field(min_length=1, description="primary key columns, in order")
    partition_key: list[Column] = Field(
        default_factory=list,
        description="Cassandra and Scylla: the leading key columns that make up the partition key; default: the first",
    )
    types: dict[Column, str] = Field(default_factory=dict, description="declared types where the wire is ambiguous")
    filter: str | None = Field(default=None, description="only rows for which this expression is true exist here")


class FieldSpec(Part):
    """One value of a bundle: a column, renamed or masked if wanted, or a derived value."""

    name: Name
    column: Column | None = None
    value: str | None = Field(default=None, description="expression over the row's columns")
    mask: Mask | None = None
    default: Any = None
    """Takes the place of null."""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data, "column": data}
        if isinstance(data, dict) and "column" not in data and "value" not in data and "name" in data:
            return {**data, "column": data["name"]}
        return data

    @model_validator(mode="after")
    def _column_or_value(self) -> FieldSpec:
        if self.column is not None and self.value is not None:
            raise ValueError("give either 'column' or 'value', not both")
        if self.column is None and self.value is None:
            raise ValueError("'column' or 'value' stands here without anything; fill it in or take it out")
        return self


class Aggregate(Part):
    """One aggregate over the rows of a section: `{avg: dep_delay, round: 2}`, `count`, `{latest: status, by: at}`."""

    function: AggregateFunction
    column: Column | None = None
    by: Column | None = Field(default=None, description="for latest: the greatest value of this column wins")
    where: str | None = Field(default=None, description="only rows for which this expression is true count")
    round: int = Field(default=6, ge=0, le=18, description="decimal places of avg and share")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        functions = AggregateFunction.__args__  # type: ignore[attr-defined]
        if isinstance(data, str):
            return {"function": data}
        if isinstance(data, dict) and "function" not in data:
            named = [name for name in data if name in functions]
            if len(named) > 1:
                raise ValueError(f"{' and '.join(named)} are two aggregates; give each a name of its own")
            if named:
                rest = {key: value for key, value in data.items() if key != named[0]}
                column = data[named[0]]
                return {**rest, "function": named[0], **({"column": column} if column not in (None, True) else {})}
        return data

    @model_validator(mode="after")
    def _complete(self) -> Aggregate:
        if self.function not in ("count", "share") and self.column is None:
            raise ValueError(f"{self.function} needs a column, e.g. {{{self.function}: amount}}")
        if self.function == "share" and (self.where is not None or self.column is not None):
            raise ValueError("share takes neither column nor where: it is the group's part of all rows")
        if self.function == "latest" and self.by is None:
            raise ValueError("latest needs 'by', the column that says which row is the latest")
        return self


class Section(Part):
    """Rows of another entity joined into the bundle.

    `on` maps columns of this section's entity to columns of the parent's. kind `one` gives an object or null; `many`
    a list of objects; `many` with aggregates one object, and with group_by a list of objects, one per group.
    """

    entity: Name
    kind: Literal["one", "many"] = "one"
    on: dict[Column, Column] = Field(min_length=1, description="this section's column: the parent's column")
    fields: list[FieldSpec] = Field(default_factory=list)
    sections: dict[Name, Section] = Field(default_factory=dict)
    filter: str | None = None
    order_by: list[str] = Field(default_factory=list, description="columns; a leading '-' is descending")
    limit: int | None = Field(default=None, ge=1, le=1000)
    group_by: list[Column] = Field(default_factory=list)
    aggregates: dict[Name, Aggregate] = Field(default_factory=dict, max_length=AGGREGATES_MAX)
    compose: Compose = "auto"


class Text(Part):
    """What is embedded and what a model reads: a sandboxed Jinja template over the bundle, and a token budget."""

    template: str
    token_budget: int | None = Field(default=None, ge=1)
    priorities: list[str] = Field(default_factory=list, description="sections, most important first")


class Serving(Part):
    """What a lookup promises."""

    max_age_ms: int = Field(default=5000, ge=1, description="older than this is labelled stale")
    budget_ms: int = Field(default=20, ge=1, le=60000)
    time_to_live_s: int | None = Field(default=None, ge=1, le=315_360_000, description="at most ten years")
    default: dict[str, Any] | None = Field(default=None, description="the deterministic fallback bundle")


class ContextSpec(Part):
    """One context: the root entity, its fields, its sections."""

    context: Name
    version: int = Field(ge=1, le=999_999_999)
    description: str = ""
    root: Name
    entities: dict[Name, Entity] = Field(min_length=1)
    fields: list[FieldSpec] = Field(min_length=1)
    sections: dict[Name, Section] = Field(default_factory=dict)
    text: Text | None = None
    serving: Serving = Field(default_factory=Serving)
    tenant: Column | None = Field(default=None, description="column of the root entity that names the tenant")


Section.model_rebuild()
