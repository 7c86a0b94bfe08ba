"""The collector: samples on a clock of its own, publishes what it sees, and keeps the last report for whoever asks.

A scrape and `/lag` never touch Kafka: they show the last collection (R12). Parts that Kafka does not tell, sources,
canaries, dead letters, are handed in; one that fails or hangs holds up none of the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from typing import Any, TypeVar

import msgspec

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import CtxpipeError
from pipeline.ops.lag.explaining import Objectives, explain
from pipeline.ops.lag.judging import Judge
from pipeline.ops.lag.model import CollectorState, GroupLag, PartHealth, Replica, Report, Sample, Stage
from pipeline.ops.lag.publishing import LagMetrics
from pipeline.ops.lag.replicas import PAGE_BYTES_MAX, Key, Page, Pages, read_page, replica_spaces
from pipeline.ops.lag.sampling import Sampler
from schemas.topics import text_topic, vector_topic

KAFKA, PAGES = "kafka", "pages"
SOURCES, CANARIES, DEAD_LETTERS = "sources", "canaries", "dead_letters"

Result = TypeVar("Result")
logger = logging.getLogger("ctxpipe.collector")


@dataclass(frozen=True, slots=True)
class Part:
    """`look` gives what the report shows, a dict each; it sets metrics of its own. Raises CtxpipeError."""

    name: str
    look: Callable[[], Awaitable[list[dict[str, Any]]]]
    timeout_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Settings:
    """`versions`: the serving version by context, for the topics of its spaces."""

    interval_s: float = 10.0
    timeout_s: float = 5.0
    scrape: tuple[str, ...] = ()
    scrape_key: str = field(default="", repr=False)
    floors: tuple[str, ...] = ()
    versions: Mapping[str, int] = field(default_factory=dict)
    has: Callable[[str], bool] = lambda _: True
    expected_topics: tuple[str, ...] = ()
    stands_s: float = 20.0
    objectives: Objectives = field(default_factory=Objectives)


class Collector:
    """`collect` once, or `run` until told to stop; `report` is the last collection, None before the first."""

    def __init__(
        self,
        sampler: Sampler,
        judge: Judge,
        settings: Settings,
        parts: Sequence[Part] = (),
        shown: LagMetrics | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._sampler, self._judge, self._settings = sampler, judge, settings
        self._parts, self._shown = parts, shown
        self._clock = clock or SystemClock()
        self._pages = Pages(settings.stands_s)
        self._health: dict[str, PartHealth] = {}
        self._last: dict[str, list[dict[str, Any]]] = {}
        self._ends: dict[str, int] = {}
        self._samples = 0
        self.report: Report | None = None
        self.encoded = b""
        """The report as JSON."""
        self.finished_s: float | None = None
        """When the last collection ended, on the clock that never goes back."""

    def settle(self, interval_s: float, scrape: Sequence[str]) -> None:
        """From the next collection on; verdicts look back on as many samples as before."""
        self._settings = replace(self._settings, interval_s=interval_s, scrape=tuple(scrape))

    async def run(self, stop: asyncio.Event) -> None:
        """A collection per interval, counted from its beginning; one that takes longer is followed at once."""
        while not stop.is_set():
            began_s = self._clock.monotonic_s()
            await self.collect()
            left_s = self._settings.interval_s - (self._clock.monotonic_s() - began_s)
            if left_s > 0:
                try:
                    await asyncio.wait_for(stop.wait(), left_s)
                except TimeoutError:
                    continue

    async def collect(self, only_kafka: bool = False) -> Report:
        """Never raises: what does not answer or refuses us stands in the report. `only_kafka`: of the other parts, what
        is known already."""
        given = () if only_kafka else self._parts
        at_us = self._clock.now_us()
        groups = await self._timed(KAFKA, self._groups(), self._settings.timeout_s * 6)
        pages, *told = await asyncio.gather(
            self._timed(PAGES, self._read_pages(), self._settings.timeout_s * 2) if self._settings.scrape else _none(),
            *(self._timed(part.name, part.look(), part.timeout_s) for part in given),
        )
        for part, one in zip(given, told, strict=True):
            if one is not None:
                self._last[part.name] = one
        if groups is None:
            groups = self._unknown()
        else:
            at_us = self._judge.at_us
        replicas, stages = self._judged_pages(pages or {})
        self._samples += 1
        parts = list(self._health.values())
        state = CollectorState(self._settings.interval_s, self._samples, parts, list(self._floors()))
        sources, canaries, letters = (self._last.get(name, []) for name in (SOURCES, CANARIES, DEAD_LETTERS))
        seen = Report(at_us / 1e6, groups, sources, canaries, letters, replicas, stages, state)
        self.report = msgspec.structs.replace(seen, findings=explain(seen, self._settings.objectives))
        self.encoded = msgspec.json.encode(self.report)
        if self._shown is not None:
            self._shown.show(groups, self._judge.take_clamped(), self._judge.take_rebalances())
            self._shown.parts(parts)
        self.finished_s = self._clock.monotonic_s()
        return self.report

    async def close(self) -> None:
        await self._sampler.close()

    async def _groups(self) -> list[GroupLag]:
        settings = self._settings
        spaces = replica_spaces(self._pages.last())
        topics = {*settings.expected_topics, *(topic for key in spaces for topic in self._space_topics(key))}
        sample = await self._sampler.sample(settings.has, topics)
        self._ends = _topic_ends(sample)
        self._judge.take(sample)
        wanted = self._judge.wanted()
        places = await self._sampler.places(wanted)
        retentions = await self._sampler.retentions({topic for topic, _, _ in wanted})
        return self._judge.report(places, retentions)

    def _unknown(self) -> list[GroupLag]:
        """Kafka does not answer: what was known of groups is not true any more, and that is said."""
        problem = self._health[KAFKA].problem
        self._judge.take(Sample(0, self._clock.monotonic_s(), {}, {}, {}, None, (problem,), complete=False))
        return self._judge.report({}, {})

    async def _timed(self, name: str, work: Awaitable[Result], limit_s: float) -> Result | None:
        """None where it failed; how it went is kept."""
        began_s, began_cpu_s = self._clock.monotonic_s(), time.process_time()
        result, problem = None, ""
        try:
            result = await asyncio.wait_for(work, limit_s)
        except CtxpipeError as error:
            problem = str(error)
        except TimeoutError:
            problem = f"no answer within {limit_s:.0f} s"
        before = self._health.get(name)
        health = PartHealth(
            name,
            not problem,
            problem,
            self._clock.monotonic_s() - began_s,
            time.process_time() - began_cpu_s,
            self._clock.now_us() / 1e6 if not problem else before.success_at if before else None,
        )
        if problem and (before is None or before.problem != problem):
            logger.warning("%s: %s", name, problem)
        self._health[name] = health
        return result

    # ---- pages

    async def _read_pages(self) -> dict[str, Page | str]:
        urls, limit_s, key = self._settings.scrape, self._settings.timeout_s, self._settings.scrape_key
        pages = await asyncio.gather(*(asyncio.to_thread(_page, url, limit_s, key) for url in urls))
        silent = [url for url, page in zip(urls, pages, strict=True) if isinstance(page, str)]
        if silent and len(silent) == len(urls):
            logger.debug("no page comes: %s", ", ".join(silent))
        return dict(zip(urls, pages, strict=True))

    def _judged_pages(self, pages: Mapping[str, Page | str]) -> tuple[list[Replica], list[Stage]]:
        ends = {
            key: sum(self._ends.get(topic, 0) for topic in self._space_topics(key))
            for key in replica_spaces(pages.values())
            if all(topic in self._ends for topic in self._space_topics(key))
        }
        return self._pages.replicas(self._clock.monotonic_s(), pages, ends), self._pages.stages(pages)

    def _space_topics(self, key: Key) -> list[str]:
        context, space = key
        version = self._settings.versions.get(context, 1)
        return [text_topic(context, version, space), vector_topic(context, version, space)]

    def _floors(self) -> Iterable[str]:
        yield f"lag is sampled every {self._settings.interval_s:g} s"
        yield from self._settings.floors
        for source in self._last.get("sources", []):
            if source.get("floor_s"):
                yield f"no change of source {source.get('source')} comes sooner than after {source['floor_s']:g} s"


def _topic_ends(sample: Sample) -> dict[str, int]:
    """Records that each topic has had so far; topics of which a partition does not answer are left out."""
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    for (topic, _), end in sample.ends.items():
        found[topic] = found.get(topic, 0) + end
        counts[topic] = counts.get(topic, 0) + 1
    topics = sample.topics or {}
    return {topic: end for topic, end in found.items() if counts[topic] == topics.get(topic)}


def _page(url: str, timeout_s: float, key: str) -> Page | str:
    """The page, or why it does not come."""
    headers = {"Accept": "text/plain;version=0.0.4", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return read_page(answer.read(PAGE_BYTES_MAX).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        told = (
            "; collector: scrape_key names an API key with the scope metrics:read" if error.code in (401, 403) else ""
        )
        return f"it answers {error.code}{told}"
    except (OSError, HTTPException, ValueError) as error:
        return str(getattr(error, "reason", None) or error or type(error).__name__)


async def _none() -> None:
    return None
