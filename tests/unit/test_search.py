"""The search service over real texts and vectors in memory: what is found, how it is labelled, how it degrades."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pipeline.core.errors import Fatal, Poison, Retryable
from pipeline.lookup.found_bundles import around_words
from pipeline.lookup.ranking import RANK_CONSTANT, by_vector, fused
from pipeline.lookup.search import SpaceMismatch, UnknownBundle
from pipeline.lookup.search_answer import SearchAnswer
from pipeline.lookup.search_parts import SearchThreads, SearchUnavailable
from pipeline.lookup.search_request import BadSearch, SearchRequest
from pipeline.lookup.service import LookupUnavailable, UnknownContext
from pipeline.stores.spaces import Condition, Hit
from schemas.vectors import Chunk
from tests.support.search_world import SearchWorld
from tests.support.space_records import DIMENSION


@pytest.fixture
async def world() -> AsyncIterator[SearchWorld]:
    made = SearchWorld()
    made.put("1", {"name": "wide body jet", "maker": "Boeing", "year": 1988})
    made.put("2", {"name": "narrow body jet", "maker": "Airbus", "year": 2001})
    made.put("3", {"name": "small propeller plane", "maker": "Cessna", "year": 1975})
    yield made
    made.service.close()


def keys(answer: SearchAnswer) -> list[str]:
    return [hit.key for hit in answer.hits]


async def search(world: SearchWorld, **asked: Any) -> SearchAnswer:
    return await world.service.search("plane", SearchRequest(**asked))


async def test_a_text_is_searched_by_words_and_by_vector(world: SearchWorld) -> None:
    answer = await search(world, text="wide body jets", k=2)
    assert keys(answer) == ["1", "2"] and (answer.mode, answer.degraded) == ("hybrid", None)
    best = answer.hits[0]
    assert best.score == pytest.approx(2 / (RANK_CONSTANT + 1)) and best.cosine is not None and best.bm25 is not None
    assert best.passage is not None and best.passage.text == "wide body jet of Boeing"
    assert json.loads(best.answer.bundle or b"")["maker"] == "Boeing" and best.answer.status == "fresh"
    assert (answer.space, answer.spec_version, answer.dropped, answer.behind_records) == (world.space, 3, 0, 0)
    assert world.bundles.fetches == 1


@pytest.mark.parametrize("mode", ["vector", "lexical"])
async def test_one_search_alone(world: SearchWorld, mode: Any) -> None:
    answer = await search(world, text="propeller plane of Cessna", k=1, mode=mode)
    assert (keys(answer), answer.mode, answer.degraded) == (["3"], mode, None)
    hit = answer.hits[0]
    assert (hit.cosine is None, hit.bm25 is None) == ((False, True) if mode == "vector" else (True, False))
    assert hit.score == (hit.cosine if mode == "vector" else hit.bm25)


async def test_a_vector_of_any_length_is_searched(world: SearchWorld) -> None:
    vector = [float(number) * 7 for number in world.engine.embed(["wide body jet of Boeing"], query=True).vectors[0]]
    answer = await search(world, vector=vector, k=1)
    assert keys(answer) == ["1"] and answer.mode == "vector" and answer.hits[0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mode", ["auto", "vector", "lexical", "hybrid"])
async def test_more_like_a_bundle_leaves_itself_out(world: SearchWorld, mode: Any) -> None:
    answer = await search(world, key="1", mode=mode)
    assert keys(answer)[0] == "2" and "1" not in keys(answer)
    assert answer.mode == ("vector" if mode == "auto" else mode) and answer.degraded is None


async def test_a_bundle_without_a_vector_yet_is_compared_by_its_words(world: SearchWorld) -> None:
    world.put("4", {"name": "a wide body jet", "maker": "Boeing"}, vector=False)
    answer = await search(world, key="4", k=1)
    assert (keys(answer), answer.mode) == (["1"], "lexical") and "no vector" in (answer.degraded or "")
    with pytest.raises(UnknownBundle, match="'9'"):
        await search(world, key="9")


async def test_conditions_and_a_least_score_narrow(world: SearchWorld) -> None:
    old = (Condition("year", "lt", 1990),)
    assert keys(await search(world, text="jet", conditions=old)) == ["1", "3"]
    assert keys(await search(world, text="body jet", conditions=old, mode="lexical")) == ["1"]
    answer = await search(world, text="wide body jet of Boeing", min_score=0.9)
    assert keys(answer) == ["1"], "words alone do not count where a least cosine is asked for"


async def test_a_hit_whose_text_moved_on_is_labelled_and_shows_the_bundle_of_now(world: SearchWorld) -> None:
    world.bundles.put("1", {"name": "glider", "maker": "Boeing"})
    answer = await search(world, text="wide body jet")
    moved = {hit.key: hit.moved_on for hit in answer.hits}
    assert moved == {"1": True, "2": False, "3": False}
    assert json.loads(answer.hits[0].answer.bundle or b"")["name"] == "glider"


async def test_a_bundle_that_changed_and_kept_its_text_has_not_moved_on(world: SearchWorld) -> None:
    world.bundles.put("1", {"name": "wide body jet", "maker": "Boeing", "year": 1989})
    assert not any(hit.moved_on for hit in (await search(world, text="wide")).hits)


async def test_a_text_with_a_linked_section_moves_on_with_it(world: SearchWorld) -> None:
    world.put("4", {"name": "seaplane", "maker": "Cessna"}, airline="Delta")
    assert [hit.moved_on for hit in (await search(world, text="seaplane", k=1)).hits] == [False]
    fetched = world.bundles.found["4"]
    fragment = fetched.fragments["airline", "Delta"]
    fetched.fragments["airline", "Delta"] = type(fragment)(2, fragment.meta, b'{"name":"Delta Air Lines"}')
    assert [hit.moved_on for hit in (await search(world, text="seaplane", k=1)).hits] == [True]


async def test_a_template_that_fails_on_the_bundle_of_now_has_moved_on(world: SearchWorld) -> None:
    world.bundles.put("1", {"name": "wide body jet", "maker": "Boeing"})
    body = b'{"name": "x", "maker": "y", "airline": 7}'
    stored = world.bundles.found["1"].bundle
    assert stored is not None and stored.meta is not None
    world.bundles.found["1"] = type(world.bundles.found["1"])(type(stored)(2, type(stored.meta)("new", 3), body), {})
    assert (await search(world, text="wide", k=1)).hits[0].moved_on


async def test_a_hit_whose_bundle_is_gone_is_left_out_and_counted(world: SearchWorld) -> None:
    del world.bundles.found["1"]
    answer = await search(world, text="wide body jet", k=2)
    assert "1" not in keys(answer) and len(answer.hits) == 2 and answer.dropped == 1


@pytest.mark.parametrize("error", [Retryable("throttled"), Fatal("NaN"), Poison("refused")])
@pytest.mark.parametrize("mode", ["auto", "vector", "hybrid"])
async def test_a_failing_engine_leaves_the_words(world: SearchWorld, error: Exception, mode: Any) -> None:
    world.engine.error = error
    answer = await search(world, text="wide body jet", k=1, mode=mode, min_score=0.1)
    assert (keys(answer), answer.mode) == (["1"], "lexical")
    assert answer.degraded == "the embedding engine fails; see the server's log; min_score was not applied"


async def test_a_late_engine_leaves_the_words(world: SearchWorld) -> None:
    world.engine.waits = threading.Event()
    answer = await search(world, text="wide body jet", k=1, budget_ms=200)
    assert answer.mode == "lexical" and answer.degraded == "the embedding engine did not answer in time"
    world.engine.waits.set()


async def test_an_engine_that_is_not_open_leaves_the_words(world: SearchWorld) -> None:
    world.open.embedder, world.open.engine_problem = None, "the embedding engine is being opened"
    answer = await search(world, text="wide body jet", k=1)
    assert (answer.mode, answer.degraded) == ("lexical", "the embedding engine is being opened")


async def test_an_index_that_is_still_read_leaves_the_other(world: SearchWorld) -> None:
    world.replica.vectors_loaded, world.replica.behind_records = False, 1234
    answer = await search(world, text="wide body jet", k=1)
    assert answer.mode == "lexical" and "is being read, 1,234 records behind" in (answer.degraded or "")
    world.replica.vectors_loaded, world.replica.texts_loaded = True, False
    answer = await search(world, text="wide body jet", k=1)
    assert answer.mode == "vector" and "text index" in (answer.degraded or "")
    world.replica.vectors_loaded = False
    with pytest.raises(SearchUnavailable, match=r"vector index .* is being read.*; the text index"):
        await search(world, text="wide body jet")
    world.replica.problem = "Kafka does not answer"
    assert keys(await search(world, text="wide body jet", k=1)) == ["1"], "what was read before is better than nothing"


async def test_a_failing_or_late_vector_index_leaves_the_words(world: SearchWorld) -> None:
    world.replica.vectors.error = Retryable("torn")
    assert (await search(world, text="wide")).degraded == "the vector index fails; see the server's log"
    world.replica.vectors.error, late = None, threading.Event()
    world.replica.vectors.on_search = late.wait
    assert (await search(world, text="wide", budget_ms=200)).degraded == "the vector index did not answer in time"
    with pytest.raises(SearchUnavailable, match="did not answer in time"):
        await search(world, vector=[1.0] * DIMENSION, budget_ms=200)
    late.set()


async def test_without_bundles_there_is_no_answer(world: SearchWorld) -> None:
    world.bundles.error = Retryable("Redis is away")
    with pytest.raises(LookupUnavailable):
        await search(world, text="wide")


async def test_before_a_space_serves_there_is_a_clear_refusal(world: SearchWorld) -> None:
    world.current = None
    with pytest.raises(SearchUnavailable, match="no embedding space of plane serves yet"):
        await search(world, text="wide")
    with pytest.raises(BadSearch, match="k is 1 to 1,000"):
        await search(world, text="wide", k=0)
    with pytest.raises(UnknownContext):
        await world.service.search("boat", SearchRequest(text="x"))


async def test_the_space_that_is_expected_must_answer(world: SearchWorld) -> None:
    assert (await search(world, text="wide", space=world.space)).space == world.space
    with pytest.raises(SpaceMismatch, match=f"space {world.space} answers searches of plane, not other"):
        await search(world, text="wide", space="other")


async def test_a_search_keeps_the_space_that_it_began_with(world: SearchWorld) -> None:
    other = SearchWorld()
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()

    world.replica.vectors.on_search = wait
    running = asyncio.create_task(search(world, text="wide body jet"))
    await begun.wait()
    old, world.current = world.current, other.current
    assert old is not None and old.space.searches == 1 and old.served.queries >= 1
    go_on.set()
    answer = await running
    assert answer.space == old.space.space and keys(answer)[0] == "1" and old.space.searches == 0
    other.service.close()


async def test_queries_are_embedded_once(world: SearchWorld) -> None:
    for _ in range(3):
        await search(world, text="wide body jet")
    assert world.engine.calls == 1


async def test_too_many_searches_are_refused() -> None:
    threads, late = SearchThreads(1, 2), threading.Event()
    waiting = [asyncio.create_task(threads.run(late.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(SearchUnavailable, match="2 searches run at once already"):
        await threads.run(late.wait)
    late.set()
    assert await asyncio.gather(*waiting) == [True, True]
    assert await threads.run(late.wait) is True
    threads.close()


async def test_a_key_in_the_index_that_is_none_of_the_context_disturbs_nobody(world: SearchWorld) -> None:
    world.put("a|b", {"name": "wide body jet", "maker": "Boeing"})
    assert keys(await search(world, text="wide body jet of Boeing", k=1)) == ["1"]


async def test_the_most_hits(world: SearchWorld) -> None:
    assert len(keys(await search(world, text="jet", k=1000))) == 3


def hit(key: str, score: float) -> Hit:
    return Hit(key, score, Chunk(0, 1), 0, "t", "b", 1)


def test_fusion_adds_reciprocal_ranks() -> None:
    vectors, words = [hit("a", 0.9), hit("b", 0.8)], [("b", 7.0), ("c", 5.0)]
    order = fused(vectors, words, lambda key: hit(key, 0.3), None)
    assert [(one.key, one.cosine, one.bm25) for one in order] == [
        ("b", 0.8, 7.0), ("a", 0.9, None), ("c", 0.3, 5.0)
    ]  # fmt: skip
    assert order[0].score == 1 / 62 + 1 / 61
    assert [one.key for one in fused(vectors, words, lambda key: hit(key, 0.3), 0.5)] == ["b", "a"]
    assert [one.key for one in fused([], words, lambda key: None, 0.0)] == []
    assert [one.key for one in by_vector(vectors)] == ["a", "b"]


@pytest.mark.parametrize("query", ["needle", "", "nothing of it"])
def test_a_passage_is_around_a_word_that_was_found(query: str) -> None:
    text = "hay " * 300 + "needle " + "hay " * 300
    start, end = around_words(text, query, 80)
    assert 0 <= start < end <= len(text) and end - start <= 80
    assert ("needle" in text[start:end]) is (query == "needle")
    assert around_words("x" * 500, "x", 80) == (0, 80) and around_words("", "x") == (0, 0)
