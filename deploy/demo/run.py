"""The demo: from empty servers to verified bundles of real flights, told step by step."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo import searching
from deploy.demo.backfill import wait_until_backfilled
from deploy.demo.data import FLIGHTS, TABLES, WEATHER
from deploy.demo.freshness import FreshnessWatcher, percentile
from deploy.demo.harness import CONTEXTS as CONTEXT_FOLDER
from deploy.demo.harness import Harness
from deploy.demo.replay import departures, replay
from deploy.demo.searching import ModelExport, SpaceWatch
from deploy.demo.story import Story
from deploy.demo.wide import WEATHER_TOPIC, WideDatabase
from deploy.local.processes import choose_port
from deploy.local.roles import wait_for
from pipeline.core.errors import EnvironmentProblem

ALL_FLIGHTS = 336_776
CONTEXTS = ("flight", "airport", "plane")
POSTGRES_TABLES = [table for table in TABLES if table is not WEATHER]
_TABLES_READ = {"flight": len(POSTGRES_TABLES), "airport": 3, "plane": len(POSTGRES_TABLES)}
_LIVE_RATE = 150.0
_GATE_EVERY = 5
"""So many departures for one that its gate tells of."""
_QUIET_S = 180.0
_FRESH_WITHIN_S = 30.0

Verify = Callable[[Path, str, Callable[[str, int], None]], Any]
"""(configuration, context, progress) → a Verification; the command passes `ctxpipe verify`'s own."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """`rows`: flights to load; `live`: departures to replay; `keep`: leave everything running."""

    root: Path
    rows: int = ALL_FLIGHTS
    live: int = 1_000
    keep: bool = False
    as_json: bool = False


class Demo:
    """One run. Raises EnvironmentProblem when a server or role does not do its part; ends what it started."""

    def __init__(self, settings: DemoSettings, verify: Verify) -> None:
        self.settings, self.verify = settings, verify
        self.story = Story(settings.as_json)
        self.harness = Harness(settings.root)
        self.result: dict[str, Any] = {"verified": 0, "mismatches": 0}
        self.port = 0
        self.loaded: dict[str, int] = {}
        self.export: ModelExport | None = None
        self.wide: WideDatabase | None = None

    @property
    def as_it_should_be(self) -> bool:
        """Of the result."""
        return not self.result["mismatches"]

    def run(self) -> dict[str, Any]:
        try:
            asyncio.run(self._run())
        finally:
            if self.settings.keep:
                self._how_to_go_on()
            self.harness.close(self.settings.keep)
        return self.result

    async def _run(self) -> None:
        started = time.monotonic()
        await self._servers()
        try:
            await self._load()
            await self._backfill()
            await self._embed()
            await self._live()
        finally:
            if self.wide is not None:
                await self.wide.close()
        await self._look()
        await self._search()
        await self._verify()
        self.result["seconds"] = round(time.monotonic() - started, 1)
        self.result["machine"] = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        self.story.summary(self.result)

    async def _servers(self) -> None:
        self.story.step(
            "Real servers: Postgres and Cassandra are the sources, Kafka carries the changes, Redis holds the bundles"
        )
        self.export = ModelExport(self.harness)
        await asyncio.to_thread(self.harness.up, True, self.story.say, ("cassandra",))

    async def _load(self) -> None:
        rows = self.settings.rows
        self.story.step("Five real tables of 2013: every flight that left New York, with planes, airports and weather")
        await self.harness.create_tables(POSTGRES_TABLES)
        await self._load_weather()
        for table in POSTGRES_TABLES:
            if table is FLIGHTS:
                with self.story.bar("flights into Postgres", rows) as advance:
                    loaded = await self.harness.load(table, rows, advance)
            else:
                loaded = self.loaded[table.name] = await self.harness.load(table)
                self.story.say(f"{table.name} into Postgres: {loaded:,}")
        self.result["backfilled"] = loaded

    async def _load_weather(self) -> None:
        addresses = self.harness.addresses
        assert addresses is not None
        self.wide = await WideDatabase.open(addresses.cassandra, self.harness.root)
        await self.wide.create()
        with self.story.bar("hours of weather into Cassandra", 26_115) as advance:
            self.result["weather"] = await self.wide.load_weather(advance)

    async def _backfill(self) -> None:
        self.story.step("Backfill: snapshots of both databases flow through Kafka and become bundles in Redis")
        self.story.say("context flight: with its airline, plane, airports and the carrier's punctuality from Postgres,")
        self.story.say("   the weather of its hour from Cassandra, what its gate says from a log as Scylla writes it")
        self.story.say("context airport: departures in numbers, the last twenty of them, carriers by share")
        self.story.say("context plane: with its airline and where it flies, and a text that is embedded for searches")
        assert self.harness.addresses is not None and self.wide is not None and self.export is not None
        await self.export.finish()
        self.harness.write_config(
            CONTEXTS,
            tables=POSTGRES_TABLES,
            sources=self.wide.sources(self.harness.addresses.cassandra_yaml),
            context_folder=CONTEXT_FOLDER / "all_sources",
            embedding=searching.embedding_section(),
        )
        await asyncio.to_thread(searching.write_evaluation, self.harness, self.settings.rows)
        connectors = [self.harness.role("connect", name).start() for name in ("nyc", "sky", "gates")]
        workers = [self.harness.role("worker", name, "--role", "bundles").start() for name in CONTEXTS]
        started, rows = time.monotonic(), self.settings.rows
        with self.story.bar("changes applied, all contexts", rows * len(CONTEXTS)) as advance:
            await wait_until_backfilled(
                self.harness,
                CONTEXTS,
                rows,
                [*connectors, *workers],
                advance,
                tables=_TABLES_READ,
                records={WEATHER_TOPIC: self.result["weather"]},
            )
        elapsed_s = time.monotonic() - started
        self.result["backfill_s"] = round(elapsed_s, 1)
        self.result["events_per_s"] = round(rows * len(CONTEXTS) / elapsed_s)

    async def _embed(self) -> None:
        self.story.step("Embedding: each plane's text becomes a vector, by a worker beside those that build bundles")
        self.harness.role("worker", searching.CONTEXT, "--role", "embedding").start()
        watch, started_s = await SpaceWatch.open(self.harness), time.monotonic()
        try:
            with self.story.bar("texts embedded", self.loaded["planes"]) as advance:
                view = await watch.until(lambda view: view.serving is not None, self.harness.roles, advance)
        finally:
            await watch.close()
        self.result["embedded"] = {"texts": view.vectors, "seconds": round(time.monotonic() - started_s, 1)}
        self.story.say(f"space {view.serving} is complete and serves")

    async def _live(self) -> None:
        self.story.step(
            f"Live: {self.settings.live:,} real departures again, as inserts and then updates in Postgres, with the "
            "weather of each hour in Cassandra and what the gates say"
        )
        assert self.wide is not None
        rows = departures(self.settings.rows, self.settings.live)
        watcher = FreshnessWatcher(self.harness.redis_settings("flight"))
        seen: list[float] = []
        started = time.monotonic()
        task = asyncio.create_task(replay(self.harness.dsn, rows, _LIVE_RATE, watcher.expect))
        told = asyncio.create_task(self.wide.follow(rows[::_GATE_EVERY], _LIVE_RATE / 2 / _GATE_EVERY))
        try:
            with self.story.live() as show:
                while not task.done() or (len(seen) < watcher.expected and time.monotonic() - started < _QUIET_S):
                    seen += watcher.collect()
                    show(seen, watcher.expected, time.monotonic() - started)
                    await asyncio.sleep(0.1)
            changes = await task
            self.result["wide_column_writes"] = await told
        finally:
            task.cancel()
            told.cancel()
            watcher.close()
        lost = sum(value < 0 for value in seen) + watcher.expected - len(seen)
        if lost:
            raise EnvironmentProblem(f"{lost} of {watcher.expected} live changes did not arrive in Redis")
        self.result["live_changes"] = changes
        self.result["freshness_ms"] = {"p50": round(percentile(seen, 0.5), 1), "p99": round(percentile(seen, 0.99), 1)}
        self.story.say(f"{len(seen):,} departures seen in Redis; {self.result['freshness_ms']} ms after the commit")

    async def _look(self) -> None:
        self.story.step("Lookups: what an orchestrator gets over HTTP, by key")
        self.port = choose_port(8080)
        server = self.harness.role("serve", "--port", str(self.port)).start()
        address = f"http://127.0.0.1:{self.port}/v1/contexts"
        await asyncio.to_thread(wait_for, lambda: _answers(f"{address}/airport/JFK"), 30.0, "ctxpipe serve", [server])
        for context, key in (("flight", str(self.settings.rows)), ("airport", "JFK")):
            answer = await _fresh_answer(f"{address}/{context}/{key}")
            self.result.setdefault("lookups", {})[context] = answer["status"]
            self.story.bundle(f"{context} {key}: {answer['status']}", answer["bundle"])

    async def _search(self) -> None:
        self.story.step("Searches: planes by what is asked in words, with their bundles, in one request")
        question = searching.QUESTION
        asked = await searching.ask(self.port, question)
        self.story.hits(question, asked.answer, asked.first_ms)
        narrowed = await searching.ask(self.port, question, {"body": "wide-body", "year": {"lt": 1990}})
        self.story.say("The same, narrowed by fields that the spec marks: body=wide-body, year<1990")
        self.story.hits(question, narrowed.answer, narrowed.first_ms)
        self.result["search"] = {
            "question": question,
            "space": asked.answer["space"],
            "mode": asked.answer["mode"],
            "found": asked.keys,
            "right": searching.right_ones(self.harness, question, asked.keys),
            "right_with_filter": searching.right_ones(self.harness, question, narrowed.keys),
            "first_ms": round(asked.first_ms, 1),
            "again_ms": round(asked.again_ms, 1),
        }

    async def _verify(self) -> None:
        self.story.step("Verify: SQL and CQL on the sources compute every bundle again, without any of our own state")
        for context in CONTEXTS:
            total = self._bundles(context)
            shown = 0
            with self.story.bar(f"{context} bundles compared", total) as advance:

                def progress(_what: str, count: int, advance: Callable[[int], None] = advance) -> None:
                    nonlocal shown
                    advance(max(0, count - shown))
                    shown = max(shown, count)

                found = await self.verify(self.harness.config_path, context, progress)
            self.result["verified"] += found.verified
            self.result["mismatches"] += found.mismatches + found.unsettled
            self.story.say(f"{context}: {found.verified:,} equal to what the databases say, {found.mismatches} differ")

    def _bundles(self, context: str) -> int:
        return {
            "flight": self.settings.rows + self.settings.live,
            "airport": self.loaded["airports"],
            "plane": self.loaded["planes"],
        }[context]

    def _how_to_go_on(self) -> None:
        config = self.harness.config_path
        self.story.say(f"Everything keeps running. Try: ctxpipe get airport JFK --config {config}")
        self.story.say(f'Or: ctxpipe search plane "helicopters" --config {config} --url http://127.0.0.1:{self.port}')
        self.story.say(f"The configuration to play with is {config}; Postgres is {self.harness.dsn}")
        self.story.say(
            f"To end it: ctxpipe demo --stop   (processes {', '.join(str(r.pid) for r in self.harness.roles)})"
        )


async def _fresh_answer(address: str) -> dict[str, Any]:
    """The first answer that is fresh; after a while any. Cassandra's heartbeats come once its log has been read again,
    in which the demo's weather lies, too."""
    deadline_s = time.monotonic() + _FRESH_WITHIN_S
    while True:
        late = time.monotonic() > deadline_s
        try:
            answer: dict[str, Any] = json.loads(await asyncio.to_thread(_get, address))
        except OSError as error:  # on a busy machine a lookup's budget may be too short
            if late:
                raise EnvironmentProblem(f"{address} is not answered: {error}") from error
        else:
            if answer["status"] == "fresh" or late:
                return answer
        await asyncio.sleep(0.2)


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=5) as answer:
        return bytes(answer.read())


def _answers(address: str) -> bool:
    try:
        _get(address)
    except OSError:
        return False
    return True
