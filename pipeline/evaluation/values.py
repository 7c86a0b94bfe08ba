"""What passes between the parts of an evaluation: cases as written, what a flow is given, and what came of it.

suite → cases → (world, models, flow) → checks → results → gate, report, comparison
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import Field

from pipeline.client import AsyncClient
from pipeline.core.clock import Clock
from pipeline.core.section import ConfigPart
from pipeline.guard.guard import Guard

Kind = Literal["replay", "retrieval", "trace", "output", "malformed", "degraded", "latency"]
KINDS: tuple[Kind, ...] = ("replay", "retrieval", "trace", "output", "malformed", "degraded", "latency")

Twin = Literal["redelivered", "reordered", "restarted"]
"""The same log told another way: batches again, partitions interleaved otherwise, a crash before every offset."""


class ContextSource(ConfigPart):
    """Where a case's context comes from: either `events` (a log that goes through the pipeline) or `bundles`."""

    events: str | None = Field(default=None, description="file of a log, relative to the suite")
    bundles: str | None = Field(default=None, description="file of ready bundles, relative to the suite")
    until: int | None = Field(default=None, ge=0, description="so many records of the log; all where left out")


class Conditions(ConfigPart):
    """What goes wrong around the flow. All times are of the virtual clock.

    `store`: down refuses, frozen never answers. `store_delay_ms` and `fragment_delay_ms` are added to each read.
    `answers`: of an endpoint, names of what it does instead of answering from a recording, one per request and the last
    one for all that follow: those of `pipeline.guard.faults` (`error_500`, `hang`, …), `recorded`, or `raw:` and a file
    of the suite that holds the body as it came. `delay_ms`: by endpoint, before its answer. `age_ms`: how old the
    context is when it is asked for. `tenant`: whose credential the flow's client has. `warm`: lookups had seen every
    bundle before the store fell ill, so that what was last known stands in for it; else only its default can.
    """

    store: Literal["up", "down", "frozen"] = "up"
    store_delay_ms: float = Field(default=0, ge=0)
    fragment_delay_ms: float = Field(default=0, ge=0)
    answers: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    delay_ms: dict[str, float] = Field(default_factory=dict)
    breakers_open: tuple[str, ...] = ()
    age_ms: float = Field(default=0, ge=0)
    tenant: str | None = None
    warm: bool = False


class Expectation(ConfigPart):
    """One check by its name, with what it needs; which names there are and what each takes: `checks`."""

    check: str
    path: str | None = Field(default=None, description="a JSON Pointer (RFC 6901) into the output; the whole if none")
    value: Any = None
    tolerance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    k: int | None = Field(default=None, ge=1)


class Case(ConfigPart):
    """One line of a suite. `group` is what cases are not independent within (a tenant, an entity): comparisons draw
    groups, not cases; the case's own id where left out. `input` is what the flow gets; of a retrieval case the query,
    of a replay case nothing. `why` says in one sentence what a failure would mean to a user."""

    id: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")
    kind: Kind
    why: str = ""
    group: str | None = None
    tags: tuple[str, ...] = ()
    context: ContextSource = Field(default_factory=ContextSource)
    input: dict[str, Any] = Field(default_factory=dict)
    conditions: Conditions = Field(default_factory=Conditions)
    twins: tuple[Twin, ...] = ()
    expect: tuple[Expectation, ...] = Field(min_length=1)


class Tools(Protocol):
    """What the flow may do in the world; calls are part of the trace, in their order."""

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True, slots=True)
class Given:
    """What a flow under test is given beside the case's input.

    `context` is the client that it has in production too, answered here from the case's bundles or replayed events.
    `guard` asks models, here from recordings and scripted faults. `clock` is the only clock: it moves when everybody
    waits.
    """

    context: AsyncClient
    guard: Guard
    tools: Tools
    clock: Clock


Flow = Callable[[Mapping[str, Any], Given], Awaitable[Any]]
"""A flow under test: the case's input → an output that JSON can hold. What it raises is a failure of the case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that the flow did. `what`: "context" (name is the context), "search", "model" (the task), "tool" (the
    tool). `asked` and `came` are JSON; of context: the key and options, then status, rung and which sections were left
    out; of a model: rung, reason, endpoint, attempts."""

    what: Literal["context", "search", "model", "tool"]
    name: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    came: Mapping[str, Any] = field(default_factory=dict)
    at_ms: float = 0.0
    took_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """All that checks may look at. `output` None with `raised` where the flow raised. `seen` are the bytes of the
    bundles and fragments that it was given, by `context/key`: what citations must be in. `digests` are of a replay: by
    `context/key`, sha256 of the canonical bundle, per twin ("" is the log as it stands). `hits` are of a retrieval.
    `counted`: by how much each metric of ctxpipe rose, with its labels."""

    output: Any = None
    raised: str = ""
    steps: Sequence[Step] = ()
    seen: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hits: Sequence[tuple[str, float]] = ()
    counted: Mapping[str, float] = field(default_factory=dict)
    took_ms: float = 0.0
    cost: float | None = 0.0
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """`told`: one sentence, what was expected and what came; "" where it passed. `score`: 0 to 1, of checks that
    measure (recall, nDCG, …); of others 1 or 0."""

    check: str
    passed: bool
    told: str = ""
    score: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """`digest`: of the case as written; `output_digest`: of output, trace and checks, equal in every run of the same
    code. `measures`: what comparisons are made on: `score` (mean of the checks' scores), `latency_ms` (virtual),
    `cost`, `malformed` (0 or 1: an output had to be refused)."""

    id: str
    kind: Kind
    group: str
    tags: tuple[str, ...]
    digest: str
    passed: bool
    checks: tuple[CheckResult, ...]
    output: Any
    output_digest: str
    steps: tuple[Step, ...] = ()
    measures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a suite. `digest`: of all results, in the order of ids. `suite_digest`: of the suite's cases and
    fixtures; "" where it is not known. `model`: per task the endpoint, model and
    revision that were asked first. `fixtures`: sha256 by file. `harness`: what kept cases from being run at all, a
    sentence each: such a run decides nothing (exit 3)."""

    suite: str
    digest: str
    flow: str
    models: Mapping[str, str]
    fixtures: Mapping[str, str]
    results: tuple[CaseResult, ...]
    harness: tuple[str, ...] = ()
    seconds: float = 0.0
    suite_digest: str = ""
