"""The Faust application of one embedding space: requests become texts, texts become vectors, both in Kafka, and what
lies in Kafka is compared with what Redis says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from mode import get_logger

from pipeline.core.errors import CtxpipeError, Retryable
from pipeline.stores.store import MarkStore
from pipeline.streams.agents import Handle
from pipeline.streams.lanes import LaneLimits
from pipeline.streams.offsets import MarkKeeper
from pipeline.streams.progress import watch_progress
from pipeline.streams.publisher import Lanes, Publisher
from pipeline.streams.reporting import SpaceMetrics
from pipeline.streams.space_expiry import ask_for_expired
from pipeline.streams.space_outlet import RECORD_BYTES_MAX, SpaceOutlet
from pipeline.streams.space_progress import note_serving, tell_progress
from pipeline.streams.worker_app import COMPACTED, StreamSettings, WorkerApp, add_agent, options
from schemas.topics import dead_letter_topic, request_topic, space_group, text_topic, vector_topic

logger = get_logger(__name__)

LIMITS = LaneLimits(batch_records_max=250, lane_records_max=1000, lane_bytes_max=16 << 20)
RECORD_OVERHEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenSpace:
    """A space with its stores and its engine at hand. `forget` drops what Redis knows of its vectors and how far its
    topics were read: they are made anew."""

    texts: Handle
    vectors: Handle
    echo: Handle
    marks: MarkStore
    forget: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    expired: Callable[[], AsyncIterator[list[str]]] | None = None
    """Keys of texts whose bundle has lived its time; None where bundles live for ever."""
    time_to_live_s: float = 0
    note_serving: Callable[[], Awaitable[None]] | None = None
    """Asks whether searches use the space, so that its vectors are waited for."""


@dataclass(frozen=True, slots=True)
class SpaceStream:
    """What build_space_app needs to know of a space. `open` raises Retryable while a store is away."""

    context: str
    version: int
    space: str
    open: Callable[[SpaceOutlet, SpaceMetrics], Awaitable[OpenSpace]]

    @property
    def request_topic(self) -> str:
        return request_topic(self.context, self.version)

    @property
    def text_topic(self) -> str:
        return text_topic(self.context, self.version, self.space)

    @property
    def vector_topic(self) -> str:
        return vector_topic(self.context, self.version, self.space)

    @property
    def group(self) -> str:
        return space_group(self.context, self.version, self.space)


class SpaceApp(WorkerApp):
    """Build it with build_space_app."""

    space_stream: SpaceStream
    shown: SpaceMetrics
    opened: OpenSpace | None = None

    def prepare(self, stream: SpaceStream, settings: StreamSettings) -> None:
        """Called once by build_space_app."""
        self.space_stream = stream
        self.shown = SpaceMetrics(stream.context, stream.space)
        self.prepare_worker(stream.group, settings)

    async def on_first_start(self) -> None:
        """Before Faust reads anything: the engine and the stores, then the topics."""
        try:
            await self.until_it_works(self._start_publisher)
            if self.publisher is not None:
                outlet = SpaceOutlet(self.publisher, self.space_stream.text_topic, self.space_stream.vector_topic)
                self.opened = await self.until_it_works(partial(self.space_stream.open, outlet, self.shown))
            if self.opened is not None:
                await self.until_it_works(self._make_topics)
        except CtxpipeError as error:
            self.end_process(error)
        if self.opened is not None:
            self.offset_keeper = MarkKeeper(self.opened.marks, self.kafka_topics)

    async def _start_publisher(self) -> None:
        lanes = Lanes(dead_letter_topic(self.space_stream.context), "", 0, self.space_stream.request_topic)
        size = RECORD_BYTES_MAX + RECORD_OVERHEAD_BYTES
        settings = self.stream_settings
        publisher = Publisher(settings.bootstrap_servers, lanes, max_request_size=size, **settings.security)
        await publisher.start()
        self.publisher = publisher

    async def _make_topics(self) -> None:
        """Partitions as many as the requests have, so that a bundle's records keep to one worker."""
        assert self.opened is not None
        topics = self.kafka_topics
        existing = await topics.existing()
        if self.space_stream.request_topic not in existing:
            raise Retryable(f"Kafka has no topic {self.space_stream.request_topic} yet: `ctxpipe worker` makes it")
        if self.space_stream.vector_topic not in existing or self.space_stream.text_topic not in existing:
            # First: whoever finds the topics begins to write.
            await self.opened.forget()
        partitions = len(await topics.partitions([self.space_stream.request_topic]))
        config = {**COMPACTED, "max.message.bytes": str(RECORD_BYTES_MAX)}
        for topic in (self.space_stream.text_topic, self.space_stream.vector_topic):
            await topics.create(topic, partitions, self.stream_settings.replication_factor, config)


def build_space_app(stream: SpaceStream, settings: StreamSettings) -> SpaceApp:
    """The app of one space; nothing connects before it is started."""
    app = SpaceApp(stream.group, **options(settings))
    app.prepare(stream, settings)

    def opened() -> OpenSpace:
        assert app.opened is not None
        return app.opened

    add_agent(app, "texts", [stream.request_topic], lambda: opened().texts)
    add_agent(app, "vectors", [stream.text_topic], lambda: opened().vectors)
    add_agent(app, "echo", [stream.vector_topic], lambda: opened().echo)
    app.task(partial(watch_progress, app))
    app.task(partial(tell_progress, app))
    app.task(partial(note_serving, app))
    app.task(partial(ask_for_expired, app))
    return app
