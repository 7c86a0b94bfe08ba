"""Puts a source, its publisher and its positions together; commands, benchmarks and tests start from here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from connectors.positions import KafkaPositions
from connectors.postgres.config import PostgresConfig
from connectors.postgres.snapshot import Progress
from connectors.postgres.source import PostgresSource, reset_position
from connectors.publisher import KafkaSettings, Publisher, TopicPlan
from connectors.runtime import Attempt
from pipeline.core.errors import EnvironmentProblem, Retryable
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


async def store_reset(config: PostgresConfig, kafka: KafkaSettings) -> None:
    """Makes the next start begin anew; see postgres.source.reset_position."""
    publisher = postgres_publisher(PostgresSource(config), kafka)
    try:
        with retryable_is_fatal():
            await publisher.start()
        await KafkaPositions(config.name, publisher).save(reset_position())
    finally:
        await publisher.stop()


@contextmanager
def retryable_is_fatal() -> Iterator[None]:
    """For a single try: a server that is away is a person's problem."""
    try:
        yield
    except Retryable as error:
        raise EnvironmentProblem(str(error)) from error
