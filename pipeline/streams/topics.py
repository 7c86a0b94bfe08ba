"""What the worker asks and tells Kafka beside reading: which topics exist, how far they reach, and making its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code
from aiokafka.structs import TopicPartition

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.stores.store import Partition
from pipeline.streams.kafka_clients import stop_admin, stop_consumer
from pipeline.streams.kafka_errors import answered
from pipeline.streams.offsets import Extent

Result = TypeVar("Result")


class Topics:
    """A client of its own, without a group, so that it also sees what the group's consumer no longer notices.

    Every method raises Retryable while Kafka is away and EnvironmentProblem when it refuses us.
    """

    def __init__(self, bootstrap_servers: str, group: str, **security: Any) -> None:
        self._settings = {"bootstrap_servers": bootstrap_servers, **security}
        self._address, self._group = bootstrap_servers, group
        self._admin: AIOKafkaAdminClient | None = None
        self._reader: AIOKafkaConsumer | None = None
        self._starting = asyncio.Lock()
        self._compacted: dict[str, bool] = {}

    async def stop(self) -> None:
        """Closes the connections; the object may be used again."""
        admin, self._admin, reader, self._reader = self._admin, None, self._reader, None
        if admin is not None:
            await stop_admin(admin)
        if reader is not None:
            await stop_consumer(reader)

    async def existing(self) -> set[str]:
        """All topics; asking never makes one."""
        admin = await self._started_admin()
        return set(await self._mapped(admin.list_topics()))

    async def partitions(self, topics: Iterable[str]) -> frozenset[Partition]:
        """All partitions of existing topics."""
        admin = await self._started_admin()
        described = await self._mapped(admin.describe_topics(list(topics)))
        return frozenset((found["topic"], part["partition"]) for found in described for part in found["partitions"])

    async def create(self, topic: str, partitions: int, replicas: int, config: dict[str, str]) -> bool:
        """Makes a topic; False when it is there already."""
        admin = await self._started_admin()
        new = NewTopic(topic, partitions, replicas, topic_configs=config)
        response = await self._mapped(admin.create_topics([new]))
        code, message = response.topic_errors[0][1], response.topic_errors[0][-1]
        if code == 0:
            return True
        if for_code(code) is TopicAlreadyExistsError:
            return False
        raise EnvironmentProblem(f"Kafka did not create topic {topic}: {for_code(code).__name__}: {message}")

    async def is_compacted(self, topic: str) -> bool:
        """True when the topic's cleanup.policy is compact alone."""
        if topic not in self._compacted:
            admin = await self._started_admin()
            resource = ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": None})
            responses = await self._mapped(admin.describe_configs([resource]))
            entries = responses[0].resources[0][-1]
            self._compacted[topic] = any(name == "cleanup.policy" and value == "compact" for name, value, *_ in entries)
        return self._compacted[topic]

    async def extents(self, partitions: frozenset[Partition]) -> dict[Partition, Extent]:
        """First and end offsets, and the group's commit, of each partition."""
        reader, admin = await self._started_reader(), await self._started_admin()
        wanted = [TopicPartition(*partition) for partition in sorted(partitions)]
        beginnings = await self._mapped(reader.beginning_offsets(wanted))
        ends = await self._mapped(reader.end_offsets(wanted))
        commits = await self._mapped(admin.list_consumer_group_offsets(self._group, partitions=wanted))
        committed = {tp: commits[tp].offset for tp in wanted if tp in commits and commits[tp].offset >= 0}
        return {
            (tp.topic, tp.partition): Extent(beginnings[tp], ends[tp], committed.get(tp)) for tp in wanted
        }  # fmt: skip

    async def end_offsets(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        """The offset after the newest record of each partition."""
        reader = await self._started_reader()
        ends = await self._mapped(reader.end_offsets([TopicPartition(*partition) for partition in partitions]))
        return {(tp.topic, tp.partition): offset for tp, offset in ends.items()}

    async def _started_admin(self) -> AIOKafkaAdminClient:
        async with self._starting:
            if self._admin is None:
                admin = AIOKafkaAdminClient(**self._settings)
                await self._mapped(admin.start(), partial(stop_admin, admin))
                self._admin = admin
            return self._admin

    async def _started_reader(self) -> AIOKafkaConsumer:
        async with self._starting:
            if self._reader is None:
                reader = AIOKafkaConsumer(group_id=None, enable_auto_commit=False, **self._settings)
                await self._mapped(reader.start(), partial(stop_consumer, reader))
                self._reader = reader
            return self._reader

    async def _mapped(self, request: Any, undo: Callable[[], Awaitable[None]] | None = None) -> Any:
        """After any error the clients start afresh, because they keep what they believe of the cluster."""
        try:
            return await answered(self._address, request)
        except (EnvironmentProblem, Retryable):
            await (undo or self.stop)()
            raise
