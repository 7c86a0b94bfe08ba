"""From a configuration to a worker's app: plan, Redis stores, flow and the Faust app that feeds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigError
from pipeline.flow import Flow
from pipeline.plan import compile_plan, default_composition
from pipeline.report import BatchReport
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_store import open_stores
from pipeline.streams.app import ContextApp, ContextStream, OpenContext, StreamSettings, build_app
from schemas.context import ContextSpec
from schemas.topics import table_topic

if TYPE_CHECKING:
    from pipeline.core.config import Config


def app_for(
    config: Config, spec: ContextSpec, on_report: Callable[[BatchReport, float], None] | None = None
) -> ContextApp:
    """The app of a context. Raises ConfigError for a spec that does not compile; nothing connects yet."""
    compile_plan(spec)
    return build_app(context_stream(config, spec, on_report), stream_settings(config))


def stream_settings(config: Config) -> StreamSettings:
    """Kafka's side."""
    return StreamSettings(
        config.kafka.bootstrap_servers,
        dirty_partitions=config.kafka.partitions,
        replication_factor=config.kafka.replication_factor,
    )


def redis_settings(config: Config, spec: ContextSpec) -> RedisSettings:
    """Redis's side."""
    return RedisSettings(
        url=config.redis.url,
        context=spec.context,
        version=spec.version,
        cluster=config.redis.cluster,
        prefix=config.redis.prefix,
        time_to_live_s=spec.serving.time_to_live_s or 0,
    )


def context_stream(
    config: Config, spec: ContextSpec, on_report: Callable[[BatchReport, float], None] | None = None
) -> ContextStream:
    """The topics of the context's entities, and how its stores are opened."""
    secret = config.mask_secret.get_secret_value().encode() if config.mask_secret is not None else b""
    topics = sorted({table_topic(entity.source, entity.table) for entity in spec.entities.values()})

    async def open_context() -> OpenContext:
        stores = await open_stores(redis_settings(config, spec))
        # All workers of a version must compose alike: the first one's choice is kept.
        composition = await stores.serving.composition(default_composition(spec))
        plan = compile_plan(spec, composition, secret)
        flow = Flow(plan, stores.rows, stores.relations, stores.bundles)

        async def promote() -> None:
            await stores.serving.promote(spec.version)

        return OpenContext(flow, stores.marks, promote, stores.close)

    return ContextStream(spec.context, spec.version, topics, open_context, on_report)


def app_of_file(config_path: str, context: str) -> ContextApp:
    """Reads the configuration. Raises ConfigError with all its mistakes."""
    from pipeline.core.config import load, load_contexts

    config = load(config_path)
    contexts = load_contexts(config)
    if context not in contexts:
        raise ConfigError([f"no context {context!r} in {config_path}; it has: {', '.join(sorted(contexts)) or 'none'}"])
    return app_for(config, contexts[context])
