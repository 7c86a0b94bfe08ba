"""The world of a case on virtual time: how long a lookup waits, when it stops asking, and how old things grow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.client import AsyncClient
from pipeline.evaluation.values import Step
from pipeline.evaluation.virtual_time import VirtualClock, run_virtually
from pipeline.evaluation.world import forget, open_world
from tests.support.eval_world import SmallSuite, case, small_suite

BEGAN_US = 1_700_000_000_000_000
DATA = {"id": 1, "note": "n", "owner": "acme", "customer": {"id": 7, "name": "Ann"}, "sums": {"lines": 0}}


@pytest.fixture
def suite(tmp_path: Path) -> SmallSuite:
    forget()
    made = small_suite(tmp_path, serving={"budget_ms": 100, "max_age_ms": 60_000, "default": {"note": "?"}})
    made.write("b.jsonl", [{"context": "order", "key": "1", "data": DATA, "fragments": {"customer": "7"}}])
    return made


Flow = Callable[[AsyncClient, VirtualClock], Awaitable[Any]]


def virtually(suite: SmallSuite, flow: Flow, **conditions: Any) -> tuple[Any, list[Step]]:
    """What the flow gives, and its steps."""
    told: list[Step] = []

    async def run(clock: VirtualClock) -> Any:
        asked = case(context={"bundles": "b.jsonl"}, conditions=conditions)
        async with open_world(suite, asked, clock, told.append) as world:
            return await flow(world.client, clock)

    return run_virtually(lambda loop: run(VirtualClock(loop, BEGAN_US))), told


async def one(client: AsyncClient, clock: VirtualClock) -> Any:
    return await client.get("order", "1")


def test_a_healthy_store_takes_no_time(suite: SmallSuite) -> None:
    bundle, steps = virtually(suite, one)
    assert (bundle.status, bundle.data, steps[0].took_ms) == ("fresh", DATA, 0)
    assert bundle.age_ms == {"crm": 0, "shop": 0}


def test_a_slow_store_takes_its_delay_and_slow_fragments_theirs(suite: SmallSuite) -> None:
    bundle, steps = virtually(suite, one, store_delay_ms=30)
    assert (bundle.status, steps[0].took_ms) == ("fresh", 30)
    bundle, steps = virtually(suite, one, store_delay_ms=30, fragment_delay_ms=12.5)
    assert (bundle.status, steps[0].took_ms) == ("fresh", 42.5)


def test_a_fragment_that_is_late_is_left_out_when_its_time_is_over(suite: SmallSuite) -> None:
    """80 ms are for the stores (20 are kept for the rungs below), of these four fifths for fragments."""
    bundle, steps = virtually(suite, one, fragment_delay_ms=90)
    assert (bundle.status, dict(bundle.left_out)) == ("partial", {"customer": "did not come in time"})
    assert steps[0].took_ms == 64


@pytest.mark.parametrize("conditions", [{"store": "frozen"}, {"store_delay_ms": 81}])
def test_a_silent_store_is_given_up_in_time_for_the_rungs_below(suite: SmallSuite, conditions: dict[str, Any]) -> None:
    bundle, steps = virtually(suite, one, **conditions)
    assert (bundle.status, bundle.rung, bundle.data) == ("fallback", "default", {"note": "?"})
    assert steps[0].took_ms == 80
    bundle, _ = virtually(suite, one, warm=True, **conditions)
    assert (bundle.rung, bundle.data) == ("last_known", DATA)


def test_after_three_failures_the_store_is_passed_over_and_probed_by_virtual_time(suite: SmallSuite) -> None:
    async def often(client: AsyncClient, clock: VirtualClock) -> None:
        for _ in range(6):
            await client.get("order", "1")
        await clock.sleep(1)
        await client.get("order", "1")
        await client.get("order", "1")

    _, steps = virtually(suite, often, store="frozen")
    assert [step.took_ms for step in steps] == [80, 80, 80, 0, 0, 0, 80, 0]


def test_what_was_last_known_grows_old_while_a_store_that_answers_does_not(suite: SmallSuite) -> None:
    async def later(client: AsyncClient, clock: VirtualClock) -> Any:
        first = await client.get("order", "1")
        await clock.sleep(61)
        return first.status, (await client.get("order", "1")).status

    assert virtually(suite, later)[0] == ("fresh", "fresh")
    assert virtually(suite, later, store="down", warm=True)[0] == ("fresh", "stale")
    assert virtually(suite, later, age_ms=60_001)[0] == ("stale", "stale")


def test_two_runs_tell_the_same_steps(suite: SmallSuite) -> None:
    async def some(client: AsyncClient, clock: VirtualClock) -> Any:
        await client.get_many("order", ["1", "2"])
        await clock.sleep(0.25)
        return await client.get("order", "1", token_budget=4)

    first, second = (virtually(suite, some, store_delay_ms=3, age_ms=7)[1] for _ in range(2))
    assert first == second and [step.at_ms for step in first] == [0, 0, 253]
