"""What the client reads of the HTTP interface equals what the interface wrote, whatever a bundle brings along."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from pipeline.client.asking import asked, check_context, check_keys
from pipeline.client.bundle import Bundle
from pipeline.client.errors import BadRequest, UnknownContext
from pipeline.client.wire import NotOurs, read_answer, read_answers, read_found, read_past
from pipeline.lookup.answer import Answer, EmbeddingLabel, NotReached, hash_of
from pipeline.lookup.history import PastBundle
from pipeline.lookup.search_answer import Passage, SearchAnswer, SearchHit
from schemas.bundle import SourceState

ODD = [
    b'{"a":"\\ud800"}',
    b'{"a":1e999,"bundle":{"bundle":null}}',
    b'{"bundle":"\\udfff","a":[{"b":"]}\\"{[,\\"bundle\\":"}]}',
    b'{"a":' + b"9" * 5_000 + b',"b":"\\ud800"}',
    b"{}",
]
times = some.none() | some.integers(-(10**15), 10**16)
texts = some.text(max_size=20)
bodies = some.none() | some.sampled_from(ODD) | some.builds(
    lambda value: json.dumps({"value": value}).encode(),
    some.recursive(
        some.none() | some.booleans() | some.floats(allow_nan=False) | some.text(some.characters(), max_size=8),
        lambda inner: some.lists(inner, max_size=3) | some.dictionaries(texts, inner, max_size=3),
        max_leaves=6,
    ),
)  # fmt: skip


@some.composite
def answers(draw: some.DrawFn) -> Answer:
    body = draw(bodies)
    return Answer(
        context="flight",
        key=draw(texts),
        status=draw(some.sampled_from(["fresh", "stale", "partial", "fallback", "missing"])),
        as_of_us=draw(some.dictionaries(texts | some.just("bundle"), times, max_size=3)),
        age_ms=draw(some.dictionaries(texts, some.none() | some.floats(0, 1e12), max_size=3)),
        spec_version=draw(some.integers(1, 10**9)),
        hash=None if body is None else hash_of(body),
        bundle=body,
        embedding=draw(some.none() | some.just(EmbeddingLabel(space="s", state="failing", problem='"bundle":'))),
        sections=draw(some.dictionaries(texts, times, max_size=2)),
        left_out=draw(some.dictionaries(texts, texts, max_size=2)),
        tokens=draw(some.none() | some.integers(0, 10**9)),
        position=draw(some.dictionaries(texts, texts, max_size=2)),
        not_reached=tuple(draw(some.lists(some.builds(NotReached, texts, texts, texts), max_size=2))),
        id=draw(some.none() | texts),
        rung=draw(some.sampled_from(["near", "store", "replica", "last_known", "default"])),
    )


@given(some.lists(answers(), max_size=4))
def test_answers_come_through(given: list[Answer]) -> None:
    expected = [Bundle(answer) for answer in given]
    assert [read_answer(answer.to_json()) for answer in given] == expected
    assert read_answers(b'{"answers":[%b]}' % b",".join(answer.to_json() for answer in given)) == expected


@given(some.lists(answers(), max_size=3), some.booleans())
def test_searches_come_through(given: list[Answer], with_bundles: bool) -> None:
    passage = Passage(start=0, end=1, chunk=None, text='{"bundle":')
    hits = [
        SearchHit(key=a.key, score=0.5, cosine=None, bm25=1.0, passage=passage, moved_on=False, answer=a) for a in given
    ]
    told = SearchAnswer(
        context="flight", space="s", spec_version=1, mode="hybrid", degraded=None, behind_records=None,
        index_age_ms=1.5, dropped=0, hits=hits, with_bundles=with_bundles,
    )  # fmt: skip
    found = read_found(told.to_json())
    bare = [a if with_bundles else msgspec.structs.replace(a, bundle=None) for a in given]
    assert [hit.bundle for hit in found.hits] == [Bundle(answer) for answer in bare]
    assert all(hit.passage == passage for hit in found.hits)


@pytest.mark.parametrize("body", ODD)
def test_the_past_comes_through(body: bytes) -> None:
    past = PastBundle(
        context="flight", key="1", id="x", spec_version=1, written_us=1_700_000_000_000_000,
        sources={"nyc": SourceState("0" * 32, 5)}, sections={"plane": 1_700_000_000_000_000}, left_out={"a": "b"},
        tokens=None, hash=hash_of(body), bundle=body,
    )  # fmt: skip
    read = read_past(past.to_json())
    assert (read.raw, read.hash, read.left_out) == (body, hash_of(body), {"a": "b"})
    assert read.written.timestamp() == 1_700_000_000 and list(read.sections) == ["plane"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"bundle":{"a":"\\ud800"}}', b"[" * 9_999])
def test_what_is_not_ours_is_refused(body: bytes) -> None:
    for read in (read_answer, read_answers, read_found, read_past):
        with pytest.raises(NotOurs):
            read(body)


def test_questions() -> None:
    options = asked(5, 7, {"nyc": "a", "other": "b"}, 3, "a, b,,a", ["c.d"])
    assert (options.budget_ms, options.max_age_ms, options.token_budget) == (5.0, 7.0, 3)
    assert (options.positions, options.sections, options.fields) == (("a", "b"), ("a", "b"), ("c.d",))
    wrong: Any = object()
    with pytest.raises(BadRequest) as refused:
        asked(float("inf"), wrong, [wrong], True, [wrong], [b"x"])  # type: ignore[list-item]
    assert len(refused.value.mistakes) == 6
    for name in ("Flight", "flight/1", "flight:search", "", "ß"):
        with pytest.raises(UnknownContext):
            check_context(name)
    with pytest.raises(BadRequest, match="list of texts"):
        check_keys("123")
