"""How far a source has been read, for somebody who looks often: the newest record of its positions topic, and no more
of it."""

from __future__ import annotations

import asyncio

from connectors.positions import decode_position
from connectors.publisher import KafkaSettings, NewestRecord
from connectors.source import Finding, Position, StoredPosition
from pipeline.core.errors import CtxpipeError
from schemas.topics import positions_topic

ASK_TIMEOUT_S = 5.0


class NewestPositions:
    """Asks over one connection, which is made at the first question and again after an error."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._newest = NewestRecord(kafka)

    async def newest(self, name: str) -> Position | None:
        """Of the position of that name; None when none was ever stored. Raises Retryable when Kafka is away, Fatal for
        one that can't be read."""
        topic = positions_topic(name)
        record = await self._newest.of(topic)
        return None if record is None or record.value is None else decode_position(record.value, topic)

    async def close(self) -> None:
        await self._newest.close()


async def ask(stored: StoredPosition | None, name: str) -> tuple[Position | None, Finding | None]:
    """The position, or why it is not known: a Kafka that is away makes no source away."""
    if stored is None:
        return None, Finding("note", "position", "how far it has been read is not known here: no Kafka was given")
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await stored(name), None
    except TimeoutError:
        return None, Finding("warning", "position", f"how far it has been read is not known: {_SILENT}")
    except CtxpipeError as error:
        return None, Finding("warning", "position", f"how far it has been read is not known: {error}")


_SILENT = f"Kafka did not answer within {ASK_TIMEOUT_S:g} s"
