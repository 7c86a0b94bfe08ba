"""Puts a source, its publisher and its positions together; commands, benchmarks and tests start from here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from connectors.positions import KafkaPositions
from connectors.publisher import KafkaSettings, Publisher, TopicPlan
from connectors.registry import Configured
from connectors.runtime import Attempt
from connectors.source import KeepingAll, Progressing, Resetting, ShowProgress, Source, Topics, UsingKafka
from pipeline.core.errors import ConfigError, EnvironmentProblem, Retryable
from schemas.topics import positions_topic


def publisher_of(name: str, source: Source, kafka: KafkaSettings, position_name: str = "") -> Publisher:
    """A publisher that will create the topics that the source tells. `position_name`: where the position is kept, if
    that is not the source's name."""
    tables, others = (source.table_topics(), source.other_topics()) if isinstance(source, Topics) else ([], [])
    single = [positions_topic(position_name or name)]
    if isinstance(source, KeepingAll):
        plan = TopicPlan([], others, single, kept=tables, kept_ms=source.retention_ms())
    else:
        plan = TopicPlan(tables, others, single)
    return Publisher(name, kafka, plan)


def attempts(
    configured: Configured, kafka: KafkaSettings, progress: ShowProgress | None = None
) -> Callable[[], Awaitable[Attempt]]:
    """For Runtime: fresh objects for each attempt."""

    async def make() -> Attempt:
        source = configured.source()
        if progress is not None and isinstance(source, Progressing):
            source.show_progress(progress)
        if isinstance(source, UsingKafka):
            source.use_kafka(kafka)
        position_name = configured.position_name
        publisher = publisher_of(configured.name, source, kafka, position_name)
        return Attempt(source, publisher, KafkaPositions(position_name, publisher))

    return make


async def store_reset(configured: Configured, kafka: KafkaSettings) -> None:
    """Makes the next start begin anew; see Resetting. Raises ConfigError for a connector that can't."""
    source = configured.source()
    if not isinstance(source, Resetting):
        text = f"sources.{configured.name}: connector {configured.plugin.name} can't begin anew by --reset"
        raise ConfigError([text])
    position_name = configured.position_name
    publisher = publisher_of(configured.name, source, kafka, position_name)
    try:
        with retryable_is_fatal():
            await publisher.start()
        await KafkaPositions(position_name, publisher).save(source.reset_position())
    finally:
        await publisher.stop()


@contextmanager
def retryable_is_fatal() -> Iterator[None]:
    """For a single try: a server that is away is a person's problem."""
    try:
        yield
    except Retryable as error:
        raise EnvironmentProblem(str(error)) from error
