"""Puts a source, its publisher and its positions together; commands, benchmarks and tests start from here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from connectors.positions import KafkaPositions
from connectors.postgres.config import PostgresConfig
from connectors.postgres.snapshot import Progress
from connectors.postgres.source import PostgresSource
from connectors.publisher import KafkaSettings, Publisher, TopicPlan
from connectors.runtime import Attempt
from schemas.topics import positions_topic


def postgres_publisher(source: PostgresSource, kafka: KafkaSettings) -> Publisher:
    """A publisher that will create the source's topics."""
    plan = TopicPlan(source.table_topics(), source.other_topics(), [positions_topic(source.name)])
    return Publisher(source.name, kafka, plan)


def postgres_attempts(
    config: PostgresConfig, kafka: KafkaSettings, progress: Progress | None = None
) -> Callable[[], Awaitable[Attempt]]:
    """For Runtime: fresh objects for each attempt."""

    async def make() -> Attempt:
        source = PostgresSource(config, progress)
        publisher = postgres_publisher(source, kafka)
        return Attempt(source, publisher, KafkaPositions(config.name, publisher))

    return make
