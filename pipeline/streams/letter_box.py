"""The dead letters of one context or source in Kafka, and what was decided of them: read in windows, never as a whole.

Letters are named by their offsets. Reading needs no more of Kafka than to describe and read two topics; only
`decide` writes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.streams.decisions import Decision, Verdicts, decode_decision, encode_decision
from pipeline.streams.letters import Heading, decode_heading
from pipeline.streams.offset_reader import POLL_RECORDS_MAX, Extent, OffsetReader
from schemas.topics import dead_letter_topic, decision_topic

WINDOW_FIRST, WINDOW_MAX = 200, 5_000
DECISIONS_CONFIG = {"cleanup.policy": "compact", "retention.bytes": "-1", "max.message.bytes": "1048588"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A letter by its number, its offset. `written_ms`: when Kafka got it, by the writer's clock."""

    number: int
    letter: Heading
    written_ms: int = 0

    @property
    def failed_at_ms(self) -> int:
        return self.letter.failed_at_ms or self.written_ms


@dataclass(frozen=True, slots=True)
class Retention:
    """How long the topic keeps letters: None for ever, or not known."""

    kept_ms: int | None = None
    kept_bytes: int | None = None
    known: bool = True


class DeadLetterBox:
    """The letters of `name`, a context or a source. Use it as a context manager, or `close` it.

    Every method raises Retryable while Kafka is away, and EnvironmentProblem where it refuses us. Not for several
    tasks at once: they would share one place of reading.
    """

    def __init__(self, bootstrap_servers: str, name: str, reader: OffsetReader | None = None, **security: Any) -> None:
        """`reader`: one that several boxes share; whoever made it closes it."""
        self.name = name
        self._settings = {"bootstrap_servers": bootstrap_servers, **security}
        self._reader = reader or OffsetReader(bootstrap_servers, **security)
        self._own = reader is None
        self._existing: set[str] | None = None
        self._alone = False
        self._letters = TopicPartition(dead_letter_topic(name), 0)
        self._decisions = TopicPartition(decision_topic(name), 0)
        self._writer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> DeadLetterBox:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; the box may be used again."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.stop()
        if self._own:
            await self._reader.close()

    def know(self, existing: set[str]) -> None:
        """All topics there are now, for whoever looks into many boxes and asks once."""
        self._existing = existing

    async def extent(self) -> Extent | None:
        """None where nobody has made the topic yet."""
        return await self._extent(self._letters)

    async def offset_at(self, time_ms: int) -> int | None:
        """Of the first letter written at that time or later; None where there is none."""
        return await self._reader.offset_at(self._letters, time_ms)

    async def verdicts(self) -> Verdicts:
        """Everything that was decided so far."""
        verdicts = Verdicts()
        async for decision, _ in self.decisions(0):
            verdicts.add(decision)
        return verdicts

    async def decisions(self, start: int) -> AsyncIterator[tuple[Decision, int]]:
        """Those from an offset on, each with the offset behind it."""
        extent = await self._extent(self._decisions)
        if extent is None:
            return
        async for records in self._reader.records(self._decisions, max(start, extent.first), extent.end):
            for record in records:
                try:
                    yield decode_decision(record.value), record.offset + 1
                except ValueError:
                    logger.warning("%s@%d is no decision of ctxpipe", record.topic, record.offset)

    async def oldest_first(self, start: int, end: int) -> AsyncIterator[list[Found]]:
        """Letters from `start` up to but without `end`, some at a time."""
        async for records in self._reader.records(self._letters, start, end):
            yield _found(records)

    async def newest_first(self, start: int, end: int) -> AsyncIterator[list[Found]]:
        """The same the other way round."""
        window = WINDOW_FIRST
        while end > start:
            begin = max(start, end - window)
            found = [one async for part in self.oldest_first(begin, end) for one in part]
            yield found[::-1]
            end, window = begin, min(WINDOW_MAX, window * 4)

    async def whole(self, numbers: Sequence[int]) -> AsyncIterator[tuple[int, bytes]]:
        """The bytes of these letters, by ascending number; those that are gone are left out."""
        extent = await self.extent()
        wanted = sorted(number for number in set(numbers) if extent and extent.first <= number < extent.end)
        for part in _near(wanted):
            kept = set(part)
            async for records in self._reader.records(self._letters, part[0], part[-1] + 1):
                for record in records:
                    if record.offset in kept:
                        yield record.offset, record.value or b""

    async def raw(self, number: int) -> bytes | None:
        """A letter's bytes; None where it is not there."""
        extent = await self.extent()
        if extent is None or not extent.first <= number < extent.end:
            return None
        record = await self.record(self._letters.topic, 0, number)
        return None if record is None else record.value

    async def record(self, topic: str, partition: int, offset: int) -> Any | None:
        """A record of any topic, as aiokafka gives it; None where Kafka has it no more."""
        place = TopicPartition(topic, partition)
        extent = await self._extent(place)
        if extent is None or not extent.first <= offset < extent.end:
            return None
        async for records in self._reader.records(place, offset, offset + 1):
            return records[0] if records and records[0].offset == offset else None
        return None

    async def decide(self, decisions: Sequence[Decision], replication_factor: int) -> None:
        """Durable on return. Makes the topic where it is not there."""
        records = [pair for decision in decisions for pair in encode_decision(decision)]
        if not records:
            return
        topic, writer = self._decisions.topic, self._writer
        if writer is None:
            await self._reader.topics.create(topic, 1, replication_factor, DECISIONS_CONFIG)
            writer = AIOKafkaProducer(acks="all", enable_idempotence=True, linger_ms=5, **self._settings)
            try:
                await self._reader.mapped(writer.start())
            except (Retryable, EnvironmentProblem):
                await writer.stop()
                raise
            self._writer = writer
        sent = [await self._reader.mapped(writer.send(topic, value, key=key, partition=0)) for key, value in records]
        await self._reader.mapped(asyncio.gather(*sent))

    async def retention(self) -> Retention:
        """As the topic is configured now; unknown where we may not ask."""
        admin = AIOKafkaAdminClient(**self._settings)
        wanted = {"retention.ms": None, "retention.bytes": None, "cleanup.policy": None}
        try:
            await self._reader.mapped(admin.start())
            resource = ConfigResource(ConfigResourceType.TOPIC, self._letters.topic, wanted)
            (response, *_) = await self._reader.mapped(admin.describe_configs([resource]))
        except EnvironmentProblem:
            return Retention(known=False)
        finally:
            await admin.close()
        code, _, _, _, entries = response.resources[0]
        if code:
            return Retention(known=False)
        values = {name: value for name, value, *_ in entries}
        if "delete" not in (values.get("cleanup.policy") or "delete"):
            return Retention()
        return Retention(_limit(values.get("retention.ms")), _limit(values.get("retention.bytes")))

    async def _extent(self, place: TopicPartition) -> Extent | None:
        existing = self._existing if self._existing is not None else await self._reader.topics.existing()
        if place.topic not in existing:
            return None
        if place == self._letters and not self._alone:
            count = len(await self._reader.topics.partitions([place.topic]))
            if count > 1:
                raise EnvironmentProblem(
                    f"{place.topic} has {count} partitions, and dead letters are named by their place in one. Make the "
                    "topic anew with a single partition, or let ctxpipe make it"
                )
            self._alone = count == 1
        return await self._reader.extent(place)


def _near(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers in groups that are worth reading in one go, with what lies between."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number - parts[-1][-1] <= POLL_RECORDS_MAX:
            parts[-1].append(number)
        else:
            parts.append([number])
    return parts


def _found(records: Sequence[ConsumerRecord]) -> list[Found]:
    found = []
    for record in records:
        try:
            found.append(Found(record.offset, decode_heading(record.value or b""), record.timestamp))
        except ValueError:
            logger.warning("%s@%d is no dead letter of ctxpipe", record.topic, record.offset)
    return found


def _limit(value: str | None) -> int | None:
    return None if value is None or int(value) < 0 else int(value)
