"""Texts become vectors: what is embedded, what is spared, what an engine that fails leads to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from pipeline.core.errors import Fatal, Poison, Retryable
from pipeline.embedding.engine import Throttled
from pipeline.stores.spaces import CUT, REFUSED, VectorState
from pipeline.stores.store import ShardChanged
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.vector_stage import NOTED_WITHIN_S, TEXTS_AT_ONCE
from schemas.context import Chunks
from schemas.record import Record
from schemas.vectors import TextRecord, decode_vectors, encode_text, encode_vectors, hash_text
from tests.support.embedding_world import DIMENSION, SPACE, EmbeddingWorld
from tests.support.eventually import eventually
from tests.support.space_records import text_record


async def prepared(*titles: str, rule: Chunks | None = None) -> EmbeddingWorld:
    """Their texts are in the topic, keys from 1."""
    world = EmbeddingWorld(rule=rule)
    keys = [str(number + 1) for number in range(len(titles))]
    for key, title in zip(keys, titles, strict=True):
        await world.put(key, {"title": title})
    await world.request(*keys)
    return world


def refusing(word: str, error: Exception) -> Callable[[Sequence[str]], Exception | None]:
    return lambda texts: error if any(word in text for text in texts) else None


async def test_a_text_becomes_a_record_of_vectors() -> None:
    world = await prepared("a title")
    await world.embed()
    ((key, record),) = world.outlet.vectors
    assert key == "1" and record is not None
    assert decode_vectors(encode_vectors(record), SPACE, DIMENSION) == record
    assert (record.counter, record.text_hash, record.tokens_cut) == (1, hash_text("a title"), 0)
    assert [(chunk.start, chunk.end) for chunk in record.chunks] == [(0, 7)]
    assert await world.current()


async def test_the_newest_text_of_a_batch_is_embedded() -> None:
    world = EmbeddingWorld()
    for number in range(5):
        await world.put("1", {"title": f"version {number}"})
        await world.request("1")
    await world.embed()
    assert world.engine.embedded == ["version 4"] and await world.current()


async def test_a_text_that_a_newer_one_makes_needless_is_not_embedded() -> None:
    world = await prepared("old")
    (old,) = world.outlet.texts
    await world.put("1", {"title": "new"})
    await world.request("1")
    await world.handle_texts(old)
    assert world.engine.embedded == []
    await world.embed()
    assert world.engine.embedded == ["new"]


async def test_what_comes_again_costs_nothing() -> None:
    world = await prepared("a")
    await world.embed()
    await world.handle_texts(*world.outlet.texts)
    assert world.engine.embedded == ["a"] and len(world.outlet.vectors) == 1


async def test_a_deletion_reaches_the_vectors_every_time() -> None:
    world = await prepared("a")
    await world.embed()
    await world.delete("1")
    await world.request("1")
    await world.embed()
    await world.handle_texts(("1", None))
    assert world.vectors() == [hash_text("a"), None, None]
    state = await world.state()
    assert (state.text_hash, state.vector_hash) == ("", "")


async def test_a_vector_counts_although_redis_learns_of_its_text_later() -> None:
    """Kafka has a text first: a vector that is quick must not be forgotten."""
    world = EmbeddingWorld()
    text = text_record(SPACE, "a")
    late = VectorState(1, "h", text.text_hash, text_at=0)
    world.clock.on_sleep = lambda: world.states.spaces.setdefault(SPACE, {}).setdefault("1", late)
    await world.handle_texts(("1", text))
    assert await world.current() and len(world.clock.slept) == 1


async def test_a_refusal_counts_although_redis_learns_of_its_text_later() -> None:
    world = EmbeddingWorld()
    world.engine.script = lambda texts: Poison("no")
    text = text_record(SPACE, "a")
    late = VectorState(1, "h", text.text_hash, text_at=0)
    world.clock.on_sleep = lambda: world.states.spaces.setdefault(SPACE, {}).setdefault("1", late)
    await world.handle_texts(("1", text))
    assert (await world.state()).problem == f"{REFUSED}no"


async def test_a_text_that_redis_never_learns_of_is_asked_for_again() -> None:
    """Whoever sent it was killed before telling Redis, or after its bundle was gone."""
    world = EmbeddingWorld()
    await world.handle_texts(("1", text_record(SPACE, "a")))
    assert world.engine.embedded == [] and world.outlet.asked == ["1"]
    assert NOTED_WITHIN_S <= sum(world.clock.slept) < NOTED_WITHIN_S + 1


async def test_an_old_text_is_not_waited_for() -> None:
    """After Redis lost its memory, there are many of them."""
    world = EmbeddingWorld()
    record = Record("texts", 0, 0, b"1", encode_text(text_record(SPACE, "a")), 1)
    await world.vector_stage.handle([RecordBatch(("texts", 0), [record], 1, lambda batch: None)])
    assert world.clock.slept == [] and world.outlet.asked == ["1"]


async def test_a_long_text_has_several_vectors_up_to_the_last_piece() -> None:
    rule = Chunks(tokens_max=8, overlap_tokens=2, chunks_max=3)
    world = await prepared("word " * 30, "short", rule=rule)
    await world.embed()
    long, short = (dict(world.outlet.vectors)[key] for key in ("1", "2"))
    assert long is not None and short is not None
    assert (len(long.chunks), len(long.vectors)) == (3, 3 * 4 * DIMENSION) and long.tokens_cut > 0
    assert (await world.state()).problem == CUT and (await world.state("2")).problem == ""
    state = await world.state()
    assert state.text_hash == state.vector_hash, "as good as it gets"


async def test_pieces_of_blanks_are_left_out() -> None:
    rule = Chunks(tokens_max=8, overlap_tokens=0, chunks_max=100)
    world = await prepared("a " * 8 + "\n" * 5000 + "b " * 8, rule=rule)
    await world.embed()
    assert all(text.strip() for text in world.engine.embedded) and await world.current()


async def test_one_text_that_the_engine_never_takes_is_set_aside() -> None:
    world = await prepared("good", "a bad one", "better")
    world.engine.script = refusing("bad", Poison("this text is not allowed"))
    await world.embed()
    (letter,) = world.outlet.letters
    assert (letter.reason, letter.bundle_keys, letter.record.topic) == ("this text is not allowed", ["2"], "texts")
    assert await world.current("1") and await world.current("3")
    state = await world.state("2")
    assert (state.problem, state.vector_hash) == (f"{REFUSED}this text is not allowed", "")
    assert dict(world.outlet.vectors)["2"] is None, "an older vector does not stand for it"
    await world.put("2", {"title": "mended"})
    await world.request("2")
    await world.embed()
    assert await world.current("2")


async def test_a_refused_text_is_tried_again_when_a_person_asks() -> None:
    world = await prepared("a bad one")
    world.engine.script = refusing("bad", Poison("not today"))
    await world.embed()
    world.engine.script = lambda texts: None
    await world.request("1")
    await world.embed()
    assert (await world.state()).problem == f"{REFUSED}not today", "nothing changed"
    await world.request("1", again=True)
    await world.embed()
    assert await world.current()


async def test_a_throttled_engine_is_waited_for_and_the_bundles_say_so_meanwhile() -> None:
    world = await prepared("one", "two")
    problems: list[str] = []
    answers: list[Exception] = [Throttled("too many requests", 120.0), Throttled("too many requests", 120.0)]
    world.engine.script = lambda texts: answers.pop() if answers else None
    states = world.states.spaces[SPACE]
    world.clock.on_sleep = lambda: problems.extend(state.problem for state in states.values())
    batch = await world.embed()
    assert problems == ["too many requests"] * 4 and world.clock.slept == [120.0, 120.0]
    assert await world.current("1") and await world.current("2") and not batch.in_outage


async def test_bundles_that_have_their_vector_are_not_said_to_lack_it() -> None:
    world = await prepared("one", "two")
    await world.handle_texts(world.outlet.texts[0])
    answers = [Retryable("away")]
    world.engine.script = lambda texts: answers.pop() if answers else None
    await world.handle_texts(*world.outlet.texts)
    assert await world.current("1") and await world.current("2")
    assert world.engine.embedded == ["one", "two"]


async def test_an_engine_that_is_not_open_yet_is_waited_for() -> None:
    world = await prepared("one")
    world.engines.away = [Retryable("no such model"), Retryable("no such model")]
    problems: list[str] = []
    states = world.states.spaces[SPACE]
    world.clock.on_sleep = lambda: problems.append(states["1"].problem)
    await world.embed()
    assert problems == ["no such model"] * 2 and await world.current()


async def test_a_broken_engine_is_waited_for_and_no_text_is_blamed() -> None:
    world = await prepared("one", "two")
    answers: list[Exception] = [Fatal("NaN for 2 of 2 texts")]
    world.engine.script = lambda texts: answers.pop() if answers else None
    world.engines.broken = [Retryable("its canary texts are answered differently")]
    problems: list[str] = []
    states = world.states.spaces[SPACE]
    world.clock.on_sleep = lambda: problems.extend(state.problem for state in states.values())
    await world.embed()
    assert problems == ["its canary texts are answered differently"] * 2
    assert await world.current("1") and await world.current("2") and world.outlet.letters == []


async def test_a_text_that_a_proven_engine_answers_with_nonsense_is_set_aside_alone() -> None:
    world = await prepared("one", "a bad one", "two")
    world.engine.script = refusing("bad", Fatal("NaN for 1 of 1 texts"))
    await world.embed()
    assert [letter.bundle_keys for letter in world.outlet.letters] == [["2"]]
    assert (await world.state("2")).problem == f"{REFUSED}NaN for 1 of 1 texts"
    assert await world.current("1") and await world.current("3") and world.engines.proven == 2


async def test_a_record_of_another_space_is_set_aside() -> None:
    world = await prepared("one")
    foreign = TextRecord(space="other", counter=1, bundle_hash="h", text_hash="t", text="x")
    await world.handle_texts(world.outlet.texts[0], ("7", foreign))
    (letter,) = world.outlet.letters
    assert letter.bundle_keys == ["7"] and "a record of space other where space space is read" in letter.reason
    assert await world.current()


@pytest.mark.parametrize(("key", "value"), [(None, b"x"), (b"\xff", b"x"), (b"2", b"\xc1 no record"), (b"2", b"")])
async def test_a_broken_record_stops_nobody(key: bytes | None, value: bytes) -> None:
    world = await prepared("one")
    good = world.outlet.texts[0][1]
    assert good is not None
    found = [Record("texts", 0, 0, b"1", encode_text(good)), Record("texts", 0, 1, key, value)]
    await world.vector_stage.handle([RecordBatch(("texts", 0), found, 2, lambda batch: None)])
    assert await world.current()


async def test_vectors_that_the_topic_never_takes_are_set_aside() -> None:
    world = await prepared("one", "two")
    world.outlet.too_large = {"1"}
    await world.embed()
    (letter,) = world.outlet.letters
    assert letter.bundle_keys == ["1"] and (await world.state("1")).problem.startswith(REFUSED)
    assert world.outlet.vectors[-1] == ("1", None) and await world.current("2")


async def test_kafka_away_costs_the_texts_of_one_part_at_most_twice() -> None:
    world = await prepared(*[f"text {number}" for number in range(TEXTS_AT_ONCE + 1)])
    world.outlet.faults = [None, Retryable("Kafka is away")]
    await world.embed()
    assert len(world.engine.embedded) == TEXTS_AT_ONCE + 2
    assert all([await world.current(str(number + 1)) for number in range(TEXTS_AT_ONCE + 1)])


async def test_a_changed_shard_is_not_waited_out() -> None:
    world = await prepared("one")
    world.outlet.faults = [ShardChanged("another process")]
    with pytest.raises(ShardChanged):
        await world.embed()


async def test_redis_away_as_well_is_waited_out() -> None:
    world = await prepared("one")
    answers: list[Exception] = [Retryable("throttled")]
    world.engine.script = lambda texts: answers.pop() if answers else None
    real, away = world.states.write_problems, [Retryable("Redis is away")]

    async def write(space: str, problems: dict[str, tuple[str, str]]) -> None:
        if away:
            raise away.pop()
        await real(space, problems)

    world.states.write_problems = write  # type: ignore[method-assign,assignment]
    await world.embed()
    assert await world.current() and not away


async def test_a_burst_while_the_engine_is_busy_costs_one_embedding_more() -> None:
    world = await prepared("version 0")
    world.engine.go_on = threading.Event()
    running = asyncio.create_task(world.embed())
    await eventually(lambda: world.engines.pool._busy)
    for number in range(1, 6):
        await world.put("1", {"title": f"version {number}"})
        await world.request("1")
    world.engine.go_on.set()
    await running
    assert not await world.current()
    await world.embed()
    assert world.engine.embedded == ["version 0", "version 5"] and await world.current()
