"""The pool before an engine: what goes together, what is bounded, whose failure is whose, how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from pipeline.core.errors import Fatal, Poison, Retryable
from pipeline.embedding.batching import BatchLimits, EmbeddedText, EmbeddingPool
from pipeline.embedding.engine import Embedded
from pipeline.embedding.hashing import HashEngine
from tests.support.embedding_world import DIMENSION, ScriptedEngine
from tests.support.eventually import eventually


class Busy(ScriptedEngine):
    """Waits for `go_on` in every call from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    made = ScriptedEngine()
    yield made
    if made.go_on is not None:
        made.go_on.set()


def pool_of(engine: ScriptedEngine, **limits: float) -> EmbeddingPool:
    return EmbeddingPool(engine, BatchLimits(**{"wait_ms": 0, **limits}))  # type: ignore[arg-type]


async def test_texts_of_several_callers_go_together_and_come_back_to_each(engine: ScriptedEngine) -> None:
    pool = pool_of(engine)
    answers = await asyncio.gather(*[pool.embed([f"a {n}", f"b {n}"]) for n in range(4)])
    assert len(engine.calls) == 1 and len(engine.calls[0]) == 8
    for number, (first, second) in enumerate(answers):
        for answer, text in ((first, f"a {number}"), (second, f"b {number}")):
            assert isinstance(answer, EmbeddedText) and answer.tokens == 2
            assert (answer.vector == HashEngine(DIMENSION).embed([text]).vectors[0]).all()
    await pool.close()


async def test_a_batch_is_as_large_as_the_smaller_limit(engine: ScriptedEngine) -> None:
    engine.texts_max = 3  # type: ignore[misc]
    pool = pool_of(engine, batch_texts_max=100)
    await pool.embed([f"text {number}" for number in range(7)])
    assert [len(call) for call in engine.calls] == [3, 3, 1]
    await pool.close()


async def test_texts_gather_while_the_engine_is_busy() -> None:
    engine = Busy()
    pool = pool_of(engine)
    first = asyncio.create_task(pool.embed(["first"]))
    await eventually(lambda: pool._busy)
    rest = [asyncio.create_task(pool.embed([f"text {number}"])) for number in range(5)]
    await eventually(lambda: pool.queued == 5)
    engine.go_on.set()
    await asyncio.gather(first, *rest)
    assert [len(call) for call in engine.calls] == [1, 5]
    await pool.close()


async def test_callers_wait_while_the_queue_is_full() -> None:
    engine = Busy()
    pool = pool_of(engine, batch_texts_max=2, queue_texts_max=4)
    asking = asyncio.create_task(pool.embed([f"text {number}" for number in range(11)]))
    await eventually(lambda: pool.queued == 4)
    for _ in range(20):
        await asyncio.sleep(0)
        assert pool.queued <= 4
    engine.go_on.set()
    assert len(await asking) == 11 and sum(map(len, engine.calls)) == 11
    await pool.close()


async def test_a_queue_that_is_shorter_than_a_batch_blocks_nobody(engine: ScriptedEngine) -> None:
    pool = pool_of(engine, batch_texts_max=32, queue_texts_max=3, wait_ms=1000)
    assert len(await asyncio.wait_for(pool.embed([str(number) for number in range(10)]), 30)) == 10
    await pool.close()


async def test_one_bad_text_of_a_batch_is_refused_alone(engine: ScriptedEngine) -> None:
    engine.script = lambda texts: Poison("not this one") if "bad" in texts else None
    pool = pool_of(engine)
    answers, other = await asyncio.gather(pool.embed(["good", "bad", "better"]), pool.embed(["another caller's"]))
    assert [isinstance(answer, Poison) for answer in answers] == [False, True, False]
    assert str(answers[1]) == "not this one" and isinstance(other[0], EmbeddedText)
    assert engine.embedded == ["good", "better", "another caller's"]
    await pool.close()


@pytest.mark.parametrize(
    "error", [Retryable("away"), Fatal("NaN"), RuntimeError("what nobody here knows"), MemoryError()]
)
async def test_any_other_failure_reaches_all_of_its_batch_and_not_the_next(
    engine: ScriptedEngine, error: Exception
) -> None:
    engine.script = lambda texts: error if "one" in texts else None
    pool = pool_of(engine, batch_texts_max=2)
    asked = [asyncio.create_task(pool.embed([text])) for text in ("one", "two", "three")]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert found[0] is error and found[1] is error and isinstance(found[2], list)
    engine.script = lambda texts: None
    assert isinstance((await pool.embed(["one"]))[0], EmbeddedText), "and it goes on"
    await pool.close()


async def test_vectors_of_another_shape_are_fatal(engine: ScriptedEngine) -> None:
    class Fewer(ScriptedEngine):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
            return super().embed(texts[1:])

    pool = pool_of(Fewer())
    with pytest.raises(Fatal, match=r"vectors of shape \(1, 16\) for 2 texts"):
        await pool.embed(["one", "two"])
    await pool.close()


async def test_a_caller_that_gives_up_costs_nothing_more() -> None:
    engine = Busy()
    pool = pool_of(engine)
    first = asyncio.create_task(pool.embed(["first"]))
    await eventually(lambda: pool._busy)
    given_up = asyncio.create_task(pool.embed(["nobody wants it", "nor this"]))
    stays = asyncio.create_task(pool.embed(["wanted"]))
    await eventually(lambda: pool.queued == 3)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    engine.go_on.set()
    await asyncio.gather(first, stays)
    assert engine.embedded == ["first", "wanted"]
    await pool.close()


async def test_room_that_a_caller_gave_up_is_given_on() -> None:
    engine = Busy()
    pool = pool_of(engine, batch_texts_max=1, queue_texts_max=2)
    given_up = asyncio.create_task(pool.embed([str(number) for number in range(5)]))
    await eventually(lambda: pool.queued == 2)
    stays = asyncio.create_task(pool.embed(["wanted"]))
    await asyncio.sleep(0)
    given_up.cancel()
    engine.go_on.set()
    assert isinstance((await asyncio.wait_for(stays, 30))[0], EmbeddedText)
    await pool.close()


async def test_closing_refuses_what_waits_and_awaits_what_runs() -> None:
    engine = Busy()
    pool = pool_of(engine, batch_texts_max=1, queue_texts_max=2)
    running = asyncio.create_task(pool.embed(["running"]))
    await eventually(lambda: pool._busy)
    waiting = asyncio.create_task(pool.embed(["a", "b", "there is no room for c"]))
    await eventually(lambda: pool.queued == 2)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    assert not closing.done()
    engine.go_on.set()
    await closing
    assert isinstance((await running)[0], EmbeddedText)
    for asked in (waiting, asyncio.create_task(pool.embed(["late"]))):
        with pytest.raises(Retryable, match="is being closed"):
            await asked
    assert engine.embedded == ["running"] and not engine.closed


async def test_costs_add_up_until_one_is_unknown(engine: ScriptedEngine) -> None:
    class Paid(ScriptedEngine):
        def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
            found = super().embed(texts)
            return Embedded(found.vectors, found.tokens, found.tokens_cut, prices.pop(0))

    prices: list[float | None] = [0.5, 0.25, None, 1.0]
    pool = pool_of(Paid())
    costs = []
    for _ in range(4):
        await pool.embed(["text"])
        costs.append(pool.cost)
    assert costs == [0.5, 0.75, None, None]
    await pool.close()


async def test_nothing_in_nothing_out(engine: ScriptedEngine) -> None:
    pool = pool_of(engine)
    assert await pool.embed([]) == [] and engine.calls == []
    await pool.close()
