"""Kafka I/O of the record-batch transport: aiokafka in Faust's consumer thread; heartbeats go on while agents work.

Every public method is called from the agents' loop and runs in the thread's loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

import aiokafka
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import get_logger

from pipeline.core.errors import EnvironmentProblem
from pipeline.streams.ending import Restart
from pipeline.streams.fetch_session import SessionClient
from pipeline.streams.kafka_clients import rest_between_metadata, stop_consumer
from pipeline.streams.kafka_errors import REFUSALS
from pipeline.streams.lanes import Partition
from pipeline.streams.membership import watch_name
from schemas.record import Record

logger = get_logger(__name__)

POSITIONS_EVERY_S = 0.25
METADATA_EVERY_S = 1.0
COMMIT_TIMEOUT_S = 10.0
FETCH_WAIT_MS = 250
ERROR_PAUSE_S = 1.0
STOP_CHECK_S = 0.1
LEAVE_LIMIT_S = 8.0
"""For the word to the group that its partitions are free; a broker that is there needs some milliseconds."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Polled:
    """Fetched records by partition, and now and then where the consumer stands in each partition."""

    records: dict[TP, list[Record]] = field(default_factory=dict)
    positions: dict[TP, int] = field(default_factory=dict)


class BatchConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread with our settings, and a poll that returns whole batches."""

    logger = get_logger("mode.ctxpipe")
    """Faust's own messages about this service, apart from ours."""

    _positions_at = 0.0
    _metadata_at = 0.0

    async def poll(self, full: frozenset[TP], timeout_s: float) -> Polled:
        """All fetched records, converted; partitions in `full` are paused until they are no longer in it."""
        return await self._in_thread(self._poll(full, timeout_s))

    async def seek_all(self, starts: Mapping[TP, int]) -> bool:
        """Moves each partition to its offset; False when a partition has just been taken away."""
        return await self._in_thread(self._seek_all(starts))

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commits to Kafka; False when it did not work out, which loses nothing: marks are what counts."""
        return await self._in_thread(self._commit_offsets(offsets)) if offsets else False

    async def committed_or_beginning(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        """Kafka's committed offset of each partition, its first offset where there is none."""
        return await self._in_thread(self._committed_or_beginning(partitions))

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self._unless_stopping(super().on_partitions_revoked(revoked))

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await self._unless_stopping(super().on_partitions_assigned(assigned, generation_id))

    async def _unless_stopping(self, callback: Coroutine[Any, Any, None]) -> None:
        """A rebalance that meets a stop would wait for ever for the agents' loop, and the group for this member."""
        task = asyncio.ensure_future(callback)
        while not task.done() and not self.app.should_stop:
            await asyncio.wait({task}, timeout=STOP_CHECK_S)
        if task.done():
            task.result()
        else:
            task.cancel()

    async def _in_thread(self, work: Coroutine[Any, Any, Result]) -> Result:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.thread_loop))

    async def on_start(self) -> None:
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher
        fetcher._records = _AsRecords(fetcher._records)
        rest_between_metadata(fetcher._client)
        fetcher._client = SessionClient(fetcher._client)
        member = self.app.conf.consumer_group_instance_id
        if member:  # of a worker; an application of Faust's own has no name
            coordinator, settings = self._ensure_consumer()._coordinator, self.app.stream_settings
            watch_name(coordinator, member, settings.session_timeout_s, self.app.end_process)

    async def on_thread_stop(self) -> None:
        """As Faust, with an end in any case."""
        await super(driver.AIOKafkaConsumerThread, self).on_thread_stop()
        if self._consumer is not None:
            await stop_consumer(self._consumer, LEAVE_LIMIT_S)

    async def _poll(self, full: frozenset[TP], timeout_s: float) -> Polled:
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError()
        if consumer._coordinator._coordination_task.done():
            raise Restart("Kafka's client has ended its work in the group; starting again")
        self._pause_exactly(consumer, full)
        self._complete_metadata(consumer)
        try:
            consumer._coordinator.check_errors()  # it waits until somebody has heard of them
            with fetcher._subscriptions.fetch_context():
                fetched = await fetcher.fetched_records(
                    None, timeout=timeout_s, max_records=self.app.conf.broker_max_poll_records
                )
        except REFUSALS as error:
            raise EnvironmentProblem(
                f"Kafka does not let this user read: {error!r}; grant READ on topics and group"
            ) from error
        except KafkaError as error:
            logger.warning("fetching failed, trying again: %r", error)
            await asyncio.sleep(ERROR_PAUSE_S)
            return Polled()
        return Polled(fetched, self._positions(consumer))

    def _pause_exactly(self, consumer: Any, full: frozenset[TP]) -> None:
        assigned, paused = consumer.assignment(), consumer.paused()
        wanted = {TopicPartition(*tp) for tp in full} & assigned
        if wanted != paused:
            consumer.pause(*(wanted - paused))
            consumer.resume(*((paused - wanted) & assigned))

    def _complete_metadata(self, consumer: Any) -> None:
        """A topic that was made a moment before is not in the metadata by which the group's leader shares out
        partitions; without asking again its records would wait for minutes. An answer that brings it makes the group
        share out anew."""
        now = monotonic()
        if now - self._metadata_at < METADATA_EVERY_S:
            return
        self._metadata_at = now
        cluster = consumer._client.cluster
        if any(not cluster.partitions_for_topic(topic) for topic in consumer.subscription()):
            consumer._client.force_metadata_update()

    def _positions(self, consumer: Any) -> dict[TP, int]:
        now = monotonic()
        subscription = consumer._subscription.subscription
        if now - self._positions_at < POSITIONS_EVERY_S or subscription is None or subscription.assignment is None:
            return {}
        self._positions_at = now
        states = ((tp, subscription.assignment.state_value(tp)) for tp in subscription.assignment.tps)
        return {
            TP(tp.topic, tp.partition): state.position
            for tp, state in states
            if state is not None and state.has_valid_position
        }

    async def _seek_all(self, starts: Mapping[TP, int]) -> bool:
        consumer = self._ensure_consumer()
        try:
            for tp, offset in starts.items():
                consumer.seek(TopicPartition(*tp), offset)
        except IllegalStateError:
            return False
        return True

    async def _commit_offsets(self, offsets: Mapping[TP, int]) -> bool:
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        wanted = {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        wanted = {tp: offset for tp, offset in wanted.items() if tp in assigned}
        if not wanted:
            return False
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await consumer.commit(wanted)
        except (CommitFailedError, IllegalStateError):
            logger.info("a rebalance came before the commit; its records are read again from the marks")
            return False
        except (KafkaError, TimeoutError) as error:
            logger.warning("Kafka did not take the commit, trying again: %r", error)
            return False
        return True

    async def _committed_or_beginning(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        consumer = self._ensure_consumer()
        wanted = [TopicPartition(*partition) for partition in partitions]
        beginnings = await consumer.beginning_offsets(wanted)
        committed = [await consumer.committed(tp) for tp in wanted]
        return {
            (tp.topic, tp.partition): beginnings[tp] if offset is None else offset
            for tp, offset in zip(wanted, committed, strict=True)
        }

    def _create_worker_consumer(self, transport: Any) -> Any:
        conf = self.app.conf
        return aiokafka.AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )


class _AsRecords(OrderedDict[Any, Any]):
    """aiokafka's buffer of fetch results, made to build our records: its own cost more than all the rest of reading."""

    def __setitem__(self, tp: Any, result: Any) -> None:
        partition_records = getattr(result, "_partition_records", None)
        if partition_records is not None:
            partition_records._consumer_record = _record
        super().__setitem__(tp, result)


def _record(tp: Any, found: Any) -> Record:
    return Record(
        tp.topic, tp.partition, found.offset, found.key, found.value, found.timestamp or 0, tuple(found.headers)
    )
