"""Several processes that share a source's streams: how the first of them knows how far the others are.

Each keeps its own position, which is stored only after Kafka has everything before it. So the least of them is a time
up to which everything has been published, whoever published it.
"""

from __future__ import annotations

from connectors.positions import stored_position
from connectors.publisher import KafkaSettings
from connectors.scylla.config import ScyllaConfig, Shard
from connectors.source import Position
from pipeline.core.clock import Clock


class OtherFloors:
    """Follows the others' stored positions in Kafka. What it knows may be old; floors only rise."""

    def __init__(self, config: ScyllaConfig, kafka: KafkaSettings, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._interval_s = config.heartbeat_interval_s
        self._names = [
            config.model_copy(update={"shard": Shard(number=number, of=config.shard.of)}).position_name
            for number in range(config.shard.of)
            if number != config.shard.number
        ]
        self._positions: list[Position | None] = [None] * len(self._names)

    def floor(self, table: str) -> int | None:
        """None while one of them has stored nothing that is known here."""
        return least(self._positions, table)

    async def follow(self) -> None:
        """Until it is cancelled. Raises Retryable when Kafka is away."""
        while True:
            self._positions = [await stored_position(name, self._kafka) for name in self._names]
            await self._clock.sleep(self._interval_s)


def least(positions: list[Position | None], table: str) -> int | None:
    """The least time up to which these positions have read the table. One whose snapshot goes on has read nothing for
    certain."""
    floors = []
    for position in positions:
        if position is None or position.get("snapshot") or table not in position.get("tables", {}):
            return None
        floors.append(int(position["tables"][table]["until_us"]))
    return min(floors, default=None)
