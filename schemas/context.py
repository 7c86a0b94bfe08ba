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
Stage = Literal["captured", "in_kafka", "applied", "assembled", "in_redis", "embedded", "in_faiss"]
"""Where a change has come, in the order of the path."""
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
    """What is embedded and what a model reads: a sandboxed Jinja template over the bundle, and a token budget.

    `tokenizer` counts the tokens of every section when a bundle is written: `words` (words and signs), the path of a
    tokenizer.json, or a model's name or directory as `embedding` finds it. Without one, words and signs are counted
    when somebody asks.
    """

    template: str
    tokenizer: str | None = Field(default=None, min_length=1, max_length=500)
    token_budget: int | None = Field(default=None, ge=1)
    priorities: list[str] = Field(default_factory=list, description="sections, most important first")


class Chunks(Part):
    """How long texts are cut into pieces with a vector each: at whole lines, sentences or words, whichever fits first.

    Counted in tokens of the engine's own tokenizer; `overlap_tokens` of the piece before begin the next one.
    """

    tokens_max: int = Field(default=200, ge=8, le=8192)
    overlap_tokens: int = Field(default=20, ge=0, le=1024)
    chunks_max: int = Field(default=64, ge=1, le=1000, description="what is behind the last one is not embedded")

    @model_validator(mode="after")
    def _moves_on(self) -> Chunks:
        if self.overlap_tokens > self.tokens_max // 2:
            raise ValueError("overlap_tokens may be half of tokens_max at most")
        return self


class Gate(Part):
    """What a new embedding space must show before it takes the serving one's place.

    `evaluation` names a file of labelled queries, one JSON object per line, relative to the spec's file:
    `{"query": "…", "relevant": {"KEY": 3, "KEY": 1}}` or `{"query": "…", "relevant": ["KEY"]}`.
    """

    evaluation: str | None = None
    k: int = Field(default=10, ge=1, le=100)
    loss_max: float = Field(default=0.01, ge=0, le=1, description="of nDCG@k and recall@k against the serving space")
    index_recall_min: float = Field(default=0.95, ge=0, le=1, description="recall@k of the index against exact search")
    query_p99_ms_max: float | None = Field(default=None, gt=0, description="embedding a query and searching")


class Embedding(Part):
    """The embedding space of a context: a change here starts a new space beside the serving one.

    `model` is a name that the engine knows or the path of a directory; `template` defaults to the template of `text`.
    `filters` are fields of the bundle, with dots for fields of sections, by which a search may be narrowed.
    """

    engine: Literal["sentence-transformers", "onnx", "openai", "hash"]
    model: str = Field(default="", max_length=500)
    revision: str | None = Field(default=None, max_length=200)
    precision: Literal["fp32", "int8"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    dimension: int | None = Field(default=None, ge=1, le=8192, description="hash and openai; others know their own")
    endpoint: Name | None = Field(default=None, description="openai: an endpoint of the configuration's `embedding`")
    query_prefix: str = Field(default="", max_length=1000)
    document_prefix: str = Field(default="", max_length=1000)
    template: str | None = None
    chunks: Chunks = Field(default_factory=Chunks)
    filters: list[str] = Field(default_factory=list, max_length=32)
    promotion: Literal["automatic", "manual"] = "automatic"
    gate: Gate = Field(default_factory=Gate)

    @model_validator(mode="after")
    def _complete(self) -> Embedding:
        if self.engine == "hash":
            wrong = "hash has no model; take 'model' out" if self.model else None
        else:
            wrong = None if self.model else f"{self.engine} needs 'model', a name or the path of a directory"
        if wrong is None and self.engine == "openai" and self.endpoint is None:
            wrong = "openai needs 'endpoint', the name of one under 'embedding: endpoints:' in the configuration"
        if wrong is not None:
            raise ValueError(wrong)
        return self


class Serving(Part):
    """What a lookup promises."""

    max_age_ms: int = Field(default=5000, ge=1, description="older than this is labelled stale")
    stage_budgets_ms: dict[Stage, Annotated[int, Field(ge=1, le=86_400_000)]] = Field(
        default_factory=dict, description="from the commit to a stage's end; default: a share of max_age_ms"
    )
    budget_ms: int = Field(default=20, ge=1, le=60000)
    time_to_live_s: int | None = Field(default=None, ge=1, le=315_360_000, description="at most ten years")
    default: dict[str, Any] | None = Field(default=None, description="the deterministic fallback bundle")


class History(Part):
    """Former bundles are kept for `retention_s` after something newer took their place, so that the id of an answer
    leads back to its bytes. `lineage`: a bundle also names the rows that it was made from."""

    retention_s: int = Field(ge=1, le=31_536_000, description="at most a year")
    lineage: bool = False


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
    embedding: Embedding | None = None
    serving: Serving = Field(default_factory=Serving)
    history: History | None = None
    tenant: Column | None = Field(default=None, description="column of the root entity that names the tenant")

    @model_validator(mode="after")
    def _something_to_embed(self) -> ContextSpec:
        if self.embedding is not None and self.embedding.template is None and self.text is None:
            raise ValueError("'embedding' needs a text: give 'text: {template: …}', or a template of its own")
        return self

    @property
    def names_rows(self) -> bool:
        """Whether bundles name the rows that they were made from."""
        return self.history is not None and self.history.lineage

    @property
    def embedded_template(self) -> str | None:
        """The template of what is embedded; None without an embedding."""
        if self.embedding is None:
            return None
        return self.embedding.template or (self.text.template if self.text is not None else None)


Section.model_rebuild()
