"""From the queue of questions to the webhook: each at least once, in order, by one process of all that offer to do it.

What was delivered is Kafka's commit of a consumer group, made after the receiver took the question: whoever is killed
between the two delivers it again, with the same `webhook-id`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from pipeline.core import metrics
from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import Retryable
from pipeline.core.guarding import EscalationsConfig
from pipeline.core.logging import SparseLog
from pipeline.guard.escalation_records import Question, Standings, decode
from pipeline.guard.webhook import Posted, Webhook
from pipeline.streams.backoff import Backoff
from pipeline.streams.escalation_desk import EscalationDesk
from pipeline.streams.escalation_queue import PARTITION, make_topic
from pipeline.streams.kafka_clients import rest_between_metadata, stop_consumer
from pipeline.streams.kafka_errors import answered, ours

POLL_MS = 500
PAUSE_S, PAUSE_S_MAX = 0.5, 15.0
TRIES_MS_MAX = 24 * 3_600_000
"""For so long one question may be tried before Kafka gives the partition to somebody else, who tries on."""
TELL_EVERY_S = 60.0

logger = logging.getLogger(__name__)


def group_of(config: EscalationsConfig) -> str:
    return f"{config.topic}.webhook"


class Deliveries:
    """`run` until it is cancelled. Questions that were answered before they were delivered are passed over."""

    def __init__(
        self,
        bootstrap_servers: str,
        config: EscalationsConfig,
        webhook: Webhook,
        clock: Clock | None = None,
        *,
        replication_factor: int = 1,
        security: Mapping[str, Any] | None = None,
    ) -> None:
        self._address, self._config, self._webhook = bootstrap_servers, config, webhook
        self._security, self._replicas = dict(security or {}), replication_factor
        self._clock = clock or SystemClock()
        self._told = SparseLog(logger, TELL_EVERY_S)

    async def run(self) -> None:
        """Raises EnvironmentProblem where Kafka refuses us; through outages of Kafka and of the receiver it goes on."""
        pauses = Backoff(PAUSE_S, PAUSE_S_MAX)
        while True:
            try:
                await self._deliver(pauses)
            except Retryable as error:
                self._told.tell("webhook of escalations: %s; waiting", error)
                await self._clock.sleep(pauses.next_s())

    async def _deliver(self, pauses: Backoff) -> None:
        await make_topic(self._address, self._config, self._replicas, self._security)
        place = TopicPartition(self._config.topic, PARTITION)
        consumer = AIOKafkaConsumer(
            self._config.topic,
            bootstrap_servers=self._address,
            group_id=group_of(self._config),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=TRIES_MS_MAX,
            **self._security,
        )
        rest_between_metadata(consumer._client)
        try:
            await answered(self._address, consumer.start())
            standings = await self._standings()
            while True:
                try:
                    found = await consumer.getmany(timeout_ms=POLL_MS, max_records=1)
                    pauses.reset()
                    for record in found.get(place, []):
                        await self._one(record, standings)
                        await consumer.commit({place: record.offset + 1})
                except (KafkaError, OSError) as error:
                    raise ours(self._address, error) from error
        finally:
            await stop_consumer(consumer)

    async def _standings(self) -> Standings:
        """As of now: whoever begins late need not be told of what was answered long ago."""
        async with EscalationDesk(self._address, self._config, self._clock, **self._security) as desk:
            return await desk.look()

    async def _one(self, record: ConsumerRecord, standings: Standings) -> None:
        try:
            question = decode(record.value)
        except ValueError:
            return
        standing = standings.by_id.get(question.id) if isinstance(question, Question) else None
        if isinstance(question, Question) and (standing is None or standing.open):
            await self._until_taken(question, record.value or b"")

    async def _until_taken(self, question: Question, body: bytes) -> None:
        settings = self._webhook.config
        pauses, refusals = Backoff(settings.delay_s, settings.delay_s_max), 0
        while True:
            posted = await self._webhook.post(question.id, body)
            metrics.guard_webhooks.labels(posted.outcome).inc()
            refusals += posted.outcome == "refused"
            if posted.outcome == "taken":
                return
            if refusals >= settings.refusals_max:
                self._pass_over(question, posted)
                return
            self._told.tell("webhook of escalations: %s; trying on", posted.detail)
            await self._clock.sleep(pauses.next_s())

    def _pass_over(self, question: Question, posted: Posted) -> None:
        logger.error(
            "webhook of escalations: question %s is not taken, %s, %d times; it waits in the queue (`ctxpipe "
            "escalations show %s`)",
            question.id,
            posted.detail,
            self._webhook.config.refusals_max,
            question.id,
        )
