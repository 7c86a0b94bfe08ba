"""What every Faust application of ctxpipe has: settings, a view of Kafka, waiting for what is away, an orderly end."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import faust
from mode import get_logger

from pipeline.core.errors import Retryable
from pipeline.streams.agents import BatchRunner, Handle
from pipeline.streams.backoff import Backoff
from pipeline.streams.ending import end_process
from pipeline.streams.lanes import LaneLimits
from pipeline.streams.offsets import MarkKeeper
from pipeline.streams.publisher import Publisher
from pipeline.streams.topics import Topics
from pipeline.streams.transport import RecordBatchSchema
from pipeline.streams.watchdog import Watchdog

logger = get_logger(__name__)

COMPACTED = {
    "cleanup.policy": "compact",
    "delete.retention.ms": str(14 * 24 * 3600 * 1000),
    "segment.ms": str(6 * 3600 * 1000),
}
"""Of topics that hold the newest of every key; who was away for two weeks still learns of deletions."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a worker talks to Kafka. `security` goes to aiokafka's clients as it is."""

    bootstrap_servers: str
    concurrency: int = 4
    commit_interval_s: float = 0.5
    session_timeout_s: float = 25.0
    stall_limit_s: float = 300.0
    batch_grace_s: float = 5.0
    drain_s: float = 20.0
    member: str | None = None
    """Its own name in the group, which stays the same over a restart; see pipeline.streams.membership."""
    dirty_partitions: int = 8
    replication_factor: int = 1
    partition_fetch_bytes: int = 2 << 20
    lane_limits: LaneLimits = field(default_factory=LaneLimits)
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Opened(Protocol):
    """Stores and engines that an app works with."""

    @property
    def close(self) -> Callable[[], Awaitable[None]]: ...


class WorkerApp(faust.App):  # type: ignore[misc]
    """Faust's app on the record-batch transport. Whoever builds one calls `prepare_worker` before it starts."""

    logger = get_logger("mode.ctxpipe")
    """Faust's own messages about this service, apart from ours."""

    stream_settings: StreamSettings
    lane_limits: LaneLimits
    batch_grace_s: float
    offset_keeper: MarkKeeper | None = None
    end_process: Callable[[Exception], NoReturn]
    kafka_topics: Topics
    watch_stop: threading.Event
    watchdog: Watchdog
    waits_for: str = ""
    """What it cannot begin without, in words; empty where nothing is in its way."""
    held_up_by: str = ""
    """What is away without which nothing gets on; empty where all is there."""
    publisher: Publisher | None = None
    opened: Opened | None = None

    def prepare_worker(self, group: str, settings: StreamSettings) -> None:
        """Nothing connects yet."""
        self.stream_settings = settings
        self.lane_limits, self.batch_grace_s = settings.lane_limits, settings.batch_grace_s
        self.end_process = end_process
        self.kafka_topics = Topics(settings.bootstrap_servers, group, **settings.security)
        self.watch_stop = threading.Event()
        self.watchdog = Watchdog(settings.stall_limit_s)

    async def on_stop(self) -> None:
        """Faust waits for batches and commits first; then the connections close."""
        self.watch_stop.set()
        await super().on_stop()
        if self.publisher is not None:
            await self.publisher.stop()
        if self.opened is not None:
            await self.opened.close()
        await self.kafka_topics.stop()

    async def until_it_works(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """None when the worker is asked to stop meanwhile."""
        backoff, told = Backoff(), False
        while not self.should_stop:
            try:
                done = await work()
                self.waits_for = ""
                return done
            except Retryable as error:
                self.waits_for = str(error)
                if not told:
                    logger.warning("waiting, and trying again: %s", error)
                told = True
                await self.sleep(backoff.next_s())
        return None


def options(settings: StreamSettings) -> dict[str, Any]:
    """Faust's own settings."""
    return {
        "broker_credentials": _credentials(settings.security),
        "broker": f"kafkabatch://{settings.bootstrap_servers.replace(',', ';')}",
        "web_enabled": False,
        "topic_disable_leader": True,
        "topic_allow_declare": False,
        "table_standby_replicas": 0,
        "stream_wait_empty": True,
        "consumer_auto_offset_reset": "earliest",
        "consumer_group_instance_id": settings.member,
        "consumer_max_fetch_size": settings.partition_fetch_bytes,
        "broker_commit_interval": settings.commit_interval_s,
        "broker_commit_every": 1_000_000_000,
        "broker_session_timeout": settings.session_timeout_s,
        "broker_heartbeat_interval": settings.session_timeout_s / 8,
        "broker_request_timeout": max(40.0, settings.session_timeout_s + 10),
        "broker_max_poll_records": 10_000,
        "producer_request_timeout": 30.0,
    }


def _credentials(security: Mapping[str, Any]) -> Any:
    """The same as Faust names it; None without any."""
    context = security.get("ssl_context")
    if "sasl_mechanism" in security:
        login = {"username": security["sasl_plain_username"], "password": security["sasl_plain_password"]}
        return faust.SASLCredentials(mechanism=security["sasl_mechanism"], ssl_context=context, **login)
    return None if context is None else faust.SSLCredentials(context)


def add_agent(app: WorkerApp, name: str, topics: Sequence[str], handle: Callable[[], Handle]) -> None:
    """Batches of the topics go to what `handle` gives once the app has started."""
    channel = app.topic(*topics, schema=RecordBatchSchema(), acks=False)

    @app.agent(channel, name=name)  # type: ignore[untyped-decorator]
    async def run(batches: Any) -> None:
        runner = BatchRunner(
            handle(),
            concurrency=app.stream_settings.concurrency,
            rewinding=lambda: app.consumer,
            end_process=app.end_process,
        )
        await runner.run(batches)
