"""The loops of `ctxpipe canary`: for each source one that writes on a clock, and one for each place where rows have to
come out; one over all of them that tells. None ends because something is away: that is what it tells."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from connectors.canary import CanaryRow, CanaryWriter
from pipeline.client.asynchronous import AsyncClient
from pipeline.client.errors import ClientError
from pipeline.commands._canary_judging import Shown
from pipeline.commands._canary_looking import found_rows, shown_rows, stated_age_s
from pipeline.commands._canary_sightings import Place, Sightings, Verdict
from pipeline.core import metrics
from pipeline.core.canary import CanaryPlan
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError

LOOK_SHARE, LOOK_S_MIN, LOOK_S_MAX = 0.1, 0.01, 1.0
"""Between looks for a row that is on its way: a tenth of the time it has taken so far, which is how far off the
measured time may be, within these bounds."""
TELL_S = 0.5
AGAIN_S = 60.0
"""What stays late is said again, with what is known by then."""
SEARCH_ROWS_MAX = 1_000

_LOG = logging.getLogger("ctxpipe.canary")


@dataclass(frozen=True, slots=True)
class Setting:
    """What one source's canary runs with. `clients` by address; `contexts` are others with this source → a key that
    fits them; `slots` as of `rows_of`."""

    plan: CanaryPlan
    writer: CanaryWriter
    clients: Mapping[str, AsyncClient]
    slots: Mapping[int, int | None]
    contexts: Mapping[str, str]
    timeout_s: float


class SourceCanary:
    """Of one source; `run` until it is cancelled, `verdict` at any time."""

    def __init__(self, setting: Setting, clock: Clock) -> None:
        plan = setting.plan
        self.name = plan.source
        self._setting, self._clock = setting, clock
        self._slots = sorted(setting.slots)
        self._lookups = [Place("lookups", url, plan.limit_s) for url in setting.clients]
        self._searches = [
            Place("searches", url, plan.every_s + plan.search_late_after_s) for url in setting.clients if plan.searches
        ]
        self._sightings = Sightings(
            setting.slots, [*self._lookups, *self._searches], plan.contexts_limit_s, clock.monotonic_s()
        )
        self._number = 0
        self._written = asyncio.Condition()

    def verdict(self) -> Verdict:
        return self._sightings.verdict(self._clock.monotonic_s())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            # What is there from before is known first, so that none of it is taken for ours.
            await asyncio.gather(*(self._look(place) for place in self._lookups))
            tasks.create_task(self._write_often())
            for place in [*self._lookups, *self._searches]:
                tasks.create_task(self._look_often(place))
            for url in self._setting.clients:
                tasks.create_task(self._ask_contexts_often(url))

    async def _write_often(self) -> None:
        every_s, next_s = self._setting.plan.every_s, self._clock.monotonic_s()
        while True:
            await self._write()
            next_s = max(next_s + every_s, self._clock.monotonic_s())
            await self._clock.sleep(next_s - self._clock.monotonic_s())

    async def _write(self) -> None:
        clock, sightings, partitions = self._clock, self._sightings, self._setting.slots
        self._number += 1
        stamp = sightings.next_stamp(clock.now_us())
        listed = ",".join(map(str, self._slots))
        rows = [CanaryRow(slot, listed, partitions[slot], self._number, stamp) for slot in self._slots]
        sightings.attempt(stamp, clock.monotonic_s())
        try:
            async with asyncio.timeout(self._setting.timeout_s):
                await self._setting.writer.write(rows)
        except TimeoutError:
            sightings.refused(f"no answer within {self._setting.timeout_s:g} s")
        except CtxpipeError as error:
            sightings.refused(str(error))
        else:
            sightings.committed(stamp, clock.monotonic_s())
            metrics.canary_written.labels(self.name).inc(len(rows))
            async with self._written:
                self._written.notify_all()

    async def _look_often(self, place: Place) -> None:
        while True:
            async with self._written:
                since_s = await self._written.wait_for(partial(self._sightings.waits, place))
            await self._look(place)
            waited_s = self._clock.monotonic_s() - (since_s or 0.0)
            await self._clock.sleep(min(max(waited_s * LOOK_SHARE, LOOK_S_MIN), LOOK_S_MAX))

    async def _look(self, place: Place) -> None:
        clock = self._clock
        try:
            rows = await self._rows(place)
        except ClientError as error:
            self._sightings.unanswered(place, str(error))
            return
        took = self._sightings.shown(place, rows, clock.monotonic_s(), clock.now_us())
        if place.kind == "lookups" and took:
            metrics.canary_seen.labels(self.name).inc(len(took))
            for one_s in took:
                metrics.canary_seconds.labels(self.name).observe(one_s)

    async def _rows(self, place: Place) -> Sequence[Shown]:
        """Raises ClientError."""
        client, context = self._setting.clients[place.url], self._setting.plan.context
        budget_ms = self._setting.timeout_s * 1000
        if place.kind == "searches":
            return await found_rows(client, context, min(len(self._slots), SEARCH_ROWS_MAX), budget_ms)
        return await shown_rows(client, context, self._slots, budget_ms)

    async def _ask_contexts_often(self, url: str) -> None:
        """How old lookups of other contexts call this source: each has workers of its own, which rows of the canary
        never meet, and heartbeats in every partition tell of them."""
        client, every_s = self._setting.clients[url], self._setting.plan.every_s
        while self._setting.contexts:
            for context, key in self._setting.contexts.items():
                try:
                    age_s = await stated_age_s(client, context, key, self.name, self._setting.timeout_s * 1000)
                except ClientError:
                    continue  # the rows themselves tell when nothing answers; not each context need be served there
                if age_s is not None:
                    self._sightings.stated(url, context, age_s, self._clock.monotonic_s())
            await self._clock.sleep(every_s)


class Teller:
    """Tells of all sources again and again: gauges, and a line when one is late or back."""

    def __init__(self, canaries: Sequence[SourceCanary], clock: Clock) -> None:
        self._canaries, self._clock = canaries, clock
        self._verdicts: dict[str, Verdict] = {}
        self._late_since_s: dict[str, float] = {}
        self._said_s: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            for canary in self._canaries:
                self.tell(canary.name, canary.verdict())
            await self._clock.sleep(TELL_S)

    def tell(self, source: str, verdict: Verdict) -> None:
        self._verdicts[source] = verdict
        if verdict.age_s is not None:
            metrics.canary_age_seconds.labels(source).set(verdict.age_s)
        if verdict.up is None:
            return
        metrics.canary_up.labels(source).set(float(verdict.up))
        now_s, since_s = self._clock.monotonic_s(), self._late_since_s.get(source)
        if verdict.up and since_s is not None:
            del self._late_since_s[source]
            _LOG.info("the canary of %s is back after %.1f s", source, now_s - since_s, extra={"source": source})
        elif not verdict.up and (since_s is None or now_s - self._said_s[source] >= AGAIN_S):
            self._late_since_s.setdefault(source, now_s)
            self._said_s[source] = now_s
            _LOG.warning("the canary of %s is late: %s", source, verdict.reason, extra={"source": source})

    def reason(self, source: str) -> str:
        """Why it is late; empty otherwise."""
        return self._verdicts[source].reason if source in self._verdicts else ""

    def as_objects(self) -> list[dict[str, Any]]:
        """Per source {"source", "up", "age_s", "late", "reason"}; `up` null before the first verdict."""
        return [{"source": source, **verdict._asdict()} for source, verdict in sorted(self._verdicts.items())]
