"""The record-batch transport: Faust keeps workers, assignment and rebalances; an agent gets a partition's records in
batches, and Kafka's commit follows finished batches only.

The commit rule, in one place (promise 1): what may be committed of a partition is where its last finished batch ended,
and of that only what the `OffsetKeeper` lets go, after it has written its marks beside the data. Faust's own
acknowledgements, which it also makes for a handler that raised, count for nothing. On an assignment, and on `rewind`,
everything in flight is dropped and the keeper says where each partition starts; until then, no record is delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from faust.events import Event
from faust.serializers.schemas import Schema
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import get_logger

from pipeline.core.errors import CtxpipeError, Fatal, Retryable
from pipeline.stores.store import ShardChanged
from pipeline.streams.backoff import Backoff
from pipeline.streams.consumer_thread import BatchConsumerThread, Polled
from pipeline.streams.lanes import BatchState, Lane, LaneLimits, Partition, RecordBatch

logger = get_logger(__name__)

POLL_TIMEOUT_S = 0.25
INTERRUPT_TIMEOUT_S = 5.0
PLACE_TIMEOUT_S = 20.0


class OffsetKeeper(Protocol):
    """Who decides where partitions start and what may be committed; `app.offset_keeper`. Never called concurrently."""

    async def start_positions(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        """The first offset to read of each. Raises Retryable to be asked again, Fatal to end the worker."""

    async def release(self, finished: Mapping[Partition, int]) -> Mapping[Partition, int]:
        """Notes these finished offsets and returns those that may be committed to Kafka now. Raises Retryable when that
        is not possible now, ShardChanged to go back to the start positions."""

    async def check_gap(self, partition: Partition, expected: int, found: int) -> None:
        """The next record of a partition is not the expected one. Raises Fatal when records have been lost."""


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer, delivering record batches. It lives in the agents' event loop; Kafka I/O is in its thread."""

    _thread: BatchConsumerThread
    logger = get_logger("mode.ctxpipe")
    """Faust's own messages about this service, apart from ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lanes: dict[TP, Lane] = {}
        self.limits: LaneLimits = getattr(self.app, "lane_limits", None) or LaneLimits()
        self._kafka_offsets = KafkaOffsets(self)
        self.grace_s: float = getattr(self.app, "batch_grace_s", 10.0)
        self.in_outage = False
        self.placed = False
        """Whether partitions, if any, have been placed since the start; a rebalance places them again."""
        self._epoch = 0
        self._unplaced = True
        self._running: set[RecordBatch] = set()
        self._changed = asyncio.Event()
        self._to_feed: dict[TP, Lane] = {}
        self._offsets_lock = asyncio.Lock()
        self._backoff = Backoff()

    @property
    def keeper(self) -> OffsetKeeper:
        """The app's, from the moment that it has one."""
        return getattr(self.app, "offset_keeper", None) or self._kafka_offsets

    @property
    def waits_for_stores(self) -> bool:
        """True while nothing can go on because a store or the broker is away."""
        return self.in_outage or any(batch.in_outage for batch in self._running)

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # ---- from Kafka to the agents

    async def _drain_messages(self, fetcher: Any) -> None:
        """Faust's fetcher runs this as long as partitions may be read."""
        stopped = asyncio.ensure_future(fetcher._stopped.wait())
        loops = {asyncio.ensure_future(self._fetch()), asyncio.ensure_future(self._feed())}
        try:
            done, _ = await asyncio.wait({stopped, *loops}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                await task
        except CtxpipeError as error:
            self._end(error)
        finally:
            for task in {stopped, *loops}:
                task.cancel()
            await asyncio.gather(stopped, *loops, return_exceptions=True)

    def _end(self, error: CtxpipeError) -> None:
        """What is neither retried nor set aside ends the process, without a commit."""
        end_process = getattr(self.app, "end_process", None)
        if end_process is None:
            raise error
        end_process(error)

    async def _fetch(self) -> None:
        """Polls for ever: heartbeats depend on it, and lanes that are full are paused instead."""
        while not self.should_stop:
            if not self.flow_active:
                await self.can_resume_flow.wait()
            if self._unplaced and not await self._place():
                await asyncio.sleep(self._backoff.next_s())
                continue
            epoch = self._epoch
            full = frozenset(tp for tp, lane in self.lanes.items() if lane.full)
            polled = await self._thread.poll(full, POLL_TIMEOUT_S)
            if epoch == self._epoch and self.flow_active:
                await self._accept(polled)

    async def _accept(self, polled: Polled) -> None:
        for tp, records in polled.records.items():
            lane = self.lanes.get(tp)
            if lane is None or not records:
                continue
            if records[0].offset != lane.expected:
                await self.keeper.check_gap(lane.partition, lane.expected, records[0].offset)
            lane.extend(records)
            self._to_feed[tp] = lane
        for tp, position in polled.positions.items():
            if tp in self.lanes:
                self.lanes[tp].reached(position)
        self._changed.set()

    async def _feed(self) -> None:
        """Hands each partition's next batch to Faust as soon as the one before is finished."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._to_feed:
                tp, lane = self._to_feed.popitem()
                batch = lane.cut(self._on_batch_change) if self.lanes.get(tp) is lane else None
                if batch is not None:
                    await self.callback(self._message(tp, batch))

    def _message(self, tp: TP, batch: RecordBatch) -> Any:
        last = batch.records[-1]
        return driver.ConsumerMessage(
            tp.topic, tp.partition, last.offset, last.timestamp_ms / 1000.0, 0, (), b"", batch, None, 0, 0, tp,
            generation_id=self.app.consumer_generation_id,
        )  # fmt: skip

    def _on_batch_change(self, batch: RecordBatch) -> None:
        if batch.released:
            self._running.discard(batch)
            lane = self.lanes.get(TP(*batch.partition))
            dropped = batch.state is BatchState.DROPPED
            if lane is not None and lane.out is batch:
                if lane.settle():
                    self._to_feed[TP(*batch.partition)] = lane
                elif not dropped:
                    self.rewind("a handler gave up a batch")
        else:
            self._running.add(batch)
        self._changed.set()

    # ---- placing partitions

    def rewind(self, reason: str) -> None:
        """Drops everything in flight and starts again from the keeper's positions; returns at once."""
        logger.warning("reading again from the marks: %s", reason)
        self._forget()

    def _forget(self) -> None:
        self._epoch += 1
        self._unplaced = True
        for lane in self.lanes.values():
            running = lane.discard()
            if running is not None:
                running.drop()
        self.lanes = {}

    async def perform_seek(self) -> None:
        """Faust calls this after each assignment; the fetch loop places the partitions before it reads on."""
        self._forget()
        self._backoff.reset()

    async def _place(self) -> bool:
        """Asks for start positions and seeks to them; False: not now, try again."""
        await self._await_running(0.0)
        epoch, assignment = self._epoch, frozenset(self.assignment())
        partitions = frozenset((tp.topic, tp.partition) for tp in assignment)
        async with self._offsets_lock:
            try:
                async with asyncio.timeout(PLACE_TIMEOUT_S):
                    starts = await self.keeper.start_positions(partitions) if partitions else {}
            except (Retryable, TimeoutError) as error:
                self._note_outage(f"{len(partitions)} partitions wait for their marks: {error or 'no answer in time'}")
                return False
            if epoch != self._epoch or assignment != frozenset(self.assignment()):
                return False
            if not await self._thread.seek_all({TP(*partition): offset for partition, offset in starts.items()}):
                return False
            if epoch != self._epoch:
                return False
            self.lanes = {TP(*partition): Lane(partition, start, self.limits) for partition, start in starts.items()}
            self._unplaced = False
            self.placed = True
        self._note_recovery()
        return True

    def _note_outage(self, text: str) -> None:
        if not self.in_outage:
            logger.warning(text)
        self.in_outage = True

    def _note_recovery(self) -> None:
        if self.in_outage:
            logger.info("the stores answer again; reading on")
        self.in_outage = False
        self._backoff.reset()

    # ---- committing

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Faust's commit timer, rebalances and the stop come here."""
        async with self._offsets_lock:
            lanes = dict(self.lanes)
            finished = {lane.partition: lane.finished for lane in lanes.values() if lane.finished != lane.committed}
            if not lanes:
                return False
            try:
                # Also when nothing is new: a store that lost its last writes must be noticed in quiet times too.
                allowed = await self.keeper.release(finished)
            except Retryable as error:
                self._note_outage(f"offsets are kept back: {error}")
                if isinstance(error, ShardChanged):
                    self.rewind(str(error))
                return False
            except CtxpipeError as error:
                self._end(error)
                return False
            self._note_recovery()
            if not allowed:
                return False
            committed = await self._thread.commit({TP(*partition): offset for partition, offset in allowed.items()})
            if committed:
                for partition, offset in allowed.items():
                    lanes[TP(*partition)].committed = offset
                self.app.monitor.on_tp_commit({TP(*partition): offset for partition, offset in allowed.items()})
            return committed

    async def wait_empty(self) -> None:
        """Before partitions are given up: running batches may finish within the grace, then the rest is dropped."""
        for lane in self.lanes.values():
            lane.discard()
        await self._await_running(self.grace_s)
        # Not `commit`, which does nothing of its own while another one is on its way.
        await self.force_commit()
        self._forget()

    async def _await_running(self, grace_s: float) -> None:
        """Returns when no handler runs any more; after the grace, and at once in an outage, they are interrupted."""
        loop = asyncio.get_running_loop()
        patience_s, interrupted = loop.time() + grace_s, False
        while self._running:
            late = loop.time() >= patience_s
            for batch in list(self._running):
                if late or batch.in_outage:
                    batch.drop()
                    batch.interrupt()
            if late and interrupted and loop.time() >= patience_s + INTERRUPT_TIMEOUT_S:
                raise Fatal("a batch handler does not let itself be interrupted; ending this worker")
            interrupted = late
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Faust would close Kafka's client from the wrong loop when a rebalance meets a stop, and never leave the
        group; the consumer thread's own stop does both in order."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's own livelock messages know nothing of batches; pipeline.streams.watchdog watches instead."""


class KafkaOffsets:
    """The keeper of an app without marks: starts at Kafka's committed offset, else at the beginning."""

    def __init__(self, consumer: BatchConsumer) -> None:
        self._consumer = consumer

    async def start_positions(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        return await self._consumer._thread.committed_or_beginning(partitions)

    async def release(self, finished: Mapping[Partition, int]) -> Mapping[Partition, int]:
        return finished

    async def check_gap(self, partition: Partition, expected: int, found: int) -> None:
        """Compaction and transactions leave gaps; Kafka's own reset after lost records is what this app asked for."""


class Transport(driver.Transport):  # type: ignore[misc]
    """`broker="kafkabatch://host:port"`, by the entry-point group faust.transports."""

    Consumer: ClassVar[type[BatchConsumer]] = BatchConsumer


class RecordBatchSchema(Schema):  # type: ignore[misc]
    """Passes batches through undecoded: `app.topic(name, schema=RecordBatchSchema(), acks=False)`."""

    def compile(self, app: Any, **_: Any) -> Any:
        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return Event(app, message.key, message.value, message.headers, message)

        return decode
