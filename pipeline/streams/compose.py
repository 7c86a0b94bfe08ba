"""From a configuration to a worker's app: plan, Redis stores, flow and the Faust app that feeds it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.composition import adopted, traced_links
from pipeline.core import telemetry
from pipeline.core.clock import SystemClock
from pipeline.core.errors import ConfigError, CtxpipeError
from pipeline.core.freshness import Freshness
from pipeline.flow import Flow
from pipeline.merging import Merging
from pipeline.plan import Plan, compile_plan
from pipeline.report import BatchReport
from pipeline.rows import key_of_record
from pipeline.stores.redis_store import Stores, context_settings, open_stores
from pipeline.streams.app import ContextApp, ContextStream, OpenContext, build_app
from pipeline.streams.ending import end_stuck
from pipeline.streams.handler import Stages
from pipeline.streams.journey import Journeys
from pipeline.streams.membership import member_name
from pipeline.streams.registry import Registered, Registries
from pipeline.streams.token_counting import token_counting
from pipeline.streams.worker_app import StreamSettings
from schemas.bundle import ROOT_UNIT
from schemas.context import ContextSpec, Stage
from schemas.record import Record
from schemas.topics import consumer_group

if TYPE_CHECKING:
    from pipeline.core.config import Config


NOTHING_PROPOSED: Mapping[str, str] = {}
KEYS_AT_ONCE = 1000
FILLED_BY_OTHERS = ("debezium", "cassandra")
"""Connectors whose changes reach Kafka from a process of somebody else's; of Cassandra, only snapshots come from us."""


def app_for(
    config: Config, spec: ContextSpec, proposal: Mapping[str, str] = NOTHING_PROPOSED, number: int = 1
) -> ContextApp:
    """The app of a context, in the process with this number of its worker. Raises ConfigError for a spec that does not
    compile; nothing connects yet."""
    compile_plan(spec, mask_secret=config.mask_key, formats=config.formats)
    return build_app(context_stream(config, spec, proposal=proposal), stream_settings(config, number))


def stream_settings(config: Config, number: int = 1) -> StreamSettings:
    """Kafka's side, of the process with this number of its worker."""
    return StreamSettings(
        config.kafka.bootstrap_servers,
        session_timeout_s=config.kafka.session_timeout_ms / 1000,
        dirty_partitions=config.kafka.partitions,
        replication_factor=config.kafka.replication_factor,
        security=config.kafka.security,
        drain_s=config.running.drain_s,
        member=member_name(config.kafka.group_instance_id, number),
    )


def context_stream(
    config: Config,
    spec: ContextSpec,
    on_report: Callable[[BatchReport, float], None] | None = None,
    proposal: Mapping[str, str] = NOTHING_PROPOSED,
) -> ContextStream:
    """The topics of the context's entities, and how its stores are opened. `proposal`: how sections left to `auto`
    shall be composed, where no worker of this version has decided before."""
    topics = sorted({config.topic(entity.source, entity.table) for entity in spec.entities.values()})
    registries = Registries(config)
    counting = token_counting(spec, config.embedding)

    async def open_context() -> OpenContext:
        stores = await open_stores(context_settings(config, spec))
        try:
            # All workers of a version must compose alike: the first one's choice is kept.
            offered = adopted(spec, proposal)
            kept = await stores.serving.remember(spec, offered, traced_links(spec, offered), counting.digest)
            composition, traced = kept.composition, kept.traced
            refuse_untraced(spec, composition, traced)
        except CtxpipeError:
            await stores.close()
            raise
        plan = compile_plan(spec, composition, config.mask_key, registries.formats, traced, counting.count)
        foreign = foreign_topics(config, spec)
        merging = Merging(plan, stores.cells, SystemClock().now_us, foreign)
        embeds = spec.embedding is not None
        flow = Flow(
            plan,
            stores.rows,
            stores.relations,
            stores.bundles,
            in_order=stores.in_order,
            merging=merging,
            embeds=embeds,
            now_us=SystemClock().now_us,
            foreign=foreign,
        )
        texts = BundlesBefore(stores, spec.version) if embeds else None

        async def promote() -> None:
            kept = await stores.serving.restore(spec, composition, traced, counting.digest)
            if (kept.composition, kept.traced) != (composition, traced):
                end_stuck("Redis lost its memory, and workers that started since compose the sections differently")
            await stores.serving.promote(spec.version)

        stages = _with_schemas(flow, plan, registries)

        async def serves() -> bool:
            return await stores.serving.current() == spec.version

        journeys = _journeys(spec, plan, bool(foreign))
        return OpenContext(stages, stores.marks, promote, stores.close, flow.expire, texts, serves, journeys)

    return ContextStream(spec.context, spec.version, topics, open_context, on_report)


def foreign_topics(config: Config, spec: ContextSpec) -> frozenset[str]:
    """Whose changes do not come through our connectors: when they are in Kafka, only the records themselves say."""
    entities = [
        entity
        for entity in spec.entities.values()
        if config.sources.get(entity.source, {}).get("connector") in FILLED_BY_OTHERS
    ]
    return frozenset(config.topic(entity.source, entity.table) for entity in entities)


def _journeys(spec: ContextSpec, plan: Plan, foreign: bool) -> Journeys:
    def root_key(record: Record) -> str | None:
        table = plan.topics.get(record.topic)
        return key_of_record(table, record) if table is not None and table is plan.root.table else None

    stages: tuple[Stage, ...] = ("applied", "assembled", "in_redis")
    freshness = Freshness(spec.context, spec.serving, ("in_kafka", *stages) if foreign else stages)
    group = consumer_group(spec.context, spec.version)
    return Journeys(spec.context, SystemClock(), freshness, telemetry.traces(), root_key, group)


class BundlesBefore:
    """The bundles that Redis holds, for whoever asks for their texts: see pipeline.streams.app.WantedTexts."""

    def __init__(self, stores: Stores, version: int) -> None:
        self._stores, self._version = stores, version

    async def asked(self) -> bool:
        return await self._stores.serving.texts_asked(self._version)

    async def keys(self) -> AsyncIterator[list[str]]:
        chunk: list[str] = []
        async for unit in self._stores.reader.scan():
            if unit.unit == ROOT_UNIT:
                chunk.append(unit.key)
            if len(chunk) >= KEYS_AT_ONCE:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    async def remember(self) -> None:
        await self._stores.serving.remember_texts_asked(self._version)


def refuse_untraced(spec: ContextSpec, composition: Mapping[str, str], traced: Sequence[str]) -> None:
    """Raises ConfigError where the embedded template looks at a linked section whose changes this version does not
    follow up to its bundles."""
    untraced = [path for path in traced_links(spec, composition) if path not in traced]
    if untraced:
        raise ConfigError(
            [
                f"context {spec.context}: the embedded template now looks at the linked section {path}, from which "
                f"version {spec.version} keeps no way back to its bundles. Write a new version: number in the file, "
                "and the bundles are built anew beside the serving ones; or compose that section by copy there."
                for path in untraced
            ]
        )


def _with_schemas(flow: Flow, plan: Plan, registries: Registries) -> Stages:
    """The flow; where topics hold Avro, with their registries asked first."""
    topics = {topic: registries.of(table.source) for topic, table in plan.topics.items()}
    asked = {topic: registry for topic, registry in topics.items() if registry is not None}
    return Registered(flow, asked) if asked else flow


def app_of_file(
    config_path: str, context: str, proposal: Mapping[str, str] = NOTHING_PROPOSED, number: int = 1
) -> ContextApp:
    """Reads the configuration. Raises ConfigError with all its mistakes."""
    config, spec = context_of_file(config_path, context)
    return app_for(config, spec, proposal, number)


def context_of_file(config_path: str, context: str) -> tuple[Config, ContextSpec]:
    """The configuration, and one of its contexts. Raises ConfigError with all its mistakes."""
    from pipeline.core.config import load, load_contexts

    config = load(config_path)
    contexts = load_contexts(config)
    if context not in contexts:
        raise ConfigError([f"no context {context!r} in {config_path}; it has: {', '.join(sorted(contexts)) or 'none'}"])
    return config, contexts[context]
