"""The door to Kafka: whole batches in, a promise of their delivery out. The only import of aiokafka in connectors.

Order per key holds also over retries: one idempotent producer, acks from all replicas, one request in flight per
broker, and batches that the broker can't refuse for their size, because a row that is too large is set aside before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from connectors.lanes import Lane, PendingBatch
from connectors.partitioner import partition_of
from connectors.set_aside import KEY_BYTES_MAX, SetAside, letter_record
from connectors.source import EVERY_PARTITION, Finding, SourceRecord
from pipeline.core.errors import EnvironmentProblem, Fatal, Retryable
from schemas.topics import dead_letter_topic
from schemas.wire import SIZE_MAX

BATCH_BYTES_MAX = 512 * 1024
DELETES_KEPT_MS = str(14 * 24 * 3600 * 1000)
"""How long compaction keeps a delete for readers that were away; a worker away longer has to build anew."""
RECORD_OVERHEAD_BYTES = 200
"""More than the broker's own bytes around a record and its batch."""


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where Kafka is and how our topics are made. `security` goes to the clients as it is (SASL, TLS).

    `java`: the same for clients that run on Java.

    `message_bytes_max`: what our topics take, as much as the workers read.
    """

    bootstrap_servers: str
    partitions: int = 8
    replication_factor: int = 1
    message_bytes_max: int = SIZE_MAX + RECORD_OVERHEAD_BYTES
    request_timeout_s: float = 30.0
    security: dict[str, Any] = {}
    java: dict[str, str] = {}

    def client(self) -> dict[str, Any]:
        """Arguments of every aiokafka client."""
        timeout_ms = int(self.request_timeout_s * 1000)
        return {"bootstrap_servers": self.bootstrap_servers, "request_timeout_ms": timeout_ms, **self.security}


class TopicPlan(msgspec.Struct, frozen=True):
    """Topics to create: `compacted` with the configured partitions, `single` compacted with one partition, `plain` with
    one partition and time-based retention, `kept` with the configured partitions and everything for `kept_ms`.
    """

    compacted: Sequence[str]
    plain: Sequence[str] = ()
    single: Sequence[str] = ()
    kept: Sequence[str] = ()
    kept_ms: int = -1


def record_bytes_max(topic_bytes: int) -> int:
    """What key and value may have together on a topic whose max.message.bytes is `topic_bytes`: no more than the topic
    takes, and no more than a worker reads, which would set the row aside a second time.
    """
    return min(topic_bytes - RECORD_OVERHEAD_BYTES, SIZE_MAX)


class Publisher:
    """Publishes batches. Call `start`, which also creates the topics, then `publish` from one task; `stop` in the end.

    Errors: Retryable when Kafka is away (start again with a new object), Fatal when it refuses for good,
    EnvironmentProblem when a person has to mend something.
    """

    def __init__(self, source: str, settings: KafkaSettings, plan: TopicPlan) -> None:
        self._settings = settings
        self._plan = plan
        self._source = source
        self._lanes: dict[str, list[Lane]] = {}
        self._record_bytes_max: dict[str, int] = {}
        self._producer: Any = None
        self._created: set[str] = set()
        self.dead_letter_count = 0

    async def start(self) -> None:
        self._producer = AIOKafkaProducer(
            **self._settings.client(),
            acks="all",
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=self._settings.message_bytes_max + BATCH_BYTES_MAX,
        )
        with mapped_errors(self._settings.bootstrap_servers):
            await self._producer.start()
        await self._ensure_topics()

    async def stop(self) -> None:
        """Ends at once; what is not delivered yet is not waited for: its position was not acknowledged either."""
        for lane in (lane for lanes in self._lanes.values() for lane in lanes):
            lane.stop()
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                await asyncio.wait_for(producer.stop(), timeout=5)
            except (TimeoutError, KafkaError):
                # Kafka is away: the sender would wait for it for ever
                with suppress(TimeoutError, KafkaError):
                    await asyncio.wait_for(producer._sender.close(), timeout=2)
                await producer.client.close()

    async def _ensure_topics(self) -> None:
        """Creates what is missing; existing topics are taken as they are."""
        size = {"max.message.bytes": str(self._settings.message_bytes_max)}
        compact = {"cleanup.policy": "compact", "delete.retention.ms": DELETES_KEPT_MS, **size}
        small = {**compact, "segment.bytes": str(1 << 20), "min.cleanable.dirty.ratio": "0.1"}
        keep = {"cleanup.policy": "delete", "retention.ms": str(self._plan.kept_ms), "retention.bytes": "-1", **size}
        wanted = dict.fromkeys(self._plan.compacted, (self._settings.partitions, compact))
        wanted |= dict.fromkeys(self._plan.kept, (self._settings.partitions, keep))
        wanted |= dict.fromkeys(self._plan.plain, (1, size))
        # A row that was set aside waits for a person, however long that takes.
        forever = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", **size}
        wanted[dead_letter_topic(self._source)] = (1, forever)
        wanted |= dict.fromkeys(self._plan.single, (1, small))
        admin = AIOKafkaAdminClient(**self._settings.client())
        with mapped_errors(self._settings.bootstrap_servers):
            await admin.start()
            try:
                await self._create(admin, wanted)
                await self._describe(admin, list(wanted))
            finally:
                await admin.close()

    async def _create(self, admin: Any, wanted: dict[str, tuple[int, dict[str, str]]]) -> None:
        self._created |= await _create_topics(admin, self._settings, wanted)

    async def _describe(self, admin: Any, names: list[str]) -> None:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": ""}) for name in names]
        sizes = {}
        for response in await admin.describe_configs(resources):
            for _code, _message, _kind, name, entries in response.resources:
                sizes[name] = next((int(entry[1]) for entry in entries if entry[0] == "max.message.bytes"), 1_000_000)
        for name in names:
            partitions = await self._partitions(name)
            self._record_bytes_max[name] = record_bytes_max(sizes.get(name, 1_000_000))
            self._lanes[name] = [Lane(self._producer, name, number, self._errors) for number in range(partitions)]

    def _errors(self) -> AbstractContextManager[None]:
        return mapped_errors(self._settings.bootstrap_servers)

    async def _partitions(self, topic: str) -> int:
        for _attempt in range(100):
            try:
                return len(await self._producer.partitions_for(topic))
            except UnknownTopicOrPartitionError:
                await asyncio.sleep(0.05)  # just created: not every broker knows it yet
        raise Retryable(f"Kafka created the topic {topic} but does not tell its partitions.")

    async def publish(self, records: Sequence[SourceRecord]) -> asyncio.Future[Any]:
        """Hands the records over, in order. Returns what to await for their delivery; it raises Retryable or Fatal.

        Never waits itself: the caller bounds what is in flight.
        """
        touched: dict[PendingBatch, None] = {}
        lanes_by_topic = self._lanes
        for record in records:
            lanes = lanes_by_topic.get(record.topic)
            if lanes is None:
                raise Fatal(f"A record for the topic {record.topic}, which the source did not announce.")
            key, value, partition = record.key, record.value, record.partition
            size = len(key) + (len(value) if value is not None else 0)
            limit = self._record_bytes_max[record.topic]
            if size > limit:
                value = record.smaller
                if value is None or len(key) + len(value) > limit:
                    letter = self._set_aside(record, size, limit)
                    touched[lanes_by_topic[letter.topic][0].append(letter.key, letter.value, ())] = None
                    continue
            if partition is None:
                lane = lanes[partition_of(key, len(lanes))]
                batch = lane.open
                if batch is None or record.headers or not batch.add(key, value):
                    batch = lane.append(key, value, record.headers)
                touched[batch] = None
            else:
                for lane in lanes if partition == EVERY_PARTITION else (lanes[partition],):
                    touched[lane.append(key, value, record.headers)] = None
        for lanes in lanes_by_topic.values():
            for lane in lanes:
                lane.go()
        return asyncio.gather(*[batch.done for batch in touched])

    def _set_aside(self, record: SourceRecord, size: int, limit: int) -> SourceRecord:
        self.dead_letter_count += 1
        reason = (
            f"The record has {size} bytes, ctxpipe and the topic {record.topic} take {limit} (max.message.bytes). "
            "Make the row smaller, or leave the column out of the publication."
        )
        key = record.key[:KEY_BYTES_MAX]
        letter = SetAside(reason=reason, topic=record.topic, key=key.decode(errors="replace"), size=size)
        return letter_record(self._source, letter, key)

    async def store(self, topic: str, key: bytes, value: bytes) -> None:
        """One record to partition 0, and back only when every replica has it."""
        await (await self.publish([SourceRecord(topic, key, value, partition=0)]))

    async def read_latest(self, topic: str, key: bytes) -> bytes | None:
        """The newest value of `key` in partition 0 of a small topic, read from its beginning to its present end."""
        if topic in self._created:
            return None
        found = [record.value for record in await _records_of(self._settings, topic) if record.key == key]
        return found[-1] if found else None


class StoredRecord(msgspec.Struct, frozen=True):
    """What lies in a topic; `time_ms` is when it was written."""

    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None


async def read_topic(settings: KafkaSettings, topic: str) -> list[StoredRecord]:
    """What partition 0 of a small topic holds now, without making the topic: [] when there is none.

    Raises Retryable when Kafka is away.
    """
    admin = AIOKafkaAdminClient(**settings.client())
    with mapped_errors(settings.bootstrap_servers):
        try:
            await admin.start()
            existing = await admin.list_topics()
        finally:
            await admin.close()
    return await _records_of(settings, topic) if topic in existing else []


async def _records_of(settings: KafkaSettings, topic: str) -> list[StoredRecord]:
    # earliest, and no seek: a seek races with the consumer's own reset, and could find the topic empty
    consumer = AIOKafkaConsumer(**settings.client(), enable_auto_commit=False, auto_offset_reset="earliest")
    found: list[StoredRecord] = []
    with mapped_errors(settings.bootstrap_servers):
        await consumer.start()
        try:
            partition = TopicPartition(topic, 0)
            consumer.assign([partition])
            end = (await consumer.end_offsets([partition]))[partition]
            while await consumer.position(partition) < end:
                for records in (await consumer.getmany(partition, timeout_ms=500)).values():
                    found += [StoredRecord(one.offset, one.timestamp, one.key, one.value) for one in records]
        finally:
            await consumer.stop()
    return found


class NewestRecord:
    """The newest record of topics with one partition, for somebody who asks again and again over one connection.

    Raises Retryable when Kafka is away; the connection is made anew after that.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: Any = None

    async def of(self, topic: str) -> StoredRecord | None:
        """None where there is no such topic, or nothing in it."""
        try:
            with mapped_errors(self._settings.bootstrap_servers):
                return await self._of(topic)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    async def _of(self, topic: str) -> StoredRecord | None:
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(**self._settings.client(), enable_auto_commit=False)
            await self._consumer.start()
        if topic not in await self._consumer.topics():
            return None
        partition = TopicPartition(topic, 0)
        end = (await self._consumer.end_offsets([partition]))[partition]
        if end == 0:
            return None
        self._consumer.assign([partition])
        self._consumer.seek(partition, end - 1)  # compaction never takes the last one
        found: list[StoredRecord] = []
        while not found and await self._consumer.position(partition) < end:
            for records in (await self._consumer.getmany(partition, timeout_ms=500)).values():
                found += [StoredRecord(one.offset, one.timestamp, one.key, one.value) for one in records]
        return found[-1] if found else None


class Tail:
    """What is written to partition 0 of a topic after `open`; `next` waits for more. Raises Retryable when Kafka is
    away."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._partition = TopicPartition(topic, 0)
        self._consumer: Any = None

    async def open(self) -> None:
        settings = self._settings
        self._consumer = AIOKafkaConsumer(**settings.client(), enable_auto_commit=False, auto_offset_reset="latest")
        with mapped_errors(settings.bootstrap_servers):
            await self._consumer.start()
            self._consumer.assign([self._partition])
            await self._consumer.position(self._partition)

    async def next(self) -> list[bytes]:
        """The values, in order; tombstones are left out. Empty when nothing came for half a second."""
        with mapped_errors(self._settings.bootstrap_servers):
            found = await self._consumer.getmany(self._partition, timeout_ms=500)
        return [one.value for records in found.values() for one in records if one.value is not None]

    async def close(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()


async def ensure_topics(settings: KafkaSettings, names: Sequence[str], configs: dict[str, str]) -> None:
    """Creates those that are missing, with one partition. Raises Retryable when Kafka is away."""
    admin = AIOKafkaAdminClient(**settings.client())
    with mapped_errors(settings.bootstrap_servers):
        try:
            await admin.start()
            await _create_topics(admin, settings, dict.fromkeys(names, (1, configs)))
        finally:
            await admin.close()


async def _create_topics(
    admin: Any, settings: KafkaSettings, wanted: dict[str, tuple[int, dict[str, str]]]
) -> set[str]:
    """`wanted`: partitions and configuration by name. Returns those that did not exist."""
    existing = set(await admin.list_topics())
    new = [
        NewTopic(name, partitions, settings.replication_factor, topic_configs=configs)
        for name, (partitions, configs) in wanted.items()
        if name not in existing
    ]
    if not new:
        return set()
    created = set()
    response = await admin.create_topics(new)
    for name, code, *details in response.topic_errors:
        error = for_code(code)
        if code == 0:
            created.add(name)
        if code != 0 and error is not TopicAlreadyExistsError:
            reason = details[0] if details and details[0] else error.__name__
            raise EnvironmentProblem(f"Kafka refuses to create the topic {name}: {reason}")
    return created


async def check_kafka(settings: KafkaSettings, topics: Sequence[str], kept: Sequence[str] = ()) -> list[Finding]:
    """Whether Kafka answers and existing topics fit: compacted, `kept` not, large enough. Raises Retryable when it is
    away."""
    topics = [*topics, *kept]
    admin = AIOKafkaAdminClient(**settings.client())
    with mapped_errors(settings.bootstrap_servers):
        try:
            await admin.start()
            existing = set(await admin.list_topics())
            described = [
                ConfigResource(ConfigResourceType.TOPIC, name, {"cleanup.policy": "", "max.message.bytes": ""})
                for name in topics
                if name in existing
            ]
            responses = await admin.describe_configs(described) if described else []
        finally:
            await admin.close()
    findings = [Finding("ok", "Kafka", f"{settings.bootstrap_servers} answers")]
    for response in responses:
        for _code, _message, _kind, name, entries in response.resources:
            findings.append(_topic_finding(name, {entry[0]: entry[1] for entry in entries}, settings, name in kept))
    new = len(topics) - len(described)
    if new:
        findings.append(Finding("ok", "topics", f"{new} will be created with {settings.partitions} partitions"))
    return findings


def _topic_finding(name: str, configs: dict[str, str], settings: KafkaSettings, kept: bool) -> Finding:
    alter = f"kafka-configs.sh --bootstrap-server {settings.bootstrap_servers} --alter --topic {name} --add-config "
    compacted = "compact" in configs.get("cleanup.policy", "")
    if kept and compacted:
        message = "is compacted: its records tell parts of rows, and earlier parts would be forgotten"
        return Finding("unfit", f"topic {name}", message, alter + "cleanup.policy=delete,retention.ms=-1")
    if not kept and not compacted:
        message = f"cleanup.policy is {configs.get('cleanup.policy')}: rows that do not change would be forgotten"
        return Finding("unfit", f"topic {name}", message, alter + "cleanup.policy=compact")
    size = int(configs.get("max.message.bytes", 0))
    if size < settings.message_bytes_max:
        message = f"takes records up to {size} bytes; larger rows go to the dead-letter topic"
        return Finding("note", f"topic {name}", message, alter + f"max.message.bytes={settings.message_bytes_max}")
    return Finding("ok", f"topic {name}", "keeps every record" if kept else "compacted")


@contextmanager
def mapped_errors(servers: str) -> Iterator[None]:
    """The one table of Kafka's errors for connectors."""
    try:
        yield
    except KafkaConnectionError as error:
        raise Retryable(
            f"Kafka at {servers} can't be reached: {error}. Is it running (ctxpipe up), and the login right?"
        ) from error
    except (KafkaTimeoutError, TimeoutError) as error:
        raise Retryable(f"Kafka at {servers} does not answer in time: {error}") from error
    except KafkaError as error:
        name = type(error).__name__
        if error.retriable or name in ("OutOfOrderSequenceNumber", "UnknownProducerId", "ProducerClosed", "Cancelled"):
            raise Retryable(f"Kafka at {servers}: {name} {error}") from error
        raise Fatal(f"Kafka at {servers} refuses: {name} {error}") from error
