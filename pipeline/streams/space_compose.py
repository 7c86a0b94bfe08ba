"""Puts the app of an embedding space together, and begins a space: which one a version's spec asks for, here."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mode import get_logger

from pipeline.bundle import empty_bytes
from pipeline.core import telemetry
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import CtxpipeError, Fatal
from pipeline.core.freshness import Freshness
from pipeline.embedded_text import TextMaker
from pipeline.embedding.batching import BatchLimits
from pipeline.embedding.open import open_engine
from pipeline.embedding.rate_limit import RateLimit
from pipeline.embedding.space import (
    SpaceDefinition,
    as_configured,
    canary_vectors,
    check_canaries,
    decode_definition,
    define_space,
    encode_definition,
    space_id,
)
from pipeline.plan import compile_plan
from pipeline.stores.redis_marks import RedisMarks
from pipeline.stores.redis_store import Stores, context_settings, open_stores
from pipeline.stores.spaces import SpaceRecord, SpaceStore
from pipeline.streams.compose import context_of_file, stream_settings
from pipeline.streams.journey import SpaceJourneys
from pipeline.streams.reporting import SpaceMetrics
from pipeline.streams.space_app import LIMITS, OpenSpace, SpaceApp, SpaceStream, build_space_app
from pipeline.streams.space_engine import EngineHolder
from pipeline.streams.space_expiry import expired_keys
from pipeline.streams.space_outlet import SpaceOutlet
from pipeline.streams.text_stage import TextStage
from pipeline.streams.vector_echo import VectorEcho
from pipeline.streams.vector_stage import VectorStage
from schemas.context import ContextSpec
from schemas.definition import Definition
from schemas.errors import DecodeError

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.embedding.engine import Engine

logger = get_logger(__name__)

STALL_LIMIT_S = 1800.0
"""A batch of long texts on a slow engine takes its time."""
STATE_KNOWN_FOR_S = 2.0
SHORTEST_WAIT_S = 0.001


def space_app_of_file(config_path: str, context: str, version: int | None, space: str) -> SpaceApp:
    """The app that feeds a space of a context of a configuration. Raises ConfigError with everything that is wrong."""
    config, spec = _of_file(config_path, context, version)
    return space_app_for(config, spec, space)


async def begin_space_of_file(config_path: str, context: str, version: int | None) -> str | None:
    """See begin_space."""
    return await begin_space(*_of_file(config_path, context, version))


def _of_file(config_path: str, context: str, version: int | None) -> tuple[Config, ContextSpec]:
    """The file may say another version by now than whoever asks works on."""
    config, spec = context_of_file(config_path, context)
    return config, spec if version is None else spec.model_copy(update={"version": version})


def space_app_for(config: Config, spec: ContextSpec, space: str) -> SpaceApp:
    """The app that feeds a registered space of this context version; nothing connects yet."""
    settings = replace(stream_settings(config), stall_limit_s=STALL_LIMIT_S, lane_limits=LIMITS)

    async def open_space(outlet: SpaceOutlet, shown: SpaceMetrics) -> OpenSpace:
        stores = await open_stores(context_settings(config, spec))
        try:
            return await _open(config, stores, spec, space, outlet, shown)
        except CtxpipeError:
            await stores.close()
            raise

    return build_space_app(SpaceStream(spec.context, spec.version, space, open_space), settings)


async def begin_space(config: Config, spec: ContextSpec) -> str | None:
    """The space that the version's stored spec asks for, registered; None where it embeds nothing, or where no worker
    of the version has begun. Opens the engine: seconds.

    Raises ConfigError, EnvironmentProblem and Fatal where the engine can't be opened, Retryable while Redis is away.
    """
    stores = await open_stores(context_settings(config, spec))
    try:
        stored = await stores.serving.definition(spec.version)
        if stored is None or stored.spec.embedding is None:
            return None
        record = await asyncio.to_thread(_defined, config, stored.spec)
        kept = await stores.spaces.register(record)
        if kept.created_us == record.created_us:
            logger.info("space %s of %s version %d begins", kept.space, spec.context, spec.version)
        return kept.space
    finally:
        await stores.close()


def _defined(config: Config, spec: ContextSpec) -> SpaceRecord:
    assert spec.embedding is not None
    engine = open_engine(spec.embedding, config.embedding)
    try:
        definition = define_space(spec, engine.identity)
        return SpaceRecord(
            space=space_id(definition),
            state="candidate",
            definition=encode_definition(definition),
            canaries=canary_vectors(engine),
            dimension=engine.identity.dimension,
            created_us=SystemClock().now_us(),
        )
    finally:
        engine.close()


async def _open(
    config: Config, stores: Stores, spec: ContextSpec, space: str, outlet: SpaceOutlet, shown: SpaceMetrics
) -> OpenSpace:
    record = next((one for one in await stores.spaces.all() if one.space == space), None)
    stored = await stores.serving.definition(spec.version)
    if record is None or stored is None or record.state == "retired":
        raise Fatal(f"context {spec.context} version {spec.version} has no space {space} in use")
    try:
        definition = as_configured(decode_definition(record.definition), stored.spec)
    except DecodeError as error:
        raise Fatal(f"space {space} belongs to another release of ctxpipe: {error}") from error
    clock, embedding = SystemClock(), definition.embedding
    limits = BatchLimits(config.embedding.batch_texts_max, config.embedding.batch_wait_ms)

    def check(engine: Engine) -> float:
        return check_canaries(space, engine, record.canaries)

    holder = EngineHolder(lambda: open_engine_of(config, definition, record), check, limits, clock)
    maker = _text_maker(config, stored, definition)
    rate = config.embedding.candidate_texts_per_s
    pace = None if rate is None else CandidatePace(space, stores.spaces, rate, clock)
    freshness = Freshness(spec.context, spec.serving, ("embedded",))
    journeys = SpaceJourneys(spec.context, space, clock, freshness, telemetry.traces())
    texts = TextStage(space, maker, stores.reader, stores.vector_states, outlet, clock, shown, pace, journeys)
    vectors = VectorStage(space, embedding.chunks, holder, stores.vector_states, outlet, clock, shown, journeys)
    echo = VectorEcho(space, record.dimension, stores.vector_states, outlet, clock, shown)
    marks = RedisMarks(stores.client, space)

    async def forget() -> None:
        await stores.vector_states.forget(space)
        await marks.forget()

    async def note_serving() -> None:
        journeys.live = await stores.spaces.serving() == space

    async def close() -> None:
        await holder.close()
        await stores.close()

    life_s = spec.serving.time_to_live_s or 0
    expired = partial(expired_keys, stores, space) if life_s else None
    return OpenSpace(texts.handle, vectors.handle, echo.handle, marks, forget, close, expired, life_s, note_serving)


def open_engine_of(config: Config, definition: SpaceDefinition, record: SpaceRecord) -> Engine:
    """Blocks. The engine of a space, proven to be the one that its vectors were made with.

    Raises Fatal where it is another one, and what open_engine raises.
    """
    engine = open_engine(definition.embedding, config.embedding)
    try:
        if engine.identity != definition.identity:
            raise Fatal(
                f"space {record.space} was made with {definition.identity.model or definition.identity.engine}, whose "
                "files are others here; bring the same model to this machine"
            )
        check_canaries(record.space, engine, record.canaries)
    except CtxpipeError:
        engine.close()
        raise
    return engine


def _text_maker(config: Config, stored: Definition, definition: SpaceDefinition) -> TextMaker:
    plan = compile_plan(stored.spec, stored.composition, config.mask_key, config.formats, stored.traced)
    empty = {node.path: empty_bytes(node) for node in plan.nodes if node.path}
    return TextMaker(definition.template, definition.embedding.filters, empty, stored.traced)


class CandidatePace:
    """Waits so that a candidate's texts come no faster than `texts_per_s`; for any other space it does not."""

    def __init__(self, space: str, spaces: SpaceStore, texts_per_s: float, clock: Clock) -> None:
        self._space, self._spaces, self._clock = space, spaces, clock
        self._limit = RateLimit(None, max(1, round(texts_per_s * 60)), clock.monotonic_s)
        self._candidate, self._known_s = True, float("-inf")

    async def __call__(self, texts: int) -> None:
        left = texts
        while left > 0 and await self._is_candidate():
            wait_s = self._limit.take(0, min(left, 100))
            if wait_s:
                await self._clock.sleep(max(SHORTEST_WAIT_S, min(wait_s, STATE_KNOWN_FOR_S)))
            else:
                left -= 100

    async def _is_candidate(self) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s - self._known_s > STATE_KNOWN_FOR_S:
            self._candidate = any(
                one.space == self._space and one.state == "candidate" for one in await self._spaces.all()
            )
            self._known_s = now_s
        return self._candidate
