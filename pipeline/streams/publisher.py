"""What a batch leads to in Kafka, durable before the batch counts as done: dead letters, chunks of dirty keys, and the
keys of bundles whose texts are to be looked at."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.report import BatchReport, DeadLetter
from pipeline.streams.kafka_clients import stop_producer
from pipeline.streams.kafka_errors import REFUSALS
from pipeline.streams.letters import encode_chunk, encode_letter
from schemas.bundle import UnitKey
from schemas.headers import Headers

DELIVERY_TIMEOUT_S = 30.0
LETTER_BYTES_MAX = 900_000
LETTER_BYTES_MIN = 4_000
REQUEST = b"{}"
"""Not null: compaction would take a key away with it."""
LOOK_AGAIN = b'{"again":true}'
"""A request that has the text sent on even where Redis says that it is in Kafka already."""


NO_HEADERS: Mapping[str, Headers] = {}


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a request's value says, as JSON. `above`: the counter that the text's record shall have at least, so that
    it is not taken for older than one that somebody saw."""

    again: bool = False
    above: int = 0


@dataclass(frozen=True, slots=True)
class Lanes:
    """The topics that a context version writes; the dirty topic has `dirty_partitions`. `request_topic` takes the keys
    of bundles for embedding, None where nothing is embedded."""

    dead_letter_topic: str
    dirty_topic: str
    dirty_partitions: int
    request_topic: str | None = None


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
            await stop_producer(producer)
            raise
        self._producer = producer

    async def stop(self) -> None:
        """Closes the connection; what `publish` returned for is durable already."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_producer(producer)

    async def publish(self, report: BatchReport) -> None:
        """Writes the report's dead letters, chunks and requests for texts; notes in it where the chunks are."""
        deliveries: list[Awaitable[None]] = [self._bury(letter, LETTER_BYTES_MAX) for letter in report.dead_letters]
        deliveries += [self._fan_out(chunk, report) for chunk in report.fan_out]
        if report.texts_wanted and self._lanes.request_topic is not None:
            wanted = dict.fromkeys(report.texts_wanted, REQUEST)
            deliveries.append(self._request(wanted, report.headers, report.traces))
        if deliveries:
            await asyncio.gather(*deliveries)

    async def _fan_out(self, chunk: list[UnitKey], report: BatchReport) -> None:
        # The same chunk always goes to the same partition: its rebuilds do not overtake one another.
        place = zlib.crc32(chunk[0].key.encode()) % self._lanes.dirty_partitions
        headers, ends = (*report.headers, *report.trace), report.fan_out_ends
        offset = await self._send(self._lanes.dirty_topic, None, encode_chunk(chunk), place, headers)
        ends[place] = max(ends.get(place, 0), offset + 1)

    async def request_texts(self, keys: Iterable[str], request: bytes = REQUEST) -> None:
        """Asks every embedding space to look at the bundles with these keys. By key, so that requests for one bundle
        stay in one partition, where compaction keeps the newest: whoever begins later finds every key once."""
        await self._request(dict.fromkeys(keys, request))

    async def _request(
        self, values: Mapping[str, bytes], headers: Headers = (), traces: Mapping[str, Headers] = NO_HEADERS
    ) -> None:
        topic, producer = self._lanes.request_topic, self._started()
        assert topic is not None, "this context embeds nothing"
        sent = [
            await self._mapped(
                producer.send(topic, value, key=key_bytes(key), headers=[*headers, *traces.get(key, ())])
            )
            for key, value in values.items()
        ]
        await self._mapped(asyncio.gather(*sent))

    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise Retryable("the producer has not been started")
        return self._producer

    async def request_again(self, above: Mapping[str, int]) -> None:
        """As `request_texts`, with LOOK_AGAIN, and what Request says of `above` by key."""
        values = {number: msgspec.json.encode(Request(True, number)) for number in set(above.values())}
        await self._request({key: values[number] for key, number in above.items()})

    async def put(
        self, topic: str, records: Mapping[str, bytes | None], headers: Mapping[str, Headers] = NO_HEADERS
    ) -> dict[str, int | None]:
        """Writes a record per bundle key, with the key's headers. The offset of each; None for those that are too big
        for the topic, which are not written."""
        producer = self._started()
        sent = {
            key: await self._accepted(producer, topic, key, value, headers.get(key, ()))
            for key, value in records.items()
        }
        taken = await asyncio.gather(*[self._mapped(one) for one in sent.values() if one], return_exceptions=True)
        for error in taken:
            if isinstance(error, BaseException) and not isinstance(error, _TooLarge):
                raise error
        results = iter(taken)
        found: dict[str, Any] = {key: None if one is None else next(results) for key, one in sent.items()}
        return {key: None if one is None or isinstance(one, _TooLarge) else one.offset for key, one in found.items()}

    async def _accepted(
        self, producer: AIOKafkaProducer, topic: str, key: str, value: bytes | None, headers: Headers
    ) -> asyncio.Future[Any] | None:
        """None where the producer itself finds it too big."""
        try:
            accepted: asyncio.Future[Any] = await self._mapped(
                producer.send(topic, value, key=key_bytes(key), headers=[*headers])
            )
        except _TooLarge:
            return None
        return accepted

    async def _bury(self, letter: DeadLetter, bytes_max: int) -> None:
        topic = self._lanes.dead_letter_topic
        key = f"{letter.record.topic}/{letter.record.partition}/{letter.record.offset}".encode()
        while True:
            try:
                value = encode_letter(letter, bytes_max, self._clock.now_us() // 1000)
                await self._send(topic, key, value, None)
                return
            except _TooLarge:
                # This topic takes less than most: keep less of the record rather than nothing of it.
                bytes_max //= 2
                if bytes_max < LETTER_BYTES_MIN:
                    raise EnvironmentProblem(f"raise max.message.bytes of {topic}: no dead letter fits") from None

    async def _send(
        self, topic: str, key: bytes | None, value: bytes, partition: int | None, headers: Headers = ()
    ) -> int:
        """Its offset."""
        placed = await self._mapped(
            self._started().send_and_wait(topic, value, key=key, partition=partition, headers=[*headers])
        )
        offset: int = placed.offset
        return offset

    async def _mapped(self, request: Awaitable[Any]) -> Any:
        """The one table from aiokafka's errors to ours."""
        try:
            return await request
        except MessageSizeTooLargeError as error:
            raise _TooLarge() from error
        except REFUSALS as error:
            raise EnvironmentProblem(
                f"Kafka at {self._address} refuses us: {error!r}; check user and grants"
            ) from error
        except (KafkaError, TimeoutError, OSError) as error:
            raise Retryable(f"Kafka at {self._address} does not take records ({error!r})") from error


def decode_request(value: bytes | None) -> Request:
    """What nobody can read asks for a look, like any other."""
    try:
        return Request() if value is None or value == REQUEST else _REQUEST.decode(value)
    except msgspec.DecodeError:
        return Request()


_REQUEST = msgspec.json.Decoder(Request)


def key_bytes(key: str) -> bytes:
    """A bundle's key as Kafka has it."""
    return key.encode("utf-8", "surrogatepass")


def key_text(key: bytes) -> str:
    """And back."""
    return key.decode("utf-8", "surrogatepass")


class _TooLarge(Exception):
    pass
