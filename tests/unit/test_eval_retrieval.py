"""Retrieval cases: production's search over a suite's bundles, its order and its ties, tenants and filters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.clock import SystemClock
from pipeline.evaluation.world import WorldError, forget, retrieved
from pipeline.evaluation.world.corpus import Corpus
from pipeline.lookup.ranking import RANK_CONSTANT
from pipeline.lookup.search import UnknownBundle
from tests.support.eval_world import SmallSuite, case, small_suite

PRODUCTS = [
    ("p3", "red leather boots", 1999, "acme"),
    ("p1", "red leather boots", 1999, "acme"),
    ("p2", "red leather boots", 1999, "other"),
    ("p4", "blue felt hat", 2001, "acme"),
    ("p5", "green rubber boots for rainy days", 2010, "acme"),
    ("p6", "", None, "acme"),
]


@pytest.fixture
def suite(tmp_path: Path) -> SmallSuite:
    forget()
    made = small_suite(tmp_path)
    made.write("products.jsonl", [_line(*product) for product in PRODUCTS])
    return made


def _line(key: str, title: str, year: int | None, owner: str) -> dict[str, Any]:
    data = {"id": key, "title": title, "year": year, "owner": owner}
    return {"context": "product", "key": key, "data": data}


async def hits(suite: SmallSuite, conditions: dict[str, Any] | None = None, **asked: Any) -> list[tuple[str, float]]:
    source = {"bundles": "products.jsonl"}
    return await retrieved(
        suite, case(kind="retrieval", context=source, input=asked, conditions=conditions or {}), SystemClock()
    )


@pytest.mark.parametrize("mode", ["auto", "hybrid", "vector", "lexical"])
async def test_exact_ties_are_in_the_order_of_keys(suite: SmallSuite, mode: str) -> None:
    found = await hits(suite, text="red leather boots", mode=mode, k=4)
    assert [key for key, _ in found][:3] == ["p1", "p2", "p3"]
    if mode in ("vector", "lexical"):
        assert found[0][1] == found[1][1] == found[2][1]
    else:
        assert found[0][1] == pytest.approx(2 / (RANK_CONSTANT + 1), rel=1e-12)


async def test_filters_tenants_and_the_least_score_narrow(suite: SmallSuite) -> None:
    asked = {"text": "red leather boots", "k": 10}
    assert {key for key, _ in await hits(suite, **asked, filter={"year": {"ge": 2000}})} == {"p4", "p5"}
    assert "p2" not in [key for key, _ in await hits(suite, {"tenant": "acme"}, **asked)]
    assert [key for key, _ in await hits(suite, {"tenant": "other"}, **asked)] == ["p2"]
    assert [key for key, _ in await hits(suite, text="red leather boots of 1999", mode="vector", min_score=0.99)] == [
        "p1",
        "p2",
        "p3",
    ]


async def test_more_like_a_bundle_leaves_out_itself(suite: SmallSuite) -> None:
    assert [key for key, _ in await hits(suite, key="p1", k=2)] == ["p2", "p3"]
    with pytest.raises(UnknownBundle):
        await hits(suite, key="p99")


async def test_a_log_is_searched_as_the_pipeline_leaves_it(suite: SmallSuite) -> None:
    def record(offset: int, key: str, row: Any) -> dict[str, Any]:
        told = {"version": "ctxpipe-test", "connector": "postgresql", "name": "shop", "snapshot": "false", "db": "d"}
        told |= {"schema": "public", "table": "products", "txId": 1, "lsn": offset + 1, "ts_ms": 1, "ts_us": 1}
        value = {"before": None, "after": row, "source": {**told, "sequence": f'["{offset}","{offset}"]'}}
        value |= {"op": "d" if row is None else "u", "ts_ms": 1}
        return {
            "topic": "shop.public.products",
            "partition": 0,
            "offset": offset,
            "timestamp_ms": 1,
            "key": {"id": key},
            "value": value,
        }

    row = {"title": "red boots", "year": 1999, "owner": "acme"}
    lines = [record(0, "a", {**row, "id": "a"}), record(1, "b", {**row, "id": "b"}), record(2, "a", None)]
    suite.write("log.jsonl", lines)
    for until, expected in ((2, ["a", "b"]), (3, ["b"])):
        asked = case(
            kind="retrieval", context={"events": "log.jsonl", "until": until}, input={"text": "boots", "mode": "vector"}
        )
        assert [key for key, _ in await retrieved(suite, asked)] == expected


async def test_one_corpus_is_indexed_once(suite: SmallSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    begin = Corpus.__init__

    def counted(self: Corpus, *arguments: Any) -> None:
        made.append(1)
        begin(self, *arguments)

    monkeypatch.setattr(Corpus, "__init__", counted)
    for text in ("boots", "hat"):
        await hits(suite, text=text)
    assert len(made) == 1
    forget()
    await hits(suite, text="hat")
    assert len(made) == 2


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"text": "x", "kk": 3}, "c1: input: 'kk' is no part of a search; known are text, vector"),
        ({"text": "x", "context": "prodct"}, "c1: input: no context 'prodct' in the suite; did you mean product?"),
        ({"text": "x", "context": "order"}, "c1: input: context order declares no embedding; it is looked up by key"),
        ({}, "c1: input: give one of "),
        ({"text": "x", "filter": {"yaer": 1}}, "c1: input: filter: the spec marks no field 'yaer'"),
        ({"text": "x", "k": 0, "min_score": 7}, "c1: input: k is 1 to 1,000, not 0"),
    ],
)
async def test_what_is_no_search_is_the_suites_mistake(suite: SmallSuite, asked: dict[str, Any], told: str) -> None:
    with pytest.raises(WorldError) as error:
        await hits(suite, **asked)
    assert told in str(error.value)


async def test_a_package_that_is_missing_is_told_with_its_command(
    suite: SmallSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tantivy", None)
    with pytest.raises(WorldError, match=r"pip install 'ctxpipe\[search\]'"):
        await hits(suite, text="hat")
