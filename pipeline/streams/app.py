"""The Faust application of one context version. `faust -A pipeline.streams.app worker` runs the one that
CTXPIPE_CONFIG and CTXPIPE_CONTEXT name; `ctxpipe worker` runs several in processes of their own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import faust
from mode import get_logger

from pipeline.core.errors import ConfigError, CtxpipeError, Retryable
from pipeline.report import BatchReport
from pipeline.stores.store import MarkStore
from pipeline.streams.agents import BatchRunner, Handle
from pipeline.streams.backoff import Backoff
from pipeline.streams.ending import end_process
from pipeline.streams.expiry import expire_values
from pipeline.streams.handler import BatchHandler, Stages
from pipeline.streams.lanes import LaneLimits
from pipeline.streams.offsets import MarkKeeper
from pipeline.streams.progress import promote_when_caught_up, watch_progress
from pipeline.streams.publisher import Lanes, Publisher
from pipeline.streams.reporting import WorkerMetrics
from pipeline.streams.topics import Topics
from pipeline.streams.transport import RecordBatchSchema
from schemas.topics import consumer_group, dead_letter_topic, dirty_topic

logger = get_logger(__name__)

TOPIC_WAIT_S = 1.0
TOPIC_REMINDER_S = 30.0


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a worker talks to Kafka. `security` goes to aiokafka's clients as it is."""

    bootstrap_servers: str
    concurrency: int = 4
    commit_interval_s: float = 0.5
    session_timeout_s: float = 25.0
    stall_limit_s: float = 300.0
    batch_grace_s: float = 5.0
    dirty_partitions: int = 8
    replication_factor: int = 1
    partition_fetch_bytes: int = 2 << 20
    lane_limits: LaneLimits = field(default_factory=LaneLimits)


@dataclass(frozen=True, slots=True)
class OpenContext:
    """A context version with its stores connected: what the agents work with."""

    flow: Stages
    marks: MarkStore
    promote: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    expire: Callable[[int], Awaitable[BatchReport]] | None = None
    """Takes out of wide-column rows what has lived its time; None where there are none."""


@dataclass(frozen=True, slots=True)
class ContextStream:
    """What build_app needs to know of a context version. `open` raises Retryable while a store is away."""

    context: str
    version: int
    topics: Sequence[str]
    open: Callable[[], Awaitable[OpenContext]]
    on_report: Callable[[BatchReport, float], None] | None = None


class ContextApp(faust.App):  # type: ignore[misc]
    """Faust's app with what a context needs: its stores, its topics, its marks. Build it with `build_app`."""

    logger = get_logger("mode.ctxpipe")
    """Faust's own messages about this service, apart from ours."""

    context_stream: ContextStream
    stream_settings: StreamSettings
    lane_limits: LaneLimits
    batch_grace_s: float
    offset_keeper: MarkKeeper | None = None
    end_process: Callable[[Exception], NoReturn]
    opened: OpenContext | None = None

    def prepare(self, stream: ContextStream, settings: StreamSettings) -> None:
        """Called once by build_app."""
        self.context_stream, self.stream_settings = stream, settings
        self.lane_limits, self.batch_grace_s = settings.lane_limits, settings.batch_grace_s
        self.end_process = end_process
        self.kafka_topics = Topics(settings.bootstrap_servers, consumer_group(stream.context, stream.version))
        self.publisher: Publisher | None = None
        self.handler: BatchHandler | None = None
        self.watch_stop = threading.Event()
        self.shown = WorkerMetrics(stream.context)

    async def on_first_start(self) -> None:
        """Before Faust reads anything: connect, make our topics, wait for those of the connectors."""
        try:
            self.opened = await self.until_it_works(self.context_stream.open)
            await self.until_it_works(self._make_topics)
            await self._wait_for_sources()
            await self.until_it_works(self._start_publisher)
        except CtxpipeError as error:
            self.end_process(error)
        if self.opened is None or self.publisher is None:
            return
        self.offset_keeper = MarkKeeper(self.opened.marks, self.kafka_topics)
        on_report = self.context_stream.on_report
        self.handler = BatchHandler(
            self.opened.flow, self.publisher, self.opened.marks, shown=self.shown, on_report=on_report
        )

    async def on_stop(self) -> None:
        """Faust waits for batches and commits first; then the connections close."""
        self.watch_stop.set()
        await super().on_stop()
        if self.publisher is not None:
            await self.publisher.stop()
        await self.kafka_topics.stop()
        if self.opened is not None:
            await self.opened.close()

    async def until_it_works(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """None when the worker is asked to stop meanwhile."""
        backoff, told = Backoff(), False
        while not self.should_stop:
            try:
                return await work()
            except Retryable as error:
                if not told:
                    logger.warning("waiting, and trying again: %s", error)
                told = True
                await self.sleep(backoff.next_s())
        return None

    async def _make_topics(self) -> None:
        settings = self.stream_settings
        letters = dead_letter_topic(self.context_stream.context)
        dirty = dirty_topic(self.context_stream.context, self.context_stream.version)
        # Dead letters wait for a person, however long that takes; chunks only for this group to read them.
        await self.kafka_topics.create(letters, 1, settings.replication_factor, {"retention.ms": "-1"})
        week = {"retention.ms": str(7 * 24 * 3600 * 1000)}
        await self.kafka_topics.create(dirty, settings.dirty_partitions, settings.replication_factor, week)

    async def _wait_for_sources(self) -> None:
        told_s: float | None = None
        while not self.should_stop:
            existing = await self.until_it_works(self.kafka_topics.existing)
            missing = sorted(set(self.context_stream.topics) - (existing or set()))
            if not missing:
                return
            if told_s is None or time.monotonic() - told_s > TOPIC_REMINDER_S:
                told_s = time.monotonic()
                logger.warning("waiting for %s: `ctxpipe connect` makes them", ", ".join(missing))
            await self.sleep(TOPIC_WAIT_S)

    async def _start_publisher(self) -> None:
        dirty = dirty_topic(self.context_stream.context, self.context_stream.version)
        partitions = len(await self.kafka_topics.partitions([dirty]))
        if not partitions:
            raise Retryable(f"Kafka has not made {dirty} yet")
        lanes = Lanes(dead_letter_topic(self.context_stream.context), dirty, partitions)
        publisher = Publisher(self.stream_settings.bootstrap_servers, lanes)
        await publisher.start()
        self.publisher = publisher


def build_app(stream: ContextStream, settings: StreamSettings) -> ContextApp:
    """The app of one context version; nothing connects before it is started."""
    app = ContextApp(
        consumer_group(stream.context, stream.version),
        broker=f"kafkabatch://{settings.bootstrap_servers.replace(',', ';')}",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        stream_wait_empty=True,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=settings.partition_fetch_bytes,
        broker_commit_interval=settings.commit_interval_s,
        broker_commit_every=1_000_000_000,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 8,
        broker_request_timeout=max(40.0, settings.session_timeout_s + 10),
        broker_max_poll_records=10_000,
        producer_request_timeout=30.0,
    )
    app.prepare(stream, settings)
    _add_agents(app)
    app.task(partial(watch_progress, app))
    app.task(partial(promote_when_caught_up, app))
    app.task(partial(expire_values, app))
    return app


def _add_agents(app: ContextApp) -> None:
    dirty = dirty_topic(app.context_stream.context, app.context_stream.version)
    tables = app.topic(*app.context_stream.topics, schema=RecordBatchSchema(), acks=False)
    chunks = app.topic(dirty, schema=RecordBatchSchema(), acks=False)

    def runner(handle: Handle) -> BatchRunner:
        return BatchRunner(
            handle,
            concurrency=app.stream_settings.concurrency,
            rewinding=lambda: app.consumer,
            end_process=app.end_process,
        )

    @app.agent(tables, name="denormalise")  # type: ignore[untyped-decorator]
    async def denormalise(stream: Any) -> None:
        assert app.handler is not None
        await runner(app.handler.denormalise).run(stream)

    @app.agent(chunks, name="rebuild")  # type: ignore[untyped-decorator]
    async def rebuild(stream: Any) -> None:
        assert app.handler is not None
        await runner(app.handler.rebuild).run(stream)


def __getattr__(name: str) -> Any:
    """`app`, made when it is first asked for, so that importing this module needs no configuration."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.streams.compose import app_of_file

    context = os.environ.get("CTXPIPE_CONTEXT")
    if not context:
        raise ConfigError(["set CTXPIPE_CONTEXT to the context that this worker serves"])
    made = app_of_file(os.environ.get("CTXPIPE_CONFIG", "ctxpipe.yaml"), context)
    globals()["app"] = made
    return made
