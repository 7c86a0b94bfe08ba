"""The Faust application of one context version. `faust -A pipeline.streams.app worker` runs the one that
CTXPIPE_CONFIG and CTXPIPE_CONTEXT name; `ctxpipe worker` runs several in processes of their own."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from mode import get_logger

from pipeline.core.clock import SystemClock
from pipeline.core.errors import ConfigError, CtxpipeError, Retryable
from pipeline.report import BatchReport
from pipeline.stores.store import MarkStore
from pipeline.streams.asking import ask_for_texts
from pipeline.streams.expiry import expire_values
from pipeline.streams.handler import BatchHandler, Stages
from pipeline.streams.journey import Journeys
from pipeline.streams.offsets import MarkKeeper
from pipeline.streams.progress import promote_when_caught_up, watch_progress, watch_watermarks
from pipeline.streams.publisher import Lanes, Publisher
from pipeline.streams.reporting import WorkerMetrics
from pipeline.streams.worker_app import COMPACTED, StreamSettings, WorkerApp, add_agent, options
from schemas.topics import consumer_group, dead_letter_topic, dirty_topic, request_topic

logger = get_logger(__name__)

TOPIC_WAIT_S = 1.0
TOPIC_REMINDER_S = 30.0


@dataclass(frozen=True, slots=True)
class OpenContext:
    """A context version with its stores connected: what the agents work with."""

    flow: Stages
    marks: MarkStore
    promote: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    expire: Callable[[int], Awaitable[BatchReport]] | None = None
    """Takes out of wide-column rows what has lived its time; None where there are none."""
    texts: WantedTexts | None = None
    """None where nothing is embedded."""
    serves: Callable[[], Awaitable[bool]] | None = None
    """Whether lookups use this version, so that its updates are waited for; None: nobody asks."""
    journeys: Journeys | None = None


class WantedTexts(Protocol):
    """What the first worker of a version with an embedding must do once: bundles that were there before have nobody
    asked to look at their texts."""

    async def asked(self) -> bool:
        """Whether it has been done."""

    def keys(self) -> AsyncIterator[list[str]]:
        """Keys of all bundles, in chunks."""

    async def remember(self) -> None:
        """It has been done."""


@dataclass(frozen=True, slots=True)
class ContextStream:
    """What build_app needs to know of a context version. `open` raises Retryable while a store is away."""

    context: str
    version: int
    topics: Sequence[str]
    open: Callable[[], Awaitable[OpenContext]]
    on_report: Callable[[BatchReport, float], None] | None = None


class ContextApp(WorkerApp):
    """Faust's app with what a context needs: its stores, its topics, its marks. Build it with `build_app`."""

    context_stream: ContextStream
    opened: OpenContext | None = None
    handler: BatchHandler | None = None

    def prepare(self, stream: ContextStream, settings: StreamSettings) -> None:
        """Called once by build_app."""
        self.context_stream = stream
        self.shown = WorkerMetrics(stream.context)
        self.prepare_worker(consumer_group(stream.context, stream.version), settings)

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
        journeys = self.opened.journeys or Journeys(self.context_stream.context, SystemClock())
        await self.until_it_works(partial(self.note_serving, journeys))
        self.handler = BatchHandler(
            self.opened.flow,
            self.publisher,
            self.opened.marks,
            shown=self.shown,
            on_report=on_report,
            journeys=journeys,
        )

    async def note_serving(self, journeys: Journeys) -> None:
        """A version that serves has updates; one that only catches up has none that anybody waits for."""
        assert self.opened is not None
        journeys.live = self.opened.serves is not None and await self.opened.serves()

    async def _make_topics(self) -> None:
        settings = self.stream_settings
        letters = dead_letter_topic(self.context_stream.context)
        dirty = dirty_topic(self.context_stream.context, self.context_stream.version)
        # Dead letters wait for a person, however long that takes; chunks only for this group to read them.
        forever = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
        await self.kafka_topics.create(letters, 1, settings.replication_factor, forever)
        week = {"retention.ms": str(7 * 24 * 3600 * 1000)}
        await self.kafka_topics.create(dirty, settings.dirty_partitions, settings.replication_factor, week)
        if self._request_topic is not None:
            await self.kafka_topics.create(
                self._request_topic, settings.dirty_partitions, settings.replication_factor, COMPACTED
            )

    @property
    def _request_topic(self) -> str | None:
        if self.opened is None or self.opened.texts is None:
            return None
        return request_topic(self.context_stream.context, self.context_stream.version)

    async def _wait_for_sources(self) -> None:
        told_s: float | None = None
        while not self.should_stop:
            existing = await self.until_it_works(self.kafka_topics.existing)
            missing = sorted(set(self.context_stream.topics) - (existing or set()))
            self.waits_for = f"topics that `ctxpipe connect` makes: {', '.join(missing)}" if missing else ""
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
        lanes = Lanes(dead_letter_topic(self.context_stream.context), dirty, partitions, self._request_topic)
        publisher = Publisher(self.stream_settings.bootstrap_servers, lanes, **self.stream_settings.security)
        await publisher.start()
        self.publisher = publisher


def build_app(stream: ContextStream, settings: StreamSettings) -> ContextApp:
    """The app of one context version; nothing connects before it is started."""
    app = ContextApp(consumer_group(stream.context, stream.version), **options(settings))
    app.prepare(stream, settings)
    _add_agents(app)
    app.task(partial(watch_progress, app))
    app.task(partial(promote_when_caught_up, app))
    app.task(partial(watch_watermarks, app))
    app.task(partial(expire_values, app))
    app.task(partial(ask_for_texts, app))
    return app


def _add_agents(app: ContextApp) -> None:
    def handler() -> BatchHandler:
        assert app.handler is not None
        return app.handler

    stream = app.context_stream
    add_agent(app, "denormalise", stream.topics, lambda: handler().denormalise)
    add_agent(app, "rebuild", [dirty_topic(stream.context, stream.version)], lambda: handler().rebuild)


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
