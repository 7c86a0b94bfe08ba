"""From a configuration to a worker's app: plan, Redis stores, flow and the Faust app that feeds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pipeline.composition import adopted
from pipeline.core.clock import SystemClock
from pipeline.core.errors import ConfigError, CtxpipeError
from pipeline.flow import Flow
from pipeline.merging import Merging
from pipeline.plan import Plan, compile_plan
from pipeline.report import BatchReport
from pipeline.stores.redis_store import context_settings, open_stores
from pipeline.streams.app import ContextApp, ContextStream, OpenContext, StreamSettings, build_app
from pipeline.streams.ending import end_stuck
from pipeline.streams.handler import Stages
from pipeline.streams.registry import Registered, Registries
from schemas.context import ContextSpec

if TYPE_CHECKING:
    from pipeline.core.config import Config


NOTHING_PROPOSED: Mapping[str, str] = {}


def app_for(config: Config, spec: ContextSpec, proposal: Mapping[str, str] = NOTHING_PROPOSED) -> ContextApp:
    """The app of a context. Raises ConfigError for a spec that does not compile; nothing connects yet."""
    compile_plan(spec, mask_secret=config.mask_key, formats=config.formats)
    return build_app(context_stream(config, spec, proposal=proposal), stream_settings(config))


def stream_settings(config: Config) -> StreamSettings:
    """Kafka's side."""
    return StreamSettings(
        config.kafka.bootstrap_servers,
        dirty_partitions=config.kafka.partitions,
        replication_factor=config.kafka.replication_factor,
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

    async def open_context() -> OpenContext:
        stores = await open_stores(context_settings(config, spec))
        try:
            # All workers of a version must compose alike: the first one's choice is kept.
            composition = (await stores.serving.remember(spec, adopted(spec, proposal))).composition
        except CtxpipeError:
            await stores.close()
            raise
        plan = compile_plan(spec, composition, config.mask_key, registries.formats)
        merging = Merging(plan, stores.cells, SystemClock().now_us)
        flow = Flow(plan, stores.rows, stores.relations, stores.bundles, in_order=stores.in_order, merging=merging)

        async def promote() -> None:
            if (await stores.serving.restore(spec, composition)).composition != composition:
                end_stuck("Redis lost its memory, and workers that started since compose the sections differently")
            await stores.serving.promote(spec.version)

        return OpenContext(_with_schemas(flow, plan, registries), stores.marks, promote, stores.close, flow.expire)

    return ContextStream(spec.context, spec.version, topics, open_context, on_report)


def _with_schemas(flow: Flow, plan: Plan, registries: Registries) -> Stages:
    """The flow; where topics hold Avro, with their registries asked first."""
    topics = {topic: registries.of(table.source) for topic, table in plan.topics.items()}
    asked = {topic: registry for topic, registry in topics.items() if registry is not None}
    return Registered(flow, asked) if asked else flow


def app_of_file(config_path: str, context: str, proposal: Mapping[str, str] = NOTHING_PROPOSED) -> ContextApp:
    """Reads the configuration. Raises ConfigError with all its mistakes."""
    from pipeline.core.config import load, load_contexts

    config = load(config_path)
    contexts = load_contexts(config)
    if context not in contexts:
        raise ConfigError([f"no context {context!r} in {config_path}; it has: {', '.join(sorted(contexts)) or 'none'}"])
    return app_for(config, contexts[context], proposal)
