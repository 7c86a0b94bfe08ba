"""`ctxpipe demo --swap`: one commit changes how planes are embedded, while 200 clients keep asking `ctxpipe serve`.

A better space takes over, is taken back by hand, and a worse one is refused; nobody sees an error or a mixed answer.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.demo import searching
from deploy.demo.backfill import wait_until_backfilled
from deploy.demo.data import AIRLINES, AIRPORTS, FLIGHTS, PLANES, read_rows
from deploy.demo.harness import Harness
from deploy.demo.labelled_queries import QUERIES
from deploy.demo.replay import departures, replay
from deploy.demo.rollout import commit, restart, space_command
from deploy.demo.scores import check_scores
from deploy.demo.searching import CONTEXT, ModelExport, SpaceView, SpaceWatch
from deploy.demo.story import Story
from deploy.demo.traffic import Ended, Told, Traffic, TrafficSettings, latency_figures
from deploy.local.processes import choose_port
from deploy.local.roles import wait_for
from pipeline.core.config import load
from pipeline.core.errors import EnvironmentProblem
from pipeline.embedding.space import SpaceDefinition, decode_definition
from pipeline.ops.space_promotion import read_evidence
from pipeline.stores.spaces import SpaceRecord

TABLES = (AIRLINES, AIRPORTS, PLANES, FLIGHTS)
SWAP_FLIGHTS, CLIENTS = 20_000, 200
LIVE_RATE = 20.0
_LIVE_ROWS = 20_000
_QUESTIONS = 24
_FOLLOW_S, _STEP_S, _CALM_S = 60.0, 0.25, 3.0

COLUMNS_TEMPLATE = """\
{{ tailnum }} {{ manufacturer }} {{ model }} {{ year }} {{ type }} {{ engines }} {{ engine }} {{ seats }}
{{ farthest.airline.name }} {{ destinations | map(attribute="dest") | join(" ") }}
"""
"""As somebody would write it first: one column after another."""
WORSE = {"engine": "hash", "model": "", "precision": "fp32", "template": "{{ type }} of {{ manufacturer | title }}\n"}
"""Without a model and without most of the facts."""


@dataclass(frozen=True, slots=True)
class SwapSettings:
    """`rows`: flights to load; `clients`: requests at once."""

    root: Path
    rows: int = SWAP_FLIGHTS
    clients: int = CLIENTS
    keep: bool = False
    as_json: bool = False


class SwapDemo:
    """One run. Raises EnvironmentProblem when a server or role does not do its part; ends what it started."""

    def __init__(self, settings: SwapSettings) -> None:
        self.settings = settings
        self.story = Story(settings.as_json)
        self.harness = Harness(settings.root)
        self.result: dict[str, Any] = {"lookups": 0, "searches": 0, "errors": 0, "mixed_space": 0}
        self.result |= {"promoted": False, "returned": False, "worse_refused": False}
        self.spaces: dict[str, SpaceDefinition] = {}
        self.own_section: dict[str, Any] = {}
        self._traffic: Traffic | None = None

    @property
    def traffic(self) -> Traffic:
        assert self._traffic is not None, "the load comes after the first space"
        return self._traffic

    @property
    def as_it_should_be(self) -> bool:
        """Of the result."""
        good = all(self.result[name] for name in ("promoted", "returned", "worse_refused", "lookups", "searches"))
        return good and not self.result["errors"] and not self.result["mixed_space"]

    def run(self) -> dict[str, Any]:
        try:
            asyncio.run(self._run())
        finally:
            if self.settings.keep:
                self.story.say(f"Everything keeps running; the configuration is {self.harness.config_path}")
            self.harness.close(self.settings.keep)
        return self.result

    async def _run(self) -> None:
        started_s = time.monotonic()
        await self._prepare()
        first = await self._first_space()
        await self._serve()
        self._traffic = await asyncio.to_thread(Traffic, self._traffic_settings())
        for space, definition in self.spaces.items():
            self.traffic.know(space, definition.template)
        live = asyncio.create_task(self._live())
        live.add_done_callback(self._tell_end_of_live)
        try:
            await self._calm()
            second = await self._promotion(first)
            if second is not None:
                await self._return(first, second)
            await self._refusal()
            ended = await asyncio.to_thread(self.traffic.stop)
        finally:
            live.cancel()
            self.traffic.close()
            await self.watch.close()
        await self._count(ended)
        self.result["seconds"] = round(time.monotonic() - started_s, 1)
        self.result["machine"] = f"{os.cpu_count()} cores, Python {platform.python_version()}"
        self.story.summary(self.result)

    async def _prepare(self) -> None:
        rows = self.settings.rows
        self.story.step(f"Real servers, {rows:,} real flights, and a model of sentences: MiniLM, as int8 for this CPU")
        export = ModelExport(self.harness)
        await asyncio.to_thread(self.harness.up, True, self.story.say)
        await self.harness.create_tables(TABLES)
        for table in TABLES:
            count = await self.harness.load(table, rows if table is FLIGHTS else None)
            self.story.say(f"{table.name} into Postgres: {count:,}")
        await export.finish()
        # What the load leaves of a small machine is for building spaces: one thread each.
        self.harness.write_config([CONTEXT], tables=TABLES, embedding={**searching.embedding_section(), "threads": 1})
        queries = await asyncio.to_thread(searching.write_evaluation, self.harness, rows)
        self.story.say(f"questions with the planes that answer them, from the tables: {queries}")
        self.result["queries"] = queries

    async def _first_space(self) -> str:
        self.story.step("The first space: each plane's columns, one after another, as text; every text a vector")
        self.own_section = commit(self.harness, CONTEXT, {"template": COLUMNS_TEMPLATE})
        self.connector = self.harness.role("connect", "nyc").start()
        self.worker = self.harness.role("worker", CONTEXT).start()
        with self.story.bar("changes applied", self.settings.rows) as advance:
            tables, roles = {CONTEXT: len(TABLES)}, [self.connector, self.worker]
            await wait_until_backfilled(self.harness, [CONTEXT], self.settings.rows, roles, advance, tables=tables)
        self.watch = await SpaceWatch.open(self.harness)
        view = await self._built("texts embedded", lambda view: view.serving is not None)
        assert view.serving is not None
        self.story.say(f"space {view.serving} serves")
        return view.serving

    async def _serve(self) -> None:
        self.port = choose_port(8080)
        self.server = self.harness.role("serve", "--port", str(self.port)).start()
        await asyncio.to_thread(wait_for, lambda: _listens(self.port), 60.0, "ctxpipe serve", [self.server])
        await self._ask("old")

    async def _ask(self, name: str) -> None:
        """The demo's question, in the space that serves; under load it takes its turn."""
        asked = await searching.ask(self.port, searching.QUESTION)
        self.story.hits(searching.QUESTION, asked.answer, asked.first_ms)
        right = searching.right_ones(self.harness, searching.QUESTION, asked.keys)
        self.result.setdefault("right_of_ten", {})[name] = right
        self.story.say(f"{right} of them are what was asked for, by the tables")

    def _traffic_settings(self) -> TrafficSettings:
        self.story.step(
            f"Load: {self.settings.clients} clients, each asking again as soon as it is answered: lookups by key and "
            f"searches; {LIVE_RATE:g} flights a second come in"
        )
        keys = [str(values[0]) for values in read_rows(PLANES)]
        questions = [query for query, _ in QUERIES[:_QUESTIONS]]
        return TrafficSettings("127.0.0.1", self.port, CONTEXT, keys, questions, self.settings.clients)

    async def _live(self) -> None:
        """Departures as in the demo's live part; nobody waits for one of them."""
        rows = await asyncio.to_thread(departures, self.settings.rows, min(_LIVE_ROWS, self.settings.rows))
        await replay(self.harness.dsn, rows, LIVE_RATE, lambda key, marker, time_ns: None)

    def _tell_end_of_live(self, live: asyncio.Task[None]) -> None:
        if not live.cancelled() and live.exception() is not None:
            self.story.say(f"wrong: flights come in no more: {live.exception()}")
            self.result["errors"] += 1

    async def _calm(self) -> None:
        """A while without a change, to compare latencies with."""
        self.traffic.phase("before")
        await self._until(lambda told: bool(told.searches), "an answer")
        await asyncio.sleep(_CALM_S)
        self._say_load()

    async def _promotion(self, first: str) -> str | None:
        """The space that took over; None where none did."""
        self.story.step("One commit: the text now says in words what a plane is and where it flies. Rolled out")
        self.traffic.phase("building")
        started_s = time.monotonic()
        commit(self.harness, CONTEXT, self.own_section)
        await restart(self.worker)
        view = await self._built(
            "texts embedded beside the serving space", lambda view: view.serving != first or _judged(view), [first]
        )
        self.traffic.phase("promotion")
        self.result["building_s"] = round(time.monotonic() - started_s, 1)
        second = view.serving
        if second is None or second == first:
            self._say_judgement(view.candidate)
            return None
        self._say_judgement(view.records[second])
        self.result["ndcg"] = _figure(view.records[second], "ndcg")
        self.result["followed_ms"] = await self._followed(second)
        self.result["promoted"] = True
        await self._calm_after()
        await self._ask("new")
        return second

    async def _return(self, first: str, second: str) -> None:
        self.story.step("The return: somebody wants the old space back, at once: ctxpipe space rollback")
        self.traffic.phase("return")
        code, told = await space_command(self.harness, "rollback", CONTEXT, "--reason", "shown in the demo")
        if code:
            self.story.say(f"refused: {'; '.join(map(str, told.get('reasons', [])))}")
            return
        self.result["return_followed_ms"] = await self._followed(first)
        view = await self.watch.look()
        self.result["returned"] = view.serving == first
        self.story.say(f"space {first} serves again; {second} stays fed, and nothing promotes it by itself")
        await self._calm_after()

    async def _refusal(self) -> None:
        self.story.step("A worse commit: the hashing engine, and a text without most of the facts. Rolled out")
        self.traffic.phase("worse candidate")
        view = await self.watch.look()
        serving, known = view.serving, [*view.records]
        commit(self.harness, CONTEXT, WORSE)
        await restart(self.worker)
        view = await self._built(
            "texts embedded beside the serving space", lambda view: view.serving != serving or _judged(view), known
        )
        self._say_judgement(view.candidate)
        code, told = await space_command(self.harness, "promote", CONTEXT)
        self.story.say(f"ctxpipe space promote: exit code {code}: {'; '.join(map(str, told.get('reasons', [])))}")
        refused = view.candidate is not None and read_evidence(view.candidate).get("decision") == "refuse"
        self.result["worse_refused"] = refused and code == 1 and (await self.watch.look()).serving == serving
        await self._calm_after()

    async def _count(self, ended: Ended) -> None:
        self.story.step("Counting: each score again, by the engine of the space that the answer names")
        mixed, told = ended.mixed, ended.told
        config = load(str(self.harness.config_path)).embedding
        with self.story.bar("scores", len(mixed.scores)) as advance:
            checked = await asyncio.to_thread(check_scores, mixed, self.spaces, config, advance)
        self.result["scores_checked"] = checked
        latency = {phase: latency_figures(kinds) for phase, kinds in ended.latency_ms.items() if phase != "start"}
        self.result |= {
            "lookups": told.lookups,
            "searches": told.searches,
            "errors": self.result["errors"] + told.errors,
            "mixed_space": mixed.mixed,
            "degraded": told.degraded,
            "moved_on": mixed.moved_on,
            "answers_by_space": mixed.by_space,
            "clients": self.settings.clients,
            "latency_ms": latency,
        }
        for example in (*told.error_examples, *mixed.examples):
            self.story.say(f"wrong: {example}")

    # What the steps share.

    async def _built(self, text: str, done: Callable[[SpaceView], bool], known: list[str] | None = None) -> SpaceView:
        """Shows vectors while they come in; learns every space that turns up."""
        with self.story.bar(text, sum(1 for _ in read_rows(PLANES))) as advance:

            def is_done(view: SpaceView) -> bool:
                self._learn(view)
                return done(view)

            return await self.watch.until(is_done, self.harness.roles, advance, known or [])

    def _learn(self, view: SpaceView) -> None:
        """What each space makes of a bundle: the load must know it to check answers."""
        for space, record in view.records.items():
            if space not in self.spaces:
                self.spaces[space] = decode_definition(record.definition)
                if self._traffic is not None:
                    self._traffic.know(space, self.spaces[space].template)

    async def _followed(self, space: str) -> int:
        """Milliseconds until searches are answered by the space."""
        started_s = time.monotonic()
        await self._until(lambda told: told.latest == space, f"an answer of space {space}")
        return round((time.monotonic() - started_s) * 1000)

    async def _until(self, done: Callable[[Told], bool], what: str) -> None:
        deadline_s = time.monotonic() + _FOLLOW_S
        while not done(told := self.traffic.look()):
            self.server.ensure_running()
            if time.monotonic() > deadline_s:
                raise EnvironmentProblem(f"the load did not see {what} within {_FOLLOW_S:g} s: {told}")
            await asyncio.sleep(_STEP_S / 5)

    async def _calm_after(self) -> None:
        self.traffic.phase("after")
        await asyncio.sleep(_CALM_S)
        self._say_load()

    def _say_load(self) -> None:
        told = self.traffic.look()
        self.story.say(f"so far {told.lookups:,} lookups, {told.searches:,} searches, {told.errors} errors")

    def _say_judgement(self, record: SpaceRecord | None) -> None:
        if record is not None:
            evidence = read_evidence(record)
            reasons = evidence.get("reasons") or [evidence.get("reason", "")]
            self.story.say(f"space {record.space}, {record.state}: {'; '.join(map(str, reasons))}")


def _judged(view: SpaceView) -> bool:
    """A candidate that was looked at, and stayed one."""
    return view.candidate is not None and read_evidence(view.candidate).get("action") == "judged"


def _figure(record: SpaceRecord, name: str) -> dict[str, float | None]:
    """Of the space and of the one that it was judged against, by its evidence."""
    evidence = read_evidence(record)
    sides = {"new": evidence.get("candidate") or {}, "old": evidence.get("serving") or {}}
    return {side: None if name not in found else round(found[name], 4) for side, found in sides.items()}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
