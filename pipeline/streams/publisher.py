"""What a batch leads to in Kafka, durable before the batch counts as done: dead letters and chunks of dirty keys."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.report import BatchReport, DeadLetter
from pipeline.streams.kafka_errors import REFUSALS
from pipeline.streams.letters import encode_chunk, encode_letter

DELIVERY_TIMEOUT_S = 30.0
LETTER_BYTES_MAX = 900_000
LETTER_BYTES_MIN = 4_000


@dataclass(frozen=True, slots=True)
class Lanes:
    """The topics that a context version writes; the dirty topic has `dirty_partitions`."""

    dead_letter_topic: str
    dirty_topic: str
    dirty_partitions: int


class Publisher:
    """One producer with acks=all. After `start`, `publish` returns when the brokers have everything.

    Raises Retryable while Kafka is away: call again with the same report, repetition is harmless.
    """

    def __init__(self, bootstrap_servers: str, lanes: Lanes, clock: Clock | None = None, **security: Any) -> None:
        self._settings = {"bootstrap_servers": bootstrap_servers, **security}
        self._address, self._lanes, self._clock = bootstrap_servers, lanes, clock or SystemClock()
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connects."""
        producer = AIOKafkaProducer(
            acks="all", enable_idempotence=True, request_timeout_ms=int(DELIVERY_TIMEOUT_S * 1000), **self._settings
        )
        try:
            await self._mapped(producer.start())
        except (Retryable, EnvironmentProblem):
            await producer.stop()
            raise
        self._producer = producer

    async def stop(self) -> None:
        """Closes the connection; what `publish` returned for is durable already."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    async def publish(self, report: BatchReport) -> None:
        """Writes the report's dead letters and chunks."""
        deliveries: list[Awaitable[None]] = [self._bury(letter, LETTER_BYTES_MAX) for letter in report.dead_letters]
        for chunk in report.fan_out:
            # The same chunk always goes to the same partition: its rebuilds do not overtake one another.
            place = zlib.crc32(chunk[0].key.encode()) % self._lanes.dirty_partitions
            deliveries.append(self._send(self._lanes.dirty_topic, None, encode_chunk(chunk), place))
        if deliveries:
            await asyncio.gather(*deliveries)

    async def _bury(self, letter: DeadLetter, bytes_max: int) -> None:
        topic = self._lanes.dead_letter_topic
        key = f"{letter.record.topic}/{letter.record.partition}/{letter.record.offset}".encode()
        while True:
            try:
                value = encode_letter(letter, bytes_max, self._clock.now_us() // 1000)
                return await self._send(topic, key, value, None)
            except _TooLarge:
                # This topic takes less than most: keep less of the record rather than nothing of it.
                bytes_max //= 2
                if bytes_max < LETTER_BYTES_MIN:
                    raise EnvironmentProblem(f"raise max.message.bytes of {topic}: no dead letter fits") from None

    async def _send(self, topic: str, key: bytes | None, value: bytes, partition: int | None) -> None:
        producer = self._producer
        if producer is None:
            raise Retryable("the producer has not been started")
        await self._mapped(producer.send_and_wait(topic, value, key=key, partition=partition))

    async def _mapped(self, request: Awaitable[Any]) -> None:
        """The one table from aiokafka's errors to ours."""
        try:
            await request
        except MessageSizeTooLargeError as error:
            raise _TooLarge() from error
        except REFUSALS as error:
            raise EnvironmentProblem(
                f"Kafka at {self._address} refuses us: {error!r}; check user and grants"
            ) from error
        except (KafkaError, TimeoutError, OSError) as error:
            raise Retryable(f"Kafka at {self._address} does not take records ({error!r})") from error


class _TooLarge(Exception):
    pass
