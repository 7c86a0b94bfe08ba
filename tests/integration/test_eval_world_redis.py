"""The world of a case beside a real Redis: the same log gives the same bundles, the same questions the same answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.client import AsyncClient, BadRequest, Bundle, ClientError
from pipeline.core.clock import SystemClock
from pipeline.evaluation.values import Case, Conditions
from pipeline.evaluation.world import forget, open_world
from pipeline.evaluation.world.filled import Filled, fill, log_of, plan_of
from pipeline.evaluation.world.store import Store
from pipeline.flow import Flow
from pipeline.merging import Merging
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import Stores, open_stores
from tests.support.eval_world import SmallSuite, case, order_log, small_suite

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]

SERVING = {"budget_ms": 5_000, "max_age_ms": 600_000}
ASKED: list[tuple[str, str, dict[str, Any]]] = [
    *[("order", key, {}) for key in ("1", "2", "3", "4", "99", "a|b", "", "x" * 1025)],
    ("order", "1", {"fields": ["note", "customer.name"]}),
    ("order", "1", {"sections": ["sums"]}),
    ("order", "2", {"sections": []}),
    ("order", "1", {"token_budget": 5}),
    ("order", "1", {"token_budget": 1_000}),
    ("order", "1", {"max_age_ms": 0}),
    ("order", "99", {"fields": ["note"]}),
    ("order", "1", {"fields": ["nots"], "sections": ["sum"]}),
    ("orders", "1", {}),
]


@pytest.fixture
def suite(tmp_path: Path) -> SmallSuite:
    forget()
    made = small_suite(tmp_path, serving=SERVING)
    made.write("log.jsonl", order_log().lines)
    return made


@asynccontextmanager
async def filled_redis(suite: SmallSuite, url: str, asked: Case) -> AsyncIterator[Stores]:
    """The log through the flow, in batches of three, as a worker does it."""
    plan, log = plan_of(suite, "order"), log_of(suite, asked)
    stores = await open_stores(RedisSettings(url=url, context="order", version=3))
    try:
        merging = Merging(plan, stores.cells, SystemClock().now_us)
        flow = Flow(plan, stores.rows, stores.relations, stores.bundles, in_order=stores.in_order, merging=merging)
        for first in range(0, len(log), 3):
            assert not (await flow.process(log[first : first + 3])).dead_letters
        yield stores
    finally:
        await stores.close()


async def outcome(client: AsyncClient, context: str, key: str, options: dict[str, Any]) -> Any:
    """The answer without its times, wherever it came from, or the error."""
    try:
        return comparable(await client.get(context, key, **options))
    except ClientError as error:
        return type(error), error.mistakes if isinstance(error, BadRequest) else None


def comparable(bundle: Bundle) -> Any:
    answer = bundle.answer
    assert answer.rung in ("store", "near")  # a world has no near cache
    times = {"as_of_us": dict.fromkeys(answer.as_of_us), "age_ms": dict.fromkeys(answer.age_ms)}
    return msgspec.structs.replace(answer, sections=dict.fromkeys(answer.sections), rung="store", **times)


async def test_the_same_log_gives_the_same_bundles(suite: SmallSuite, redis_url: str) -> None:
    asked = case(context={"events": "log.jsonl"})
    expected: Filled = (await fill(suite, asked))["order"]
    async with filled_redis(suite, redis_url, asked) as stores:
        keys = ["1", "2", "3", "4"]
        for key, fetched in zip(keys, await stores.reader.fetch(keys), strict=True):
            told = expected.fetched(key)
            assert (fetched.bundle is None) == (told.bundle is None), key
            if fetched.bundle is not None and told.bundle is not None:
                assert (fetched.bundle.body, fetched.bundle.meta) == (told.bundle.body, told.bundle.meta)
                assert {name: one.body for name, one in fetched.fragments.items()} == {
                    name: one.body for name, one in told.fragments.items()
                }


async def test_the_same_questions_are_answered_the_same(suite: SmallSuite, redis_url: str) -> None:
    asked, clock = case(context={"events": "log.jsonl"}), SystemClock()
    async with filled_redis(suite, redis_url, asked) as stores:
        store = Store((await fill(suite, asked))["order"], Conditions(), clock)
        await stores.marks.write_applied(store.positions())
        await stores.serving.remember(suite.specs["order"], {"customer": "link", "sums": "copy"})
        await stores.serving.promote(3)
        async with (
            AsyncClient.direct(redis_url, contexts=["order"]) as redis,
            open_world(suite, asked, clock, lambda step: None) as world,
        ):
            statuses = set()
            for context, key, options in ASKED:
                ours, theirs = [await outcome(one, context, key, options) for one in (world.client, redis)]
                assert ours == theirs, (context, key, options)
                statuses.add(getattr(ours, "status", None))
            assert statuses == {"fresh", "stale", "missing", None}
            position = list((await redis.get("order", "1")).position.values())
            again = await world.client.get("order", "1", position=position)
            assert again.status == "fresh" and not again.not_reached
