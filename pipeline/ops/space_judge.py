"""A new embedding space against the one that serves: quality over labelled queries, latency, cost, and a verdict.

What the judgement found is kept as JSON with the space, so that a promotion can be explained later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from pipeline.core.clock import Clock
from pipeline.core.errors import Retryable
from pipeline.embedding.engine import Engine, Throttled
from pipeline.ops.space_evaluation import Evaluation
from pipeline.ops.space_measures import (
    ExactVectors,
    Interval,
    index_recall_at,
    ndcg_at,
    paired_interval,
    percentile,
    recall_at,
)
from pipeline.stores.spaces import Hit
from schemas.context import Gate

if TYPE_CHECKING:
    import numpy

    Vector: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]

Decision: TypeAlias = Literal["promote", "refuse", "needs a person"]

WORST_QUERIES = 10
ASKED_AGAIN = 8
WARM_UP_QUERIES = 3
SMALL = 1e-12
"""Two means of the same numbers may differ by the order of adding."""

Search = Callable[["Vector", int], Sequence[Hit]]
"""VectorIndex.search, with its first two arguments."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A space with all that answers a query in it. `index` None: it has none here, and its recall stays unknown.

    `backfill_cost`: of all its texts, None where unknown.
    """

    space: str
    engine: Engine
    vectors: ExactVectors
    index: Search | None = None
    backfill_cost: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One query in one space. `ranking` by exact search."""

    query: str
    ranking: list[str]
    ndcg: float
    recall: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A space over all queries: means, milliseconds for embedding a query and searching, costs in the endpoint's
    currency (None: unknown). `index_recall` is against exact search, None where there was no index."""

    space: str
    engine: str
    model: str
    dimension: int
    bundles: int
    ndcg: float
    recall: float
    index_recall: float | None
    query_p50_ms: float
    query_p99_ms: float
    cost_per_query: float | None
    backfill_cost: float | None
    answers: list[Answered] = field(repr=False, default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` of a refusal, or of why a person has to decide; of a promotion what speaks for it."""

    decision: Decision
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """`ndcg` and `recall` are candidate minus serving, with where the difference lies; None without a serving space or
    without queries. `missing_labels`: labelled keys that are in neither space."""

    verdict: Verdict
    gate: Gate
    candidate: Measured | None
    serving: Measured | None
    ndcg: Interval | None = None
    recall: Interval | None = None
    missing_labels: int = 0
    evaluation: Evaluation | None = None


async def judge(
    candidate: Contestant,
    serving: Contestant | None,
    evaluation: Evaluation | None,
    gate: Gate,
    clock: Clock,
    seed: int = 0,
) -> Judgement:
    """Asks every query in both spaces; the engines run in a thread.

    Raises Fatal, Poison or Retryable where an engine fails.
    """
    if evaluation is None:
        return unjudged(gate)
    ours = await measure(candidate, evaluation, gate.k, clock)
    theirs = await measure(serving, evaluation, gate.k, clock) if serving is not None else None
    missing = _missing_labels(evaluation, [one for one in (candidate, serving) if one is not None])
    verdict = decide(gate, ours, theirs, missing, evaluation.labels)
    if theirs is None:
        return Judgement(verdict, gate, ours, None, missing_labels=missing, evaluation=evaluation)
    pairs = list(zip(ours.answers, theirs.answers, strict=True))
    ndcg = paired_interval([mine.ndcg - other.ndcg for mine, other in pairs], seed)
    recall = paired_interval([mine.recall - other.recall for mine, other in pairs], seed)
    return Judgement(verdict, gate, ours, theirs, ndcg, recall, missing, evaluation)


def unjudged(gate: Gate) -> Judgement:
    """Of a context without labelled queries."""
    reason = "the context's gate names no evaluation file: nothing says whether it is better"
    return Judgement(Verdict("needs a person", [reason]), gate, None, None)


async def measure(contestant: Contestant, evaluation: Evaluation, k: int, clock: Clock) -> Measured:
    """Each query by itself, as searches come; exact search for the quality, the index for what it finds of that."""
    import numpy

    for query in evaluation.queries[:WARM_UP_QUERIES]:
        await _ask(contestant, query.query, k, clock)
    asked = [await _ask(contestant, query.query, k, clock) for query in evaluation.queries]
    vectors = numpy.stack([one.vector for one in asked])
    exact = await asyncio.to_thread(contestant.vectors.search, vectors, k)
    answers, found = [], []
    for query, one, best in zip(evaluation.queries, asked, exact, strict=True):
        ranking = [key for key, _ in best]
        ndcg, recall = ndcg_at(ranking, query.relevant, k), recall_at(ranking, query.relevant, k)
        answers.append(Answered(query.query, ranking, ndcg, recall))
        scores = {key: contestant.vectors.score(one.vector, key) for key in one.hits}
        found.append(index_recall_at(one.hits, best, scores))
    times_ms, costs = [one.duration_s * 1000 for one in asked], [one.cost for one in asked]
    identity = contestant.engine.identity
    return Measured(
        space=contestant.space,
        engine=identity.engine,
        model=identity.model,
        dimension=identity.dimension,
        bundles=len(contestant.vectors.keys),
        ndcg=_mean([answer.ndcg for answer in answers]),
        recall=_mean([answer.recall for answer in answers]),
        index_recall=_mean(found) if contestant.index is not None else None,
        query_p50_ms=percentile(times_ms, 0.5),
        query_p99_ms=percentile(times_ms, 0.99),
        cost_per_query=None if None in costs else _mean([cost or 0.0 for cost in costs]),
        backfill_cost=contestant.backfill_cost,
        answers=answers,
    )


def decide(gate: Gate, candidate: Measured, serving: Measured | None, missing: int, labels: int) -> Verdict:
    """What the gate says of these figures."""
    if labels and missing == labels:
        return Verdict("needs a person", ["none of the labelled keys is in the spaces: the file is of other data"])
    reasons = []
    if serving is not None:
        for name in ("ndcg", "recall"):
            ours, theirs = getattr(candidate, name), getattr(serving, name)
            if theirs - ours > gate.loss_max + SMALL:
                reasons.append(
                    f"{_NAMES[name]}@{gate.k} {ours:.4f} is {theirs - ours:.4f} below the serving space's {theirs:.4f}"
                    f"; the gate allows {gate.loss_max:g}"
                )
    if candidate.index_recall is None:
        reasons.append("the index's recall was not measured: there was no index of the space")
    elif candidate.index_recall < gate.index_recall_min - SMALL:
        reasons.append(
            f"the index finds {candidate.index_recall:.4f} of the exact answers; the gate asks for "
            f"{gate.index_recall_min:g}"
        )
    if gate.query_p99_ms_max is not None and candidate.query_p99_ms > gate.query_p99_ms_max:
        reasons.append(
            f"a query takes {candidate.query_p99_ms:.1f} ms (p99); the gate allows {gate.query_p99_ms_max:g} ms"
        )
    if reasons:
        return Verdict("refuse", reasons)
    return Verdict("promote", [_in_favour(gate, candidate, serving)])


def evidence_of(judgement: Judgement, now_us: int, about: Mapping[str, Any]) -> bytes:
    """JSON for SpaceRecord.evidence. `about`: what else was known, e.g. the space's proof and the spec's version."""
    evaluation, sides = judgement.evaluation, {}
    for name in ("candidate", "serving"):
        side: Measured | None = getattr(judgement, name)
        sides[name] = None if side is None else {k: v for k, v in asdict(side).items() if k != "answers"}
    found = {
        "at_us": now_us,
        "decision": judgement.verdict.decision,
        "reasons": judgement.verdict.reasons,
        "gate": judgement.gate.model_dump(mode="json"),
        "evaluation": None
        if evaluation is None
        else {
            "file": evaluation.name,
            "sha256": evaluation.digest,
            "queries": len(evaluation.queries),
            "labels": evaluation.labels,
            "missing_labels": judgement.missing_labels,
        },
        **sides,
        "difference": {
            name: None if interval is None else asdict(interval)
            for name, interval in (("ndcg", judgement.ndcg), ("recall", judgement.recall))
        },
        "worst_queries": worst_queries(judgement),
        **about,
    }
    return msgspec.json.encode(found)


def worst_queries(judgement: Judgement, most: int = WORST_QUERIES) -> list[dict[str, Any]]:
    """Where the candidate loses most, worst first."""
    ours, theirs = judgement.candidate, judgement.serving
    if ours is None or theirs is None:
        return []
    pairs = [
        (mine, other)
        for mine, other in zip(ours.answers, theirs.answers, strict=True)
        if mine.ndcg < other.ndcg or mine.recall < other.recall
    ]
    pairs.sort(key=lambda pair: (pair[0].ndcg - pair[1].ndcg, pair[0].query))
    return [
        {
            "query": mine.query,
            "ndcg": round(mine.ndcg, 6),
            "ndcg_serving": round(other.ndcg, 6),
            "recall": round(mine.recall, 6),
            "recall_serving": round(other.recall, 6),
            "first": mine.ranking[:3],
            "first_serving": other.ranking[:3],
        }
        for mine, other in pairs[:most]
    ]


_NAMES = {"ndcg": "nDCG", "recall": "recall"}


@dataclass(frozen=True, slots=True)
class _Asked:
    vector: Vector
    hits: list[str]
    duration_s: float
    cost: float | None


async def _ask(contestant: Contestant, query: str, k: int, clock: Clock) -> _Asked:
    """Waits where the provider asks to; what it waits is not in the duration."""
    for attempt in range(ASKED_AGAIN):
        try:
            return await asyncio.to_thread(_ask_at_once, contestant, query, k, clock)
        except Retryable as error:
            if attempt == ASKED_AGAIN - 1:
                raise
            await clock.sleep(error.retry_after_s if isinstance(error, Throttled) else min(2.0**attempt, 30.0))
    raise AssertionError("the last attempt answers or raises")


def _ask_at_once(contestant: Contestant, query: str, k: int, clock: Clock) -> _Asked:
    started_s = clock.monotonic_s()
    embedded = contestant.engine.embed([query], query=True)
    vector = embedded.vectors[0]
    if contestant.index is not None:
        hits = [hit.key for hit in contestant.index(vector, k)]
    else:
        hits = [key for key, _ in contestant.vectors.search(embedded.vectors, k)[0]]
    return _Asked(vector, hits, clock.monotonic_s() - started_s, embedded.cost)


def _missing_labels(evaluation: Evaluation, contestants: Sequence[Contestant]) -> int:
    known = {key for one in contestants for key in one.vectors.keys}
    return sum(key not in known for query in evaluation.queries for key in query.relevant)


def _in_favour(gate: Gate, candidate: Measured, serving: Measured | None) -> str:
    figures = f"nDCG@{gate.k} {candidate.ndcg:.4f}, recall@{gate.k} {candidate.recall:.4f}"
    if serving is None:
        return f"{figures}; no space serves yet"
    return f"{figures} against {serving.ndcg:.4f} and {serving.recall:.4f} of the serving space"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
