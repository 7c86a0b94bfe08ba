"""What the workers of an embedding space write to Kafka: texts, vectors, requests to look again, dead letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.core.errors import Poison
from pipeline.report import BatchReport, DeadLetter
from pipeline.streams.publisher import NO_HEADERS, Publisher
from schemas.headers import Headers
from schemas.vectors import TextRecord, VectorRecord, encode_text, encode_vectors

RECORD_BYTES_MAX = 32 << 20
"""A text of a million characters is four at most, a thousand vectors of 8,192 dimensions are thirty-two."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Where the records of these keys are, and those that Kafka will never take, and why."""

    offsets: dict[str, int] = field(default_factory=dict)
    refused: dict[str, Poison] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpaceOutlet:
    """See TextOutlet and VectorOutlet. The publisher's lanes are those of the context version."""

    publisher: Publisher
    text_topic: str
    vector_topic: str

    async def send_texts(
        self, texts: Mapping[str, TextRecord | None], headers: Mapping[str, Headers] = NO_HEADERS
    ) -> Sent:
        values = {key: None if record is None else encode_text(record) for key, record in texts.items()}
        return await self._send(self.text_topic, values, headers)

    async def send_vectors(
        self, vectors: Mapping[str, VectorRecord | None], headers: Mapping[str, Headers] = NO_HEADERS
    ) -> Sent:
        values = {key: None if record is None else encode_vectors(record) for key, record in vectors.items()}
        return await self._send(self.vector_topic, values, headers)

    async def ask_again(self, above: Mapping[str, int]) -> None:
        await self.publisher.request_again(above)

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        await self.publisher.publish(BatchReport(dead_letters=list(letters)))

    async def _send(self, topic: str, values: Mapping[str, bytes | None], headers: Mapping[str, Headers]) -> Sent:
        sent = Sent()
        for key, offset in (await self.publisher.put(topic, values, headers)).items():
            if offset is not None:
                sent.offsets[key] = offset
                continue
            sent.refused[key] = Poison(
                f"the record is {len(values[key] or b''):,} bytes long, which {topic} does not take; embed less of the "
                "bundle, allow fewer chunks, or raise the topic's max.message.bytes"
            )
        return sent
