"""Keeps searches on the embedding space of each context that serves: a promoted one takes over between two searches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.core import metrics
from pipeline.core.errors import CtxpipeError
from pipeline.embedding.engine import Engine
from pipeline.embedding.space import SpaceDefinition, as_configured, check_canaries, decode_definition, space_id
from pipeline.lookup.query_vectors import QueryEmbedder
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.stores.spaces import SpaceRecord, TextIndex, VectorIndex
from schemas.context import ContextSpec
from schemas.errors import DecodeError
from schemas.vectors import FilterValue

LOOK_EVERY_S = 0.5
ENGINE_RETRY_S = 10.0
OPENING = "the embedding engine is being opened"

_LOG = logging.getLogger("ctxpipe.lookup")


class TextState(Protocol):
    """Of a bundle's newest text (schemas.vectors.TextRecord)."""

    @property
    def bundle_hash(self) -> str: ...

    @property
    def text_hash(self) -> str: ...

    @property
    def filters(self) -> dict[str, FilterValue | list[FilterValue]]: ...


class SearchedTexts(TextIndex, Protocol):
    """A TextIndex that also gives the texts back."""

    def text_of(self, key: str) -> str | None: ...

    def state_of(self, key: str) -> TextState | None: ...


class SpaceReplica(Protocol):
    """Both indexes of one space, being fed; see pipeline.streams.replica."""

    @property
    def vectors(self) -> VectorIndex: ...

    @property
    def texts(self) -> SearchedTexts: ...

    @property
    def vectors_loaded(self) -> bool: ...

    @property
    def texts_loaded(self) -> bool: ...

    @property
    def problem(self) -> str: ...

    @property
    def behind_records(self) -> int | None: ...

    @property
    def as_of_us(self) -> int | None: ...

    async def start(self) -> None: ...

    async def run(self) -> None: ...

    async def holds_now(self, limit_s: float) -> bool: ...

    async def close(self) -> None: ...


@dataclass(eq=False)
class OpenSpace:
    """One space, open. `engine_problem` says why queries cannot be embedded, for callers; `searches` counts those that
    use it now."""

    space: str
    definition: SpaceDefinition
    record: SpaceRecord
    replica: SpaceReplica
    embedder: QueryEmbedder | None = None
    engine_problem: str = OPENING
    searches: int = 0
    feeding: asyncio.Task[None] | None = None
    opening: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Searches lose nothing when they come over."""
        return self.embedder is not None and self.replica.vectors_loaded and self.replica.texts_loaded

    @property
    def opens_engine(self) -> bool:
        """For the first time, and nothing has gone wrong with it."""
        return self.embedder is None and self.engine_problem == OPENING


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers searches of a context: a space, and the version of the context that its vectors are made from."""

    served: ServedContext
    space: OpenSpace


OpenReplica = Callable[[SpaceDefinition, SpaceRecord], SpaceReplica]
OpenEngine = Callable[[SpaceDefinition], Engine]
"""Blocks. Raises CtxpipeError."""
_Place = tuple[str, int, str]


@dataclass
class SpaceKeeper:
    """`run` looks for spaces and promotions until it is cancelled; call `close` afterwards.

    The serving space, a candidate and the previous one are all kept open and fed. When another one serves, searches go
    over as soon as it has been read to the end and its engine answers; until then they stay, and so does the version
    of the context that they read. A search keeps what it began with.
    """

    service: LookupService
    open_replica: OpenReplica
    open_engine: OpenEngine
    _open: dict[_Place, OpenSpace] = field(default_factory=dict)
    _serving: dict[str, Serving] = field(default_factory=dict)
    looked: bool = False
    """Whether it knows yet which spaces there are."""
    told: set[str] = field(default_factory=set)
    """What went wrong so far."""

    def serving(self, context: str) -> Serving | None:
        """None while no space of the context is open."""
        return self._serving.get(context)

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Trouble changes nothing: searches go on with what is at hand."""
        wanted: set[_Place] = set()
        for served in self.service.versions:
            try:
                wanted |= await self._look_at(served)
            except CtxpipeError as error:
                self._tell_once(f"{served.spec.context}: searches stay with the space at hand: {error}")
                wanted |= {place for place in self._open if place[0] == served.spec.context}
        kept = {id(serving.space) for serving in self._serving.values()}
        for place, space in list(self._open.items()):
            if place not in wanted and id(space) not in kept and not space.searches:
                del self._open[place]
                await _close(space)
        self.looked = True

    async def close(self) -> None:
        for context in list(self._serving):
            self._release(context)
        for space in self._open.values():
            await _close(space)
        self._open.clear()

    async def _look_at(self, served: ServedContext) -> set[_Place]:
        context, version = served.spec.context, served.spec.version
        if not served.embeds or served.spaces is None:
            self._release(context)
            return set()
        records = {record.space: record for record in await served.spaces.all() if record.state != "retired"}
        for record in records.values():
            await self._opened((context, version, record.space), record, served.spec)
        promoted = next((record.space for record in records.values() if record.state == "serving"), None)
        target = self._open.get((context, version, promoted)) if promoted is not None else None
        if target is not None:
            self._open_engine_of(target)
            now = self._serving.get(context)
            moves = now is None or (now.space is not target and target.ready)
            if moves or (now is not None and now.space is target and now.served is not served):
                self._take(Serving(served, target))
        return {(context, version, space) for space in records}

    async def _opened(self, place: _Place, record: SpaceRecord, spec: ContextSpec) -> None:
        if place in self._open:
            return
        try:
            definition = as_configured(decode_definition(record.definition), spec)
            replica = self.open_replica(definition, record)
            await replica.start()
        except (CtxpipeError, DecodeError) as error:
            self._tell_once(f"{place[0]}: space {record.space} cannot be opened: {error}")
            return
        space = OpenSpace(record.space, definition, record, replica)
        space.feeding = asyncio.create_task(replica.run())
        space.feeding.add_done_callback(_tell_end)
        self._open[place] = space

    def _open_engine_of(self, space: OpenSpace) -> None:
        if space.embedder is None and space.opening is None:
            space.opening = asyncio.create_task(self._try_engine(space))

    async def _try_engine(self, space: OpenSpace) -> None:
        while space.embedder is None:
            try:
                space.embedder = QueryEmbedder(await asyncio.to_thread(self._checked_engine, space))
                space.engine_problem = ""
            except CtxpipeError as error:
                # The text may name hosts and folders inside; it stays in the log.
                space.engine_problem = "the embedding engine cannot be opened; see the server's log"
                self._tell_once(f"space {space.space}: queries cannot be embedded: {error}")
                await asyncio.sleep(ENGINE_RETRY_S)

    def _checked_engine(self, space: OpenSpace) -> Engine:
        """Blocks. Another model under the same name must not be asked (promise 6)."""
        engine = self.open_engine(space.definition)
        try:
            if engine.identity.dimension != space.record.dimension:
                raise CtxpipeError(
                    f"its engine has {engine.identity.dimension} dimensions, not {space.record.dimension}"
                )
            known = SpaceDefinition(
                space.definition.context, space.definition.version, space.definition.embedding,
                space.definition.template, engine.identity,
            )  # fmt: skip
            if space_id(known) != space.space:
                raise CtxpipeError(f"the engine's model is not the one of this space: {engine.identity}")
            if space.record.canaries:
                check_canaries(space.space, engine, space.record.canaries)
        except CtxpipeError:
            engine.close()
            raise
        return engine

    def _take(self, serving: Serving) -> None:
        context = serving.served.spec.context
        self._release(context)
        # Its store stays open as long as searches read from it, whatever version answers lookups.
        serving.served.queries += 1
        self._serving[context] = serving
        metrics.active_space.labels(context, serving.space.space).set(1)
        _LOG.info("%s: space %s answers searches", context, serving.space.space)

    def _release(self, context: str) -> None:
        old = self._serving.pop(context, None)
        if old is not None:
            old.served.queries -= 1
            metrics.active_space.remove(context, old.space.space)

    def _tell_once(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            _LOG.warning("%s", text)


async def _close(space: OpenSpace) -> None:
    for task in (space.opening, space.feeding):
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await space.replica.close()
    if space.embedder is not None:
        await space.embedder.close()


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _LOG.error("a replica ended: %r", task.exception(), exc_info=task.exception())
