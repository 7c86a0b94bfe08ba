"""The engine of a space's workers: opened until it works, proven where it answers nonsense, paced for a candidate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.core.errors import EnvironmentProblem, Fatal, Retryable
from pipeline.embedding.batching import BatchLimits
from pipeline.embedding.engine import Throttled
from pipeline.stores.memory_spaces import MemorySpaces
from pipeline.stores.spaces import SpaceRecord
from pipeline.streams.space_compose import CandidatePace
from pipeline.streams.space_engine import EngineHolder
from tests.support.embedding_world import QuickClock, ScriptedEngine
from tests.support.eventually import eventually


class HeldClock(QuickClock):
    """Sleeps until `go_on` is set, and then at once."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def sleep(self, duration_s: float) -> None:
        await super().sleep(duration_s)
        await self.go_on.wait()


class Opening:
    """`answers` are raised in turn by opening, `checks` by proving; then both work."""

    def __init__(self, *answers: Exception, checks: tuple[Exception, ...] = ()) -> None:
        self.answers, self.checks = list(answers), list(checks)
        self.clock = HeldClock()
        self.made: list[ScriptedEngine] = []
        self.holder = EngineHolder(self._open, self._check, BatchLimits(wait_ms=0), self.clock)

    def _open(self) -> ScriptedEngine:
        if self.answers:
            raise self.answers.pop(0)
        self.made.append(ScriptedEngine())
        return self.made[-1]

    def _check(self, engine: Any) -> None:
        if self.checks:
            raise self.checks.pop(0)


async def test_it_opens_at_once_and_closes_what_it_opened() -> None:
    opening = Opening()
    engine, pool = await opening.holder.get()
    assert engine is opening.made[0] and len(await pool.embed(["text"])) == 1
    await opening.holder.close()
    assert opening.made[0].closed
    with pytest.raises(Retryable, match="is being closed"):
        await pool.embed(["text"])


async def test_until_it_works_the_reason_is_told(caplog: pytest.LogCaptureFixture) -> None:
    missing = EnvironmentProblem("torch is missing; pip install 'ctxpipe[embedding]'")
    opening = Opening(missing, missing, Fatal("another model under the same name"))
    with pytest.raises(Retryable, match="torch is missing"):
        await opening.holder.get()
    opening.clock.go_on.set()
    await eventually(lambda: opening.holder._found)
    await opening.holder.get()
    assert len(opening.clock.slept) == 3
    assert [record.message for record in caplog.records if record.levelname == "CRITICAL"] == [
        "nothing is embedded: torch is missing; pip install 'ctxpipe[embedding]'",
        "nothing is embedded: another model under the same name",
    ], "each reason once"
    await opening.holder.close()


async def test_a_provider_that_asks_to_wait_is_not_asked_before() -> None:
    opening = Opening(Throttled("slow down", 240.0))
    opening.clock.go_on.set()
    await eventually(lambda: opening.holder._found)
    assert opening.clock.slept == [240.0]
    await opening.holder.close()


async def test_what_nobody_understands_is_not_waited_for() -> None:
    opening = Opening(RuntimeError("no idea"))
    with pytest.raises(RuntimeError, match="no idea"):
        await opening.holder.get()
    with pytest.raises(RuntimeError, match="no idea"):
        await opening.holder.get()
    await opening.holder.close()


async def test_an_engine_that_is_as_ever_stays() -> None:
    opening = Opening()
    await opening.holder.prove()
    await opening.holder.prove()
    assert len(opening.made) == 1 and not opening.made[0].closed
    await opening.holder.close()


async def test_an_engine_that_is_away_for_a_moment_stays() -> None:
    opening = Opening(checks=(Throttled("slow down", 9.0),))
    with pytest.raises(Throttled):
        await opening.holder.prove()
    await opening.holder.get()
    assert len(opening.made) == 1
    await opening.holder.close()


async def test_an_engine_that_became_another_one_is_closed_and_opened_anew() -> None:
    opening = Opening(checks=(Fatal("it answers its canary texts differently"),))
    engine, pool = await opening.holder.get()
    opening.answers.append(Fatal("it answers its canary texts differently"))
    with pytest.raises(Retryable, match="canary"):
        await opening.holder.prove()
    assert opening.made[0].closed
    with pytest.raises(Retryable, match="canary"):
        await opening.holder.get()
    with pytest.raises(Retryable, match="is being closed"):
        await pool.embed(["text"])
    opening.clock.go_on.set()
    await eventually(lambda: opening.holder._found)
    again, _ = await opening.holder.get()
    assert again is opening.made[1] is not engine
    await opening.holder.close()


async def test_several_that_doubt_it_open_it_once() -> None:
    opening = Opening(checks=(Fatal("NaN"), Fatal("NaN"), Fatal("NaN")))
    opening.clock.go_on.set()
    await opening.holder.get()
    found = await asyncio.gather(*[opening.holder.prove() for _ in range(3)], return_exceptions=True)
    assert all(isinstance(one, Retryable) for one in found)
    await eventually(lambda: opening.holder._found)
    await opening.holder.get()
    await opening.holder.close()
    assert len(opening.made) == 2 and all(engine.closed for engine in opening.made)


async def test_closing_while_it_is_being_opened() -> None:
    opening = Opening(EnvironmentProblem("no endpoint"))
    await eventually(lambda: opening.clock.slept)
    await opening.holder.close()
    assert opening.made == []


Paced = tuple[CandidatePace, QuickClock, MemorySpaces]


@pytest.fixture
def paced() -> Callable[[float], Paced]:
    def make(texts_per_s: float) -> Paced:
        clock, spaces = QuickClock(), MemorySpaces()
        record = SpaceRecord(space="s", state="candidate", definition=b"", canaries=b"", dimension=1, created_us=1)
        spaces.records = {"s": record}
        return CandidatePace("s", spaces, texts_per_s, clock), clock, spaces

    return make


@pytest.mark.parametrize("texts_per_s", [0.5, 5.0, 100.0, 2000.0])
async def test_a_candidate_comes_no_faster_than_it_may(paced: Callable[[float], Paced], texts_per_s: float) -> None:
    pace, clock, _ = paced(texts_per_s)
    texts = 0
    while clock.elapsed_s < 600:
        await pace(250)
        texts += 250
    # What lies ready at the start, and the part that is under way at the end.
    assert texts <= texts_per_s * (clock.elapsed_s + 10) + 350
    assert texts >= texts_per_s * clock.elapsed_s - 350


async def test_a_space_that_serves_is_not_slowed_down(paced: Callable[[float], Paced]) -> None:
    pace, clock, spaces = paced(1.0)
    await spaces.promote("s", None, b"")
    await pace(100_000)
    assert clock.slept == []


async def test_a_candidate_that_is_promoted_meanwhile_is_let_go(paced: Callable[[float], Paced]) -> None:
    pace, clock, spaces = paced(1.0)

    def promote() -> None:
        spaces.records["s"] = SpaceRecord(
            space="s", state="serving", definition=b"", canaries=b"", dimension=1, created_us=1
        )

    clock.on_sleep = promote
    await pace(100_000)
    assert clock.elapsed_s < 10
