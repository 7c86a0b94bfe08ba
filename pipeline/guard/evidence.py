"""The file that a change of a task's model has to bring: what was compared, on what, and what came of it.

`ctxpipe eval compare` writes it, the loader of the routing file demands it. It is committed beside the routing file,
which names its sha256; so nobody reads another comparison than the one that was reviewed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.core.section import ConfigPart

Verdict = Literal["better", "not_better", "inconclusive"]


class Compared(ConfigPart):
    """One side. `results_sha256`: of the results file of its run. `revision` "" where the endpoint has none."""

    endpoint: str
    model: str
    revision: str = ""
    results_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Limit(ConfigPart):
    """A limit of non-inferiority: the one-sided 95% bound of what was observed has to keep it. `measure`: latency_ms,
    cost or malformed; `unit`: of `limit` and `bound` (ms, the price table's currency, share). Differences are
    candidate less active."""

    measure: str
    limit: float
    observed: float | None
    bound: float | None
    passed: bool


class Evidence(ConfigPart):
    """`claim_points`: 0 for "better", else by how many points of 100 at least. `difference`, `low` and `high` are in
    points: the paired mean, candidate less active, and its one-sided 95% lower and two-sided upper bound. `passed`:
    verdict better and every limit kept."""

    version: Literal[1] = 1
    made_on: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    task: str
    suite: str
    suite_digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="of cases and fixtures")
    active: Compared
    candidate: Compared
    metric: str
    claim_points: float = Field(ge=0, le=100)
    method: Literal["mcnemar", "sign_flip", "bootstrap", "sequence"]
    pairs: int = Field(ge=0)
    groups: int = Field(ge=0)
    difference: float
    low: float
    high: float
    p_value: float = Field(ge=0, le=1)
    verdict: Verdict
    limits: tuple[Limit, ...] = ()
    passed: bool
    why: str = Field(description="the verdict in one sentence")
