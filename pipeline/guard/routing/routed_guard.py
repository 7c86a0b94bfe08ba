"""A guard whose active models are those of the routing file: swapped in a running service, and taken back by itself.

routing.yaml ─▶ loading (mistakes? evidence?) ─▶ a new generation ─▶ its calls watched ─▶ limits broken: the one before
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import ConfigError, CtxpipeError
from pipeline.core.logging import SparseLog
from pipeline.guard.breaker import State
from pipeline.guard.client import ModelClient
from pipeline.guard.config import GuardConfig
from pipeline.guard.escalations import Escalations
from pipeline.guard.guard import PUT_S_MAX, Function, Guard
from pipeline.guard.prices import PriceTable, read_prices
from pipeline.guard.routing import telling
from pipeline.guard.routing.config import TaskRouting
from pipeline.guard.routing.generation import Builder, Generation, Watched
from pipeline.guard.routing.loading import Decision, Snapshot, Source, decided, gone, mistakes_of, usable
from pipeline.guard.routing.pairs import Pairs, Score
from pipeline.guard.routing.state import RoutingState, Standing, StateFile, TakenBack, merged, without
from pipeline.guard.routing.window import seen_of
from pipeline.guard.values import ModelRequest, Result

LOOK_EVERY_S = 1.0
SETTLE_S = 0.1
"""A file that was just written is read when it has stayed the same for so long: somebody may be in the middle of it."""
_LOG = logging.getLogger("ctxpipe.routing")
_SPARSE = SparseLog(_LOG, 60)


class RoutedGuard:
    """`call` as of Guard. `async with` it: then it follows the file, every second, or at once when `look_soon` is
    called (by a handler of SIGHUP). `close` ends that, waits for escalations, and drops copies for candidates that are
    still on their way.

    `state`: a file that survives restarts, see state. `scores` by task. `pairs` None: candidates get no traffic. A
    rollback is put into `escalations`, for people to see. Raises ConfigError where it is made: mistakes of the files,
    or an active model that nothing proves and nothing before it to go on with; EnvironmentProblem where the state can't
    be written. While it runs, neither changes anything: what is in force stays, and the log and the metrics say so.
    """

    def __init__(
        self,
        config: GuardConfig,
        routing: Path,
        state: Path,
        client: ModelClient,
        escalations: Escalations,
        functions: Mapping[str, Function] | None = None,
        *,
        scores: Mapping[str, Score] | None = None,
        pairs: Pairs | None = None,
        prices: PriceTable | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        prices, clock = prices or read_prices(), clock or SystemClock()
        self._prices = prices
        self._config, self._escalations, self._clock, self._look_every_s = config, escalations, clock, look_every_s
        self._source, self._file = Source(routing, config), StateFile(state)
        self._builder = Builder(config, client, pairs, scores or {}, prices=prices, clock=clock, chance=chance)
        self._routings: Mapping[str, TaskRouting] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._stamp = b""
        guard = Guard(config, client, escalations, functions, prices=prices, clock=clock, chance=chance)
        self._generation = Generation(0, guard)
        self._state = usable(self._file.read(), config)
        self._begin()

    async def call(self, request: ModelRequest) -> Result:
        """As Guard.call."""
        generation = self._generation
        result = await generation.guard.call(request)
        watched = generation.watched_of(request.task)
        if watched is not None:
            self._after(watched, request, result)
        return result

    def states(self) -> Mapping[str, State]:
        """Of all breakers, as Guard.states."""
        return self._generation.guard.states()

    @property
    def generation(self) -> int:
        """Counts swaps, rollbacks and changes of ladders."""
        return self._generation.number

    @property
    def in_force(self) -> Mapping[str, Standing]:
        """By task of the file: who is asked first, since when, and who was before."""
        return dict(self._state.tasks)

    def look_soon(self) -> None:
        """The file is looked at now, instead of within a second; returns at once."""
        self._soon.set()

    async def look(self) -> None:
        """Looks at the files, and swaps where they say so. Never raises for what is in them."""
        await self._hear_of_others()
        stamp = await asyncio.to_thread(self._source.stamp)
        if stamp == self._stamp:
            return
        await self._clock.sleep(SETTLE_S)
        if await asyncio.to_thread(self._source.stamp) != stamp:
            self._soon.set()
            return
        self._stamp = stamp
        try:
            snapshot = await asyncio.to_thread(self._source.read)
        except ConfigError as error:
            telling.refused(["broken_file"], error.mistakes, self._state.tasks)
            return
        self._stamp = await asyncio.to_thread(self._source.stamp)  # other evidence may be named now
        self._take(snapshot)

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})
            self._following = None
        for shadow in self._generation.shadows:
            await shadow.close()
        while self._background:
            await asyncio.wait(set(self._background))
        await self._generation.guard.close()

    async def idle(self) -> None:
        """Returns when the copies that are on their way are written down, and so is the state."""
        for shadow in self._generation.shadows:
            await shadow.idle()
        while self._background:
            await asyncio.wait(set(self._background))

    async def __aenter__(self) -> RoutedGuard:
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _begin(self) -> None:
        """Blocks: nothing is served yet."""
        snapshot = self._source.read()
        self._stamp = self._source.stamp()
        decision = self._decided(snapshot)
        refusals = mistakes_of(decision, snapshot.file)
        kept = self._state.tasks if refusals else decision.standings
        if any(task not in self._state.tasks for task in decision.refused):
            raise ConfigError(refusals)
        lost = gone(kept, self._config)
        if lost:
            raise ConfigError([*refusals, *(f"{self._file.path}: {one}" for one in lost)])
        if refusals:
            telling.refused([one.reason for one in decision.refused.values()], refusals, self._state.tasks)
            self._swap(self._state, {})
        else:
            self._accept(decision, snapshot)
        self._file.change(lambda disk: merged(disk, self._state))

    def _take(self, snapshot: Snapshot) -> None:
        decision = self._decided(snapshot)
        if decision.refused:
            reasons = [one.reason for one in decision.refused.values()]
            telling.refused(reasons, mistakes_of(decision, snapshot.file), self._state.tasks)
            return
        self._accept(decision, snapshot)
        self._later(self._persist())

    def _decided(self, snapshot: Snapshot) -> Decision:
        now_us = self._clock.now_us()
        day = datetime.fromtimestamp(now_us / 1_000_000, UTC).date()
        return decided(
            snapshot,
            self._config,
            self._state,
            now_us,
            lambda endpoint: self._prices.of(endpoint.price_name, day) is not None,
        )

    def _accept(self, decision: Decision, snapshot: Snapshot) -> None:
        telling.accepted(decision, self._state.tasks)
        state = self._state.model_copy(update={"tasks": dict(decision.standings)})
        self._swap(state, snapshot.file.config.tasks)

    def _swap(self, state: RoutingState, routings: Mapping[str, TaskRouting]) -> None:
        """From here on calls go by it; those that are on their way don't notice."""
        last = self._generation
        self._state, self._routings = state, routings
        self._generation = self._builder.next(last, state.tasks, routings)
        telling.in_force(state.tasks)
        for shadow in last.shadows:
            if shadow not in self._generation.shadows:
                self._later(shadow.close())

    def _after(self, watched: Watched, request: ModelRequest, result: Result) -> None:
        if watched.window is not None and self._clock.now_us() < watched.watched_until_us:
            seen = seen_of(result, watched.endpoint.name)
            broken = None if seen is None else watched.window.add(seen)
            if broken is not None:
                self._take_back(watched.task, watched.standing.fingerprint, broken)
        if watched.shadow is not None:
            watched.shadow.offer(request, result, watched.endpoint, watched.standing.route)

    def _take_back(self, task: str, fingerprint: str, why: str) -> None:
        """The one before answers again; once only, however many late calls say the same."""
        standing = self._state.tasks.get(task)
        if standing is None or standing.fingerprint != fingerprint or standing.previous is None:
            return
        now_us = self._clock.now_us()
        taken = TakenBack(
            task=task, fingerprint=fingerprint, endpoint=standing.identity.endpoint, at_us=now_us, why=why
        )
        self._swap(without(self._state, taken, now_us), self._routings)
        telling.taken_back(taken, standing.previous.identity.endpoint)
        self._later(self._persist())
        self._later(self._ask_people(taken, standing.previous.identity.endpoint))

    async def _hear_of_others(self) -> None:
        """Another process on the same state may have taken back what is active here."""
        try:
            told = await asyncio.to_thread(self._file.read)
        except ConfigError as error:
            _SPARSE.tell("rollbacks of other processes can't be seen: %s", error)
            return
        self._state = self._state.model_copy(update={"taken_back": merged(told, self._state).taken_back})
        for taken in told.taken_back:
            self._take_back(taken.task, taken.fingerprint, taken.why)

    async def _persist(self) -> None:
        try:
            await asyncio.to_thread(self._file.change, lambda disk: merged(disk, self._state))
        except CtxpipeError as error:
            _LOG.error("what is in force counts until this process ends, it could not be written down: %s", error)

    async def _ask_people(self, taken: TakenBack, before: str) -> None:
        try:
            async with asyncio.timeout(PUT_S_MAX):
                await self._escalations.put(telling.question(taken, before))
        except (CtxpipeError, OSError) as error:
            _LOG.error("the rollback of %s could not be put to people: %s", taken.task, error or type(error).__name__)

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._look_every_s):
                    await self._soon.wait()
            except TimeoutError:
                pass
            self._soon.clear()
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - what is in force stays, and the next look may find the world in order
                _LOG.exception("looking at the routing file failed")

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
