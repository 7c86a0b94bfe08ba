"""A candidate space against the serving one: what a judgement measures, and what the gate makes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy
import pytest

from pipeline.core.clock import SystemClock
from pipeline.core.errors import Poison
from pipeline.embedding.engine import Embedded, Throttled
from pipeline.embedding.hashing import HashEngine
from pipeline.ops.space_evaluation import Evaluation, LabelledQuery
from pipeline.ops.space_judge import Contestant, Measured, decide, evidence_of, judge, worst_queries
from pipeline.ops.space_measures import ExactVectors
from pipeline.stores.spaces import Hit
from schemas.context import Gate
from schemas.vectors import Chunk, VectorRecord

TEXTS = {
    "B744": "Boeing 747 wide-body aircraft with four engines",
    "A388": "Airbus 380 wide-body aircraft with two decks",
    "B738": "Boeing 737 narrow-body aircraft for short flights",
    "C172": "Cessna 172 small propeller aircraft",
    "LAX": "Los Angeles airport on the west coast",
    "JFK": "New York airport on the east coast",
}
QUERIES = [
    LabelledQuery("wide-body aircraft", {"B744": 2.0, "A388": 2.0}),
    LabelledQuery("west coast airport", {"LAX": 2.0, "JFK": 1.0}),
    LabelledQuery("small propeller", {"C172": 1.0}),
]
EVALUATION = Evaluation("queries.jsonl", "d" * 64, QUERIES)


class Clock(SystemClock):
    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)


def contestant(space: str, dimension: int, engine: Any = None, **more: Any) -> Contestant:
    engine = engine or HashEngine(dimension)
    embedded = engine.embed(list(TEXTS.values()))
    records = {
        key: VectorRecord(
            space=space,
            counter=1,
            bundle_hash="b",
            text_hash="t",
            dimension=dimension,
            chunks=[Chunk(0, 1)],
            vectors=embedded.vectors[number].astype("<f4").tobytes(),
        )
        for number, key in enumerate(TEXTS)
    }
    vectors = ExactVectors(records.items(), dimension)

    def index(vector: Any, k: int) -> list[Hit]:
        found = vectors.search(vector[numpy.newaxis], k)[0]
        return [Hit(key, score, Chunk(0, 1), 0, "t", "b", 1) for key, score in found]

    return Contestant(space, engine, vectors, **{"index": index, "backfill_cost": 0.0, **more})


async def test_a_better_space_is_promoted_with_its_figures() -> None:
    found = await judge(contestant("new", 384), contestant("old", 2), EVALUATION, Gate(k=2), Clock())
    assert found.verdict.decision == "promote"
    assert found.candidate is not None and found.serving is not None and found.ndcg is not None
    assert found.candidate.ndcg == pytest.approx(1.0)
    assert found.serving.ndcg < 0.9
    assert found.ndcg.mean == pytest.approx(found.candidate.ndcg - found.serving.ndcg)
    assert found.candidate.index_recall == 1.0
    assert 0 < found.candidate.query_p50_ms <= found.candidate.query_p99_ms
    assert worst_queries(found) == []


async def test_a_worse_space_is_refused_and_its_worst_queries_are_named() -> None:
    found = await judge(contestant("new", 2), contestant("old", 384), EVALUATION, Gate(k=2), Clock())
    assert found.verdict.decision == "refuse"
    assert "nDCG@2" in found.verdict.reasons[0] and "the gate allows 0.01" in found.verdict.reasons[0]
    assert found.ndcg is not None and found.ndcg.mean < 0
    worst = worst_queries(found)
    assert worst and worst[0]["ndcg"] - worst[0]["ndcg_serving"] == min(
        loss["ndcg"] - loss["ndcg_serving"] for loss in worst
    )
    shown = json.loads(evidence_of(found, 77, {"spec_version": 3}))
    assert (shown["decision"], shown["at_us"], shown["spec_version"]) == ("refuse", 77, 3)
    assert shown["evaluation"] == {
        "file": "queries.jsonl",
        "sha256": "d" * 64,
        "queries": 3,
        "labels": 5,
        "missing_labels": 0,
    }
    assert (shown["candidate"]["space"], shown["serving"]["space"]) == ("new", "old")
    assert shown["difference"]["ndcg"]["low"] <= shown["difference"]["ndcg"]["mean"]


async def test_an_index_that_loses_answers_and_one_that_is_not_there() -> None:
    lossy = contestant("new", 384, index=lambda vector, k: [])
    found = await judge(lossy, contestant("old", 384), EVALUATION, Gate(k=2), Clock())
    assert found.verdict.decision == "refuse"
    assert found.verdict.reasons == ["the index finds 0.0000 of the exact answers; the gate asks for 0.95"]
    without = await judge(contestant("new", 384, index=None), None, EVALUATION, Gate(k=2), Clock())
    assert "was not measured" in without.verdict.reasons[0]


async def test_without_labelled_queries_a_person_decides() -> None:
    found = await judge(contestant("new", 384), contestant("old", 384), None, Gate(), Clock())
    assert found.verdict.decision == "needs a person"
    assert "no evaluation file" in found.verdict.reasons[0]
    assert json.loads(evidence_of(found, 1, {}))["candidate"] is None
    foreign = Evaluation("f", "d", [LabelledQuery("x", {"unknown": 1.0})])
    found = await judge(contestant("new", 384), contestant("old", 384), foreign, Gate(), Clock())
    assert found.verdict.decision == "needs a person" and found.missing_labels == 1


async def test_a_throttled_engine_is_asked_again_and_its_cost_is_unknown_where_a_price_is() -> None:
    class Throttling(HashEngine):
        refusals = 2

        def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
            if query and self.refusals:
                self.refusals -= 1
                raise Throttled("slow down", 7.0)
            found = super().embed(texts, query=query)
            return Embedded(found.vectors, found.tokens, found.tokens_cut, None)

    clock = Clock()
    engine = Throttling(64)
    found = await judge(contestant("new", 64, engine), None, EVALUATION, Gate(k=2), clock)
    assert clock.slept == [7.0, 7.0]
    assert found.candidate is not None and found.candidate.cost_per_query is None


async def test_an_engine_that_refuses_a_query_is_an_error() -> None:
    class Refusing(HashEngine):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
            if query:
                raise Poison("no")
            return super().embed(texts)

    with pytest.raises(Poison):
        await judge(contestant("new", 64, Refusing(64)), None, EVALUATION, Gate(), Clock())


def test_the_gate_counts_point_estimates_beyond_what_it_allows() -> None:
    base = Measured("s", "hash", "m", 8, 6, 0.8, 0.7, 0.99, 1.0, 20.0, 0.0, 0.0)
    gate = Gate(loss_max=0.01, query_p99_ms_max=20)
    assert decide(gate, replace(base, ndcg=0.79, recall=0.69), base, 0, 5).decision == "promote"
    refused = decide(gate, replace(base, ndcg=0.7899, recall=0.6, query_p99_ms=20.1), base, 0, 5)
    assert refused.decision == "refuse" and len(refused.reasons) == 3
    assert "a query takes 20.1 ms (p99)" in refused.reasons[2]
    assert decide(gate, replace(base, index_recall=0.94), base, 0, 5).decision == "refuse"
    assert decide(gate, replace(base, query_p99_ms=99.0), None, 0, 5).decision == "refuse"
