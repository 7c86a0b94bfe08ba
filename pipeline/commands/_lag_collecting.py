"""A collector as the configuration says it: what `ctxpipe collector` runs, and `ctxpipe lag` where none runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.ops.lag.collector import CANARIES, DEAD_LETTERS, SOURCES, Collector, Part, Settings
from pipeline.ops.lag.explaining import Objectives
from pipeline.ops.lag.judging import Judge, Watched
from pipeline.ops.lag.publishing import LagMetrics
from pipeline.ops.lag.sampling import Sampler
from pipeline.ops.lag.windows import Rules
from schemas.topics import consumer_group, dirty_topic

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from schemas.context import ContextSpec

SOURCE_TIMEOUT_S, CANARY_TIMEOUT_S, LETTERS_TIMEOUT_S = 20.0, 30.0, 30.0
ESCALATIONS = "escalations"


def objectives(config: Config, contexts: Mapping[str, ContextSpec]) -> Objectives:
    """Lag beyond what a context promises is late."""
    return Objectives(
        config.collector.late_s, {name: spec.serving.max_age_ms / 1000 for name, spec in contexts.items()}
    )


@asynccontextmanager
async def open_collector(
    config: Config, contexts: Mapping[str, ContextSpec], *, interval_s: float, shown: LagMetrics | None = None
) -> AsyncIterator[Collector]:
    """Nothing is asked before its first collection. Raises ConfigError."""
    section = config.collector
    expected = {consumer_group(name, spec.version): _topics(config, spec) for name, spec in contexts.items()}
    watched = Watched(
        tuple(section.groups),
        tuple(section.ignore),
        section.allowed_lag_records,
        section.offset_reset,
        expected,
    )
    rules = Rules(
        section.samples, interval_s, section.commit_interval_s, section.stuck_s, section.rebalance_s_max
    )  # fmt: skip
    settings = Settings(
        interval_s,
        section.timeout_s,
        tuple(section.scrape),
        section.scrape_key.get_secret_value() if section.scrape_key is not None else "",
        versions={name: spec.version for name, spec in contexts.items()},
        has=watched.has,
        expected_topics=tuple(sorted({topic for topics in expected.values() for topic in topics})),
        stands_s=rules.stands_s,
        objectives=objectives(config, contexts),
    )
    sampler = Sampler(
        config.kafka.bootstrap_servers,
        timeout_s=section.timeout_s,
        records_max=section.records_max,
        **config.kafka.security,
    )
    async with AsyncExitStack() as stack:
        parts = [
            *await _sources(config, stack),
            *await _canaries(config, stack),
            *_dead_letters(config, contexts, stack),
            *_escalations(config, stack),
        ]
        collector = Collector(sampler, Judge(rules, watched), settings, parts, shown)
        stack.push_async_callback(collector.close)
        yield collector


def _topics(config: Config, spec: ContextSpec) -> tuple[str, ...]:
    """What the workers of a context read."""
    tables = {config.topic(entity.source, entity.table) for entity in spec.entities.values()}
    return (*sorted(tables), dirty_topic(spec.context, spec.version))


async def _sources(config: Config, stack: AsyncExitStack) -> list[Part]:
    """Looked at side by side, with the reading rights of the sources' own sections."""
    import asyncio

    from connectors.watching import look, open_watches, publish
    from pipeline.commands._sources import configured_sources, kafka_settings

    if not config.sources:
        return []
    watches = open_watches(configured_sources(config, config.sources), kafka_settings(config))
    for watch in watches.values():
        stack.push_async_callback(watch.close)

    async def looked() -> list[dict[str, Any]]:
        found = await asyncio.gather(*(look(name, watch) for name, watch in watches.items()))
        for health in found:
            publish(health)
        return [health.as_dict() for health in found]

    return [Part(SOURCES, looked, SOURCE_TIMEOUT_S)]


async def _canaries(config: Config, stack: AsyncExitStack) -> list[Part]:
    """Read back only; the canary's own role writes them and shows their metrics."""
    if config.canary is None:
        return []
    from pipeline.client.errors import ClientError
    from pipeline.commands._canary_looking import Canaries
    from pipeline.core.clock import SystemClock

    canaries = Canaries(config, SystemClock())
    stack.push_async_callback(canaries.close)

    async def read() -> list[dict[str, Any]]:
        try:
            return [seen.as_dict() for seen in await canaries.read()]
        except ClientError as error:
            raise Retryable(str(error)) from error

    return [Part(CANARIES, read, CANARY_TIMEOUT_S)]


def _dead_letters(config: Config, contexts: Mapping[str, ContextSpec], stack: AsyncExitStack) -> list[Part]:
    from pipeline.streams.letter_summary import LetterWatch, publish

    names = [*contexts, *config.sources]
    if not names:
        return []
    watch = LetterWatch(config.kafka.bootstrap_servers, names, **config.kafka.security)
    stack.push_async_callback(watch.close)

    async def counted() -> list[dict[str, Any]]:
        found = await watch.look()
        for summary in found:
            publish(summary)
        return [summary.as_dict() for summary in found]

    return [Part(DEAD_LETTERS, counted, LETTERS_TIMEOUT_S)]


def _escalations(config: Config, stack: AsyncExitStack) -> list[Part]:
    """Questions that wait for people; for the metrics alone."""
    if config.guard is None:
        return []
    from pipeline.streams.escalation_watch import EscalationWatch

    watch = EscalationWatch(config.kafka.bootstrap_servers, config.guard.escalations, **config.kafka.security)
    stack.push_async_callback(watch.close)

    async def looked() -> list[dict[str, Any]]:
        return [one.as_dict() for one in await watch.look()]

    return [Part(ESCALATIONS, looked, LETTERS_TIMEOUT_S)]


def refused(collector: Collector) -> CtxpipeError | None:
    """Why Kafka told nothing in the last collection."""
    report = collector.report
    if report is None:
        return None
    problem = next((part.problem for part in report.collector.parts if part.part == "kafka" and not part.up), "")
    return Retryable(problem) if problem else None
