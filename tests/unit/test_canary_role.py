"""The loops of the canary against a source and a lookup service in memory: nothing that is away ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from connectors.canary import CanaryRow
from connectors.source import Finding
from pipeline.client.bundle import Bundle
from pipeline.client.errors import DeadlineExceeded, NotAllowed
from pipeline.client.results import Found, Hit
from pipeline.commands import _canary_role
from pipeline.commands._canary_role import Setting, SourceCanary, Teller
from pipeline.commands._canary_sightings import Verdict
from pipeline.core import metrics
from pipeline.core.canary import CanaryPlan
from pipeline.core.clock import SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.lookup.answer import Answer
from tests.support.eventually import eventually

SLOTS = {0: 1, 2: 0}
URL = "http://serve"


class World:
    """Source, path and lookup service in one: what is written is shown at once, unless something is `broken`."""

    def __init__(self) -> None:
        self.rows: dict[int, CanaryRow] = {}
        self.embedded: dict[int, CanaryRow] = {}
        self.writes = 0
        self.stated_ms: float | None = 20.0
        self.broken: set[str] = set()
        self.ended = 0

    async def write(self, rows: Sequence[CanaryRow]) -> None:
        self.writes += 1
        if "source hangs" in self.broken:
            await asyncio.Event().wait()
        if "source refuses" in self.broken:
            raise EnvironmentProblem("the table is gone")
        if "source is away" in self.broken:
            raise Retryable("Postgres can't be reached")
        for row in rows:
            if "partition" in self.broken and row.kafka_partition == 0:
                continue
            self.rows[row.slot] = row
            if "embedder" not in self.broken:
                self.embedded[row.slot] = row

    async def prepare(self) -> list[Finding]:
        return []

    async def close(self) -> None:
        self.ended += 1

    async def get_many(self, context: str, keys: Sequence[str], **options: Any) -> list[Bundle]:
        self._answer()
        return [bundle(context, key, self.rows.get(int(key))) for key in keys]

    async def get(self, context: str, key: str, **options: Any) -> Bundle:
        self._answer()
        if context == "forbidden":
            raise NotAllowed("no scope for it")
        return bundle(context, key, None, self.stated_ms)

    async def search(self, context: str, text: str, **options: Any) -> Found:
        self._answer()
        assert options["mode"] == "vector" and options["k"] == len(SLOTS)
        hits = []
        for slot, row in self.rows.items():
            moved_on = self.embedded.get(slot) != row
            hits.append(Hit(str(slot), 1.0, 1.0, None, None, moved_on, bundle(context, str(slot), row)))
        return Found(context, "space", 1, "vector", None, 0, 0.0, 0, tuple(hits))

    def _answer(self) -> None:
        if "serve" in self.broken:
            raise DeadlineExceeded(f"{URL} gave no answer within 100 ms")


def bundle(context: str, key: str, row: CanaryRow | None, age_ms: float | None = 5.0) -> Bundle:
    body = None if row is None else msgspec.json.encode(row)
    return Bundle(
        Answer(
            context=context,
            key=key,
            status="missing" if body is None else "fresh",
            as_of_us={"shop": 1},
            age_ms={"shop": age_ms},
            spec_version=1,
            hash=None,
            bundle=body,
        )
    )


@asynccontextmanager
async def running(world: World) -> AsyncIterator[SourceCanary]:
    plan = CanaryPlan("shop", "canary_shop", "public.c", 0.05, 0.4, True, 0.1, True, 0.4, {})
    contexts = {"item": "0", "forbidden": "0"}
    clients: Any = {URL: world}
    canary = SourceCanary(Setting(plan, world, clients, SLOTS, contexts, 0.1), SystemClock())
    task = asyncio.create_task(canary.run())
    try:
        yield canary
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("source hangs", "the source takes no rows: no answer within 0.1 s; "),
        ("source refuses", "the source takes no rows: the table is gone; "),
        ("source is away", "the source takes no rows: Postgres can't be reached; "),
        ("partition", " in partition 0"),
        ("embedder", "searches at http://serve show rows of "),
        ("serve", "gave no answer within 100 ms"),
    ],
)
async def test_whatever_stands_still_is_late_and_comes_back(broken: str, words: str) -> None:
    world = World()
    async with running(world) as canary:
        await eventually(canary.verdict, lambda verdict: verdict.up is True)
        world.broken = {broken}
        lookups_too = broken != "embedder"

        def fits(verdict: Verdict) -> bool:
            return verdict.up is False and words in verdict.reason and ("lookups at" in verdict.reason) == lookups_too

        await eventually(canary.verdict, fits)
        writes = world.writes
        await eventually(lambda: world.writes > writes, what="it goes on writing")
        world.broken = set()
        await eventually(canary.verdict, lambda verdict: verdict.up is True)


async def test_other_contexts_are_asked_how_old_they_call_the_source() -> None:
    world = World()
    async with running(world) as canary:
        await eventually(canary.verdict, lambda verdict: verdict.up is True)
        world.stated_ms = 5_000_000.0
        late = await eventually(canary.verdict, lambda verdict: verdict.up is False)
        assert "lookups in context item at http://serve state an age of" in late.reason
        assert late.late == ("context item",)
        world.stated_ms = None
        assert "context item" in canary.verdict().reason, "what is not known any more does not mend it"
        world.stated_ms = 20.0
        await eventually(canary.verdict, lambda verdict: verdict.up is True)


async def test_metrics_count_each_row_once() -> None:
    world = World()
    seen, written = metrics.canary_seen.labels("shop"), metrics.canary_written.labels("shop")
    before = (seen._value.get(), written._value.get())
    async with running(world):
        await eventually(lambda: seen._value.get() - before[0] >= 8)
    assert seen._value.get() - before[0] <= written._value.get() - before[1] <= 2 * world.writes


def test_late_and_back_are_told_once_and_again_while_it_lasts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "ctxpipe.canary")
    teller = Teller([], SystemClock())
    assert teller.reason("shop") == ""
    for verdict in (Verdict(None, None), Verdict(True, 1.0), Verdict(False, 16.0, "why"), Verdict(False, 17.0, "then")):
        teller.tell("shop", verdict)
    assert [record.getMessage() for record in caplog.records] == ["the canary of shop is late: why"]
    assert metrics.canary_up.labels("shop")._value.get() == 0
    assert metrics.canary_age_seconds.labels("shop")._value.get() == 17
    monkeypatch.setattr(_canary_role, "AGAIN_S", 0.0)
    teller.tell("shop", Verdict(False, 80.0, "still"))
    assert teller.as_objects() == [{"source": "shop", "up": False, "age_s": 80.0, "reason": "still", "late": ()}]
    teller.tell("shop", Verdict(True, 0.5))
    told = [record.getMessage() for record in caplog.records]
    assert told[1] == "the canary of shop is late: still" and told[2].startswith("the canary of shop is back after ")
    assert metrics.canary_up.labels("shop")._value.get() == 1 and teller.reason("shop") == ""
