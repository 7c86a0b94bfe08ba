"""One of several processes that share a source's streams, put together: one name and one set of topics, but a position
for each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from connectors.positions import KafkaPositions
from connectors.publisher import KafkaSettings, Publisher, TopicPlan
from connectors.runtime import Attempt
from connectors.scylla.config import ScyllaConfig
from connectors.scylla.plugin import PluggedScylla
from schemas.topics import positions_topic


def shared_attempts(config: ScyllaConfig, kafka: KafkaSettings) -> Callable[[], Awaitable[Attempt]]:
    """For Runtime: fresh objects for each attempt. Right for a single process as well."""

    async def make() -> Attempt:
        source = PluggedScylla(config)
        source.share(kafka)
        positions = [positions_topic(config.position_name)]
        plan = TopicPlan([], [], positions, kept=source.table_topics(), kept_ms=source.retention_ms())
        publisher = Publisher(config.name, kafka, plan)
        return Attempt(source, publisher, KafkaPositions(config.position_name, publisher))

    return make
