"""Records of an embedding space for tests: texts and their vectors by the engine `hash`, and topics that hold them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.embedding.hashing import HashEngine
from schemas.vectors import Chunk, FilterValue, TextRecord, VectorRecord, encode_text, encode_vectors, hash_text

Filters = Mapping[str, FilterValue | list[FilterValue]]
DIMENSION = 64


def text_record(
    space: str, text: str, counter: int = 1, filters: Filters | None = None, bundle_hash: str = "h"
) -> TextRecord:
    return TextRecord(
        space=space,
        counter=counter,
        bundle_hash=bundle_hash,
        text_hash=hash_text(text),
        text=text,
        filters=dict(filters or {}),
    )


def vector_record(
    space: str,
    text: str,
    counter: int = 1,
    filters: Filters | None = None,
    bundle_hash: str = "h",
    engine: HashEngine | None = None,
) -> VectorRecord:
    """One chunk over the whole text."""
    engine = engine or HashEngine(DIMENSION)
    return VectorRecord(
        space=space,
        counter=counter,
        bundle_hash=bundle_hash,
        text_hash=hash_text(text),
        dimension=engine.identity.dimension,
        chunks=[Chunk(0, len(text))],
        vectors=engine.embed([text]).vectors.astype("<f4").tobytes(),
        filters=dict(filters or {}),
    )


class SpaceTopics:
    """The two topics of one space on a real Kafka."""

    def __init__(self, producer: AIOKafkaProducer, vector_topic: str, text_topic: str, space: str) -> None:
        self._producer, self.space = producer, space
        self.vector_topic, self.text_topic = vector_topic, text_topic

    async def put(self, key: str, text: str, counter: int = 1, filters: Filters | None = None, **more: str) -> None:
        """The text and its vector."""
        text_value = encode_text(text_record(self.space, text, counter, filters, **more))
        vector_value = encode_vectors(vector_record(self.space, text, counter, filters, **more))
        await self.send(self.text_topic, key, text_value)
        await self.send(self.vector_topic, key, vector_value)

    async def delete(self, key: str) -> None:
        await self.send(self.text_topic, key, None)
        await self.send(self.vector_topic, key, None)

    async def send(self, topic: str, key: str, value: bytes | None) -> None:
        await self._producer.send_and_wait(topic, value, key=key.encode())


@asynccontextmanager
async def space_topics(
    bootstrap: str, vector_topic: str, text_topic: str, space: str, partitions: int = 3
) -> AsyncIterator[SpaceTopics]:
    """Makes the topics, compacted."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        config = {"cleanup.policy": "compact"}
        made = [NewTopic(name, partitions, 1, topic_configs=config) for name in (vector_topic, text_topic)]
        await admin.create_topics(made)
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        yield SpaceTopics(producer, vector_topic, text_topic, space)
    finally:
        await producer.stop()
