"""Requests become texts: what is sent, what is spared, what is set aside, whose word counts when two workers look."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.errors import Retryable
from pipeline.stores.spaces import REFUSED, VectorState
from pipeline.stores.store import ShardChanged
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.publisher import LOOK_AGAIN, REQUEST
from pipeline.streams.text_stage import INLINE_TEXTS_MAX, LOOKED_AT_ONCE
from schemas.record import Record
from schemas.vectors import hash_text
from tests.support.embedding_world import SPACE, EmbeddingWorld

FAILING = "{{ title }} costs {{ price * 2 }}"


async def test_a_new_text_is_sent_before_redis_knows_of_it() -> None:
    world = EmbeddingWorld(filters=("year",))
    await world.put("1", {"title": "a", "year": 7})
    world.outlet.faults = [Retryable("Kafka is away")]
    known: list[Any] = []
    world.clock.on_sleep = lambda: known.append(dict(world.states.spaces))
    await world.request("1")
    assert known == [{}], "nothing was noted while Kafka did not have it"
    (key, record), *more = world.outlet.texts
    assert not more and record is not None and (key, record.text, record.space) == ("1", "a", SPACE)
    assert (record.counter, record.text_hash, record.filters) == (1, hash_text("a"), {"year": 7})
    state = await world.state()
    assert (state.counter, state.text_hash, state.vector_hash, state.problem) == (1, hash_text("a"), "", "")


async def test_an_unchanged_text_is_not_sent_again() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a", "price": 1})
    await world.request("1")
    await world.embed()
    await world.put("1", {"title": "a", "price": 2})
    await world.request("1")
    assert world.texts() == ["a"] and (await world.state()).counter == 2
    assert await world.current(), "its vector is the one of this text"


async def test_a_bundle_that_is_as_it_was_is_not_rendered() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    await world.request("1")
    stored = await world.state()
    await world.put("1", {"title": "a"})
    world.text_stage._maker = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        await world.request("1")
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    await world.request("1")
    world.text_stage._maker.make = None  # type: ignore[method-assign,assignment]
    await world.put("1", {"title": "a"})
    await world.request("1")
    assert (await world.state()).counter == stored.counter + 1


async def test_a_burst_on_one_key_is_one_text() -> None:
    world = EmbeddingWorld()
    for number in range(20):
        await world.put("1", {"title": f"version {number}"})
    await world.request(*["1"] * 20)
    assert world.texts() == ["version 19"]


async def test_a_deleted_bundle_has_no_text_and_is_remembered() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    await world.request("1")
    await world.delete("1")
    await world.request("1")
    await world.request("1")
    assert world.texts() == ["a", None], "told once"
    state = await world.state()
    assert (state.bundle_hash, state.text_hash) == ("", "")
    await world.put("1", {"title": "b"})
    await world.request("1")
    assert world.texts() == ["a", None, "b"], "it may come back"


async def test_an_expired_bundle_is_as_good_as_deleted() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    await world.request("1")
    world.bundles.values.clear()
    await world.request("1")
    assert world.texts() == ["a", None] and (await world.state()).counter == 1


async def test_a_bundle_that_was_never_there_is_known_to_be_gone() -> None:
    """For a while: whoever looked before it was deleted may still come and say that it has a text."""
    world = EmbeddingWorld()
    await world.request("9")
    assert world.texts() == [None] and await world.states.read_states(SPACE, ["9"]) == [
        VectorState(0, "", "", asked_at=0, text_at=0)
    ]
    early = VectorState(4, "h", hash_text("a"), asked_at=-1)
    assert await world.states.write_texts(SPACE, {"9": early}) == [False]


async def test_a_fragment_changes_the_text_of_a_bundle_that_stays() -> None:
    world = EmbeddingWorld()
    await world.put_author("7", "Woolf")
    await world.put("1", {"title": "a"}, author="7")
    await world.request("1")
    await world.request("1")
    await world.put_author("7", "Stein")
    await world.request("1")
    assert world.texts() == ["a by Woolf", "a by Stein"] and (await world.state()).counter == 1


async def test_other_values_to_narrow_by_travel_with_the_same_text() -> None:
    world = EmbeddingWorld(filters=("year",))
    await world.put("1", {"title": "a", "year": 1})
    await world.request("1")
    await world.embed()
    await world.put("1", {"title": "a", "year": 2})
    await world.request("1")
    await world.embed()
    assert [record.filters for _, record in world.outlet.texts if record] == [{"year": 1}, {"year": 2}]
    assert world.engine.embedded == ["a"], "and cost no embedding"
    assert await world.current()


async def test_an_empty_text_is_a_deletion() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    await world.request("1")
    await world.put("1", {"title": "  "})
    await world.request("1")
    await world.put("1", {"title": None})
    await world.request("1")
    await world.embed()
    assert world.texts() == ["a", None] and world.outlet.letters == []
    state = await world.state()
    assert (state.text_hash, state.vector_hash, state.problem) == ("", "", "")


async def test_a_text_of_5_megabytes_is_cut_and_counted() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "word " * 1_000_000})
    await world.put("2", {"title": "short"})
    cut = world.shown._cut._value.get()
    await world.request("1", "2")
    sent = dict(world.outlet.texts)["1"]
    assert sent is not None and (len(sent.text), sent.characters_cut) == (1_000_000, 3_999_999)
    assert world.shown._cut._value.get() == cut + 1 and world.outlet.letters == []


async def test_a_template_that_fails_is_set_aside_once_and_mended_by_the_next_bundle() -> None:
    world = EmbeddingWorld(FAILING)
    await world.put("1", {"title": "a", "price": 1})
    await world.put("2", {"title": "b", "price": 1})
    await world.request("1", "2")
    await world.embed()
    await world.put("1", {"title": "a", "price": None})
    await world.put("2", {"title": "b", "price": 2})
    await world.request("1", "2")
    await world.request("1")
    await world.embed()
    (letter,) = world.outlet.letters
    assert letter.bundle_keys == ["1"] and "the text template fails on this bundle" in letter.reason
    assert letter.record.topic == "wanted" and letter.record.key == b"1"
    assert world.outlet.texts[2] == ("1", None) and len(world.outlet.texts) == 4
    state = await world.state()
    assert state.problem == f"{REFUSED}{letter.reason}" and (state.text_hash, state.vector_hash) == ("", "")
    assert await world.current("2"), "the next one goes on"
    await world.put("1", {"title": "a", "price": 3})
    await world.request("1")
    await world.embed()
    assert world.texts()[-1] == "a costs 6" and await world.current()


async def test_the_same_failure_on_another_bundle_is_told_again() -> None:
    world = EmbeddingWorld(FAILING)
    for title in ("a", "b"):
        await world.put("1", {"title": title, "price": None})
        await world.request("1")
    assert len(world.outlet.letters) == 2


async def test_a_text_that_the_topic_never_takes_is_set_aside() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    await world.put("2", {"title": "b"})
    world.outlet.too_large = {"1"}
    await world.request("1", "2")
    (letter,) = world.outlet.letters
    assert letter.bundle_keys == ["1"] and "which the topic does not take" in letter.reason
    assert world.texts() == ["b", None], "what was there before must not stand for it"
    assert (await world.state()).problem.startswith(REFUSED)
    await world.put("1", {"title": "less"})
    world.outlet.too_large = set()
    await world.request("1")
    assert world.texts()[-1] == "less" and (await world.state()).problem == ""


async def test_whoever_looked_at_an_older_bundle_asks_again() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    newer = VectorState(5, "h5", hash_text("newer"))
    await world.states.write_texts(SPACE, {"1": newer})
    await world.request("1")
    assert world.outlet.asked == ["1"] and await world.state() == newer


async def test_a_request_to_look_again_sends_the_text_once_more() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    await world.request("1")
    await world.request("1")
    await world.request("1", again=True)
    assert world.texts() == ["a", "a"]
    await world.handle_requests(("1", LOOK_AGAIN), ("1", REQUEST))
    assert world.texts() == ["a"] * 3, "a later ordinary request does not take it back"
    await world.delete("1")
    await world.request("1")
    await world.request("1", again=True)
    assert world.texts()[-2:] == [None, None]


async def test_a_batch_is_looked_at_in_parts_that_are_quick() -> None:
    world = EmbeddingWorld()
    keys = [str(number) for number in range(3 * LOOKED_AT_ONCE)]
    for key in keys:
        await world.put(key, {"title": key})
    world.outlet.faults = [None, None, Retryable("Kafka is away")]
    await world.request(*keys)
    assert world.texts() == keys and world.outlet.asked == []


async def test_a_slow_pace_is_no_long_look() -> None:
    """It would ask for another look for ever."""
    paced: list[int] = []
    excused: list[bool] = []
    world = EmbeddingWorld(pace=lambda texts: wait(texts))

    async def wait(texts: int) -> None:
        paced.append(texts)
        excused.append(bool(world.states.spaces))
        await world.clock.sleep(1000.0)

    await world.put("1", {"title": "a"})
    await world.put("2", {"title": "b"})
    batch = await world.request("1", "2")
    await world.request("1", "2")
    assert paced == [2] and world.outlet.asked == [] and not batch.in_outage
    assert excused == [True], "what was sent is noted before anybody waits"


async def test_an_outage_is_waited_out_inside_the_batch() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    away = Retryable("Redis is away")
    real, answers = world.bundles.fetch, [away, away]

    async def fetch(keys: Any) -> Any:
        if answers:
            raise answers.pop()
        return await real(keys)

    world.bundles.fetch = fetch  # type: ignore[method-assign]
    batch = await world.request("1")
    assert world.texts() == ["a"] and len(world.clock.slept) == 2 and not batch.in_outage


async def test_a_changed_shard_is_not_waited_out() -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    world.outlet.faults = [ShardChanged("another process")]
    with pytest.raises(ShardChanged):
        await world.request("1")


async def test_many_texts_are_rendered_beside_the_event_loop() -> None:
    world = EmbeddingWorld()
    keys = [str(number) for number in range(INLINE_TEXTS_MAX + 1)]
    for key in keys:
        await world.put(key, {"title": key})
    await world.request(*keys)
    assert world.texts() == keys


@pytest.mark.parametrize("key", [None, b"", b"\xff\xfe"])
async def test_a_request_that_nobody_of_ours_writes_stops_nobody(key: bytes | None) -> None:
    world = EmbeddingWorld()
    await world.put("1", {"title": "a"})
    found = [Record("wanted", 0, 0, key, b"{}"), Record("wanted", 0, 1, b"1", b"\x00 no request of ours")]
    await world.text_stage.handle([RecordBatch(("wanted", 0), found, 2, lambda batch: None)])
    assert world.texts() == ["a"]


async def test_keys_are_any_text() -> None:
    world = EmbeddingWorld()
    key = "ü|\u2028|\ud800"
    await world.put(key, {"title": "a"})
    await world.request(key)
    assert world.outlet.texts[0][0] == key
