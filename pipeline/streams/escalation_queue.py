"""The last rung's queue in Kafka: questions that nothing could answer, durable before `put` returns."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaProducer

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.core.guarding import EscalationsConfig
from pipeline.guard.escalation_records import encode_question
from pipeline.guard.escalations import Escalation
from pipeline.guard.secrets import Secrets
from pipeline.streams.kafka_clients import stop_producer
from pipeline.streams.kafka_errors import answered
from pipeline.streams.topics import Topics

PARTITION = 0
"""The only one: the order of the log says whose answer was first."""
_DAY_MS = 86_400_000

logger = logging.getLogger(__name__)


def topic_config(kept_days: int) -> dict[str, str]:
    """Both policies: what is put twice stays once, and nothing stays for ever. Segments go from the oldest on, so that
    an answer never goes before its question."""
    return {"cleanup.policy": "compact,delete", "retention.ms": str(kept_days * _DAY_MS), "retention.bytes": "-1"}


class KafkaEscalations:
    """See Escalations. `start` it, `stop` it; of one event loop.

    `put` takes at most `put_timeout_s`, and raises Retryable or EnvironmentProblem then. A question that it raised for
    may still come through: it has its id, and is one question all the same.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        config: EscalationsConfig | None = None,
        secrets: Secrets | None = None,
        *,
        replication_factor: int = 1,
        **security: Any,
    ) -> None:
        self._address, self._config = bootstrap_servers, config or EscalationsConfig()
        self._settings = {"bootstrap_servers": bootstrap_servers, **security}
        self._secrets = secrets or Secrets()
        self._replicas = replication_factor
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> KafkaEscalations:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Makes the topic where it is missing. Kafka may be away: then `put` connects. Raises EnvironmentProblem where
        it refuses us."""
        try:
            async with asyncio.timeout(self._config.put_timeout_s):
                await self._started()
        except (Retryable, TimeoutError) as error:
            logger.warning("escalations: %s; questions for people fail until it is back", error or "Kafka is slow")

    async def stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop_producer(producer)
        while self._ending:
            await asyncio.wait(set(self._ending))

    async def put(self, escalation: Escalation) -> None:
        key, value = encode_question(escalation, self._secrets)
        took_s = self._config.put_timeout_s
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(took_s):
                producer = await self._started()
                sent = producer.send_and_wait(self._config.topic, value, key=key, partition=PARTITION)
                await answered(self._address, sent)
        except TimeoutError:
            self._drop(producer)
            raise Retryable(f"Kafka at {self._address} did not take the question in {took_s:g} s") from None
        except (Retryable, EnvironmentProblem):
            self._drop(producer)
            raise

    def _drop(self, producer: AIOKafkaProducer | None) -> None:
        """The next question gets a new one: after some errors a producer with sequence numbers never works again. What
        others have on their way with it may still come through."""
        if producer is None or producer is not self._producer:
            return
        self._producer = None
        ending = asyncio.create_task(stop_producer(producer))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                await make_topic(self._address, self._config, self._replicas, self._settings)
                producer = AIOKafkaProducer(
                    acks="all",
                    enable_idempotence=True,
                    request_timeout_ms=int(self._config.put_timeout_s * 1000),
                    **self._settings,
                )
                try:
                    await answered(self._address, producer.start())
                except BaseException:  # a caller's cancel, too: it holds connections
                    await stop_producer(producer)
                    raise
                self._producer = producer
            return self._producer


async def make_topic(address: str, config: EscalationsConfig, replicas: int, settings: dict[str, Any]) -> None:
    """Where it is missing. Raises EnvironmentProblem for one with several partitions, Retryable, as Topics do."""
    topics = Topics(address, "", **{name: value for name, value in settings.items() if name != "bootstrap_servers"})
    try:
        if config.topic not in await topics.existing():
            await topics.create(config.topic, 1, replicas, topic_config(config.kept_days))
            return
        count = len(await topics.partitions([config.topic]))
    finally:
        await topics.stop()
    if count > 1:
        raise EnvironmentProblem(
            f"{config.topic} has {count} partitions, and the order of its only one says whose answer was first. Take "
            "another guard.escalations.topic, or make this one anew with a single partition"
        )
