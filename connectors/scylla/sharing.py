"""Several processes that share a source's streams: how the first of them knows how far the others are.

Each keeps its own position, which is stored only after Kafka has everything before it. So the least of them is a time
up to which everything has been published, whoever published it.
"""

from __future__ import annotations

from connectors.positions import stored_position
from connectors.publisher import KafkaSettings
from connectors.scylla.config import ScyllaConfig, Shard
from connectors.source import Position


class OtherFloors:
    """Reads the others' stored positions from Kafka."""

    def __init__(self, config: ScyllaConfig, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._names = [
            config.model_copy(update={"shard": Shard(number=number, of=config.shard.of)}).position_name
            for number in range(config.shard.of)
            if number != config.shard.number
        ]

    async def floor(self, table: str) -> int | None:
        """None while one of them has stored nothing yet. Raises Retryable when Kafka is away."""
        return least([await stored_position(name, self._kafka) for name in self._names], table)


def least(positions: list[Position | None], table: str) -> int | None:
    """The least time up to which these positions have read the table."""
    floors = [(position or {}).get("tables", {}).get(table, {}).get("until_us") for position in positions]
    return None if any(floor is None for floor in floors) else min(floors, default=None)
