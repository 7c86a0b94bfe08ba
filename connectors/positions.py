"""Keeps a source's position in its compacted Kafka topic: one record under one key, the newest counts."""

from __future__ import annotations

import msgspec

from connectors.publisher import KafkaSettings, Publisher, read_topic
from connectors.source import Position
from pipeline.core.errors import Fatal
from schemas.topics import positions_topic

_KEY = b'{"position":"current"}'


class KafkaPositions:
    """Needs a started publisher that has ensured `topic`."""

    def __init__(self, source: str, publisher: Publisher) -> None:
        self.topic = positions_topic(source)
        self._publisher = publisher

    async def load(self) -> Position | None:
        """None when none was ever stored. Raises Fatal for one that can't be read: starting anew would repeat all."""
        value = await self._publisher.read_latest(self.topic, _KEY)
        return None if value is None else decode_position(value, self.topic)

    async def save(self, position: Position) -> None:
        await self._publisher.store(self.topic, _KEY, msgspec.json.encode({"version": 1, "position": position}))


async def stored_position(source: str, settings: KafkaSettings) -> Position | None:
    """What `load` would give, for somebody who only looks: nothing is made. Raises Retryable when Kafka is away."""
    topic = positions_topic(source)
    values = [one.value for one in await read_topic(settings, topic) if one.key == _KEY and one.value is not None]
    return decode_position(values[-1], topic) if values else None


def decode_position(value: bytes, topic: str) -> Position:
    """What `save` wrote. Raises Fatal for anything else."""
    try:
        position: Position = msgspec.json.decode(value)["position"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise Fatal(f"The newest position in topic {topic} can't be read: {error}") from error
    return position
