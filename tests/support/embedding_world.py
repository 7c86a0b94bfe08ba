"""The two stages of an embedding space over stores, topics and an engine in memory; for fault scripts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.core.errors import Poison, Retryable
from pipeline.embedded_text import TextMaker
from pipeline.embedding.batching import BatchLimits, EmbeddingPool
from pipeline.embedding.engine import Embedded, Engine
from pipeline.embedding.hashing import HashEngine
from pipeline.report import DeadLetter
from pipeline.stores.memory import MemoryBundles
from pipeline.stores.memory_spaces import MemoryVectorStates
from pipeline.stores.spaces import VectorState
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.publisher import LOOK_AGAIN, REQUEST, key_bytes
from pipeline.streams.reporting import SpaceMetrics
from pipeline.streams.space_outlet import Sent
from pipeline.streams.text_stage import TextStage
from pipeline.streams.vector_stage import VectorStage
from schemas.bundle import ROOT_UNIT, FragmentReference, Meta, SourceState, Stored, UnitKey
from schemas.context import Chunks
from schemas.record import Record
from schemas.vectors import TextRecord, VectorRecord, encode_text

SPACE = "space"
DIMENSION = 16
TEMPLATE = "{{ title }}{% if author %} by {{ author.name }}{% endif %}"
EMPTY = {"author": b"null"}
NOW_US = 1_700_000_000_000_000


class QuickClock:
    """Sleeps at once. What happens while it sleeps is `on_sleep`."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.elapsed_s = 0.0
        self.on_sleep: Callable[[], None] = lambda: None

    def now_us(self) -> int:
        return NOW_US + round(self.monotonic_s() * 1_000_000)

    def monotonic_s(self) -> float:
        return self.elapsed_s

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.elapsed_s += duration_s
        self.on_sleep()
        await asyncio.sleep(0)


class ScriptedEngine(HashEngine):
    """Raises what `script` gives for a call's texts; `embedded` holds the texts that got a vector."""

    def __init__(self) -> None:
        super().__init__(DIMENSION)
        self.embedded: list[str] = []
        self.calls: list[list[str]] = []
        self.script: Callable[[Sequence[str]], Exception | None] = lambda texts: None
        self.go_on: threading.Event | None = None
        self.closed = False

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        if self.go_on is not None:
            self.go_on.wait(10)
        self.calls.append(list(texts))
        error = self.script(texts)
        if error is not None:
            raise error
        self.embedded += texts
        return super().embed(texts, query=query)

    def close(self) -> None:
        self.closed = True


class Engines:
    """See pipeline.streams.vector_stage.Engines. `away` and `broken` are raised by `get` and `prove`."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine, self.pool = engine, EmbeddingPool(engine, BatchLimits(wait_ms=0))
        self.away: list[Retryable] = []
        self.broken: list[Retryable] = []
        self.proven = 0

    async def get(self) -> tuple[Engine, EmbeddingPool]:
        if self.away:
            raise self.away.pop(0)
        return self.engine, self.pool

    async def prove(self) -> None:
        self.proven += 1
        if self.broken:
            raise self.broken.pop(0)


class KeptOutlet:
    """Keeps what was sent, in order. `faults`: what the next calls raise; `too_large`: keys that Kafka never takes."""

    def __init__(self, clock: QuickClock) -> None:
        self._clock = clock
        self.texts: list[tuple[str, TextRecord | None]] = []
        self.vectors: list[tuple[str, VectorRecord | None]] = []
        self.asked: list[str] = []
        self.letters: list[DeadLetter] = []
        self.faults: list[Exception | None] = []
        self.too_large: set[str] = set()
        self.takes_s = 0.0

    async def send_texts(self, texts: Mapping[str, TextRecord | None], headers: Any = ()) -> Sent:
        return self._send(self.texts, texts)

    async def send_vectors(self, vectors: Mapping[str, VectorRecord | None], headers: Any = ()) -> Sent:
        return self._send(self.vectors, vectors)

    async def ask_again(self, above: Mapping[str, int]) -> None:
        self.asked += above

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        self.letters += letters

    def _send(self, topic: list[Any], records: Mapping[str, Any]) -> Sent:
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        self._clock.elapsed_s += self.takes_s
        refused = {key for key, record in records.items() if record is not None and key in self.too_large}
        sent = Sent({}, {key: Poison("the record is 99 bytes long, which the topic does not take") for key in refused})
        for key in [key for key in records if key not in refused]:
            sent.offsets[key] = len(topic)
            topic.append((key, records[key]))
        return sent


class EmbeddingWorld:
    """`put`, `request`, `embed`: as the flow, the request topic and the text topic do."""

    def __init__(
        self, template: str = TEMPLATE, filters: Sequence[str] = (), rule: Chunks | None = None, **more: Any
    ) -> None:
        self.clock, self.engine = QuickClock(), ScriptedEngine()
        self.bundles, self.states, self.outlet = MemoryBundles(), MemoryVectorStates(), KeptOutlet(self.clock)
        self.engines = Engines(self.engine)
        self.shown = SpaceMetrics("context", SPACE)
        maker = TextMaker(template, filters, EMPTY, ("author",))
        self.text_stage = TextStage(
            SPACE, maker, self.bundles, self.states, self.outlet, self.clock, self.shown, **more
        )
        self.vector_stage = VectorStage(
            SPACE, rule or Chunks(), self.engines, self.states, self.outlet, self.clock, self.shown
        )
        self._handled = self._requested = 0

    async def put(self, key: str, values: dict[str, Any] | bytes, author: str | None = None) -> None:
        """A new build of a bundle; with an author's key, linked."""
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        references = []
        if author is not None:
            body = body[:-1] + b',"author":}'
            references = [FragmentReference(len(body) - 1, "author", author)]
        await self._store(UnitKey(ROOT_UNIT, key), body, references)

    async def put_author(self, key: str, name: str) -> None:
        await self._store(UnitKey("author", key), json.dumps({"name": name}).encode(), [])

    async def delete(self, key: str) -> None:
        (counter,) = await self.bundles.mark_dirty([UnitKey(ROOT_UNIT, key)])
        await self.bundles.put([(UnitKey(ROOT_UNIT, key), Stored(counter, None, b""))])

    async def _store(self, key: UnitKey, body: bytes, references: list[FragmentReference]) -> None:
        (counter,) = await self.bundles.mark_dirty([key])
        digest = hashlib.blake2b(body, digest_size=16).hexdigest()
        meta = Meta(digest, 1, {"shop": SourceState(str(counter), 1000 + counter)}, references)
        await self.bundles.put([(key, Stored(counter, meta, body))])

    async def request(self, *keys: str, again: bool = False) -> RecordBatch:
        """One batch of requests."""
        value = LOOK_AGAIN if again else REQUEST
        return await self.handle_requests(*[(key, value) for key in keys])

    async def handle_requests(self, *requests: tuple[str, bytes]) -> RecordBatch:
        first = self._requested
        self._requested += len(requests)
        found = [Record("wanted", 0, first + at, key_bytes(key), value) for at, (key, value) in enumerate(requests)]
        batch = RecordBatch(("wanted", 0), found, self._requested, lambda batch: None)
        await self.text_stage.handle([batch])
        return batch

    async def embed(self) -> RecordBatch:
        """What came into the text topic since the last call, as one batch."""
        first = self._handled
        new, self._handled = self.outlet.texts[first:], len(self.outlet.texts)
        return await self.handle_texts(*new, first=first)

    async def handle_texts(self, *texts: tuple[str, TextRecord | None], first: int = 0) -> RecordBatch:
        now_ms = self.clock.now_us() // 1000
        values = [(key_bytes(key), None if text is None else encode_text(text)) for key, text in texts]
        found = [Record("texts", 0, first + at, key, value, now_ms) for at, (key, value) in enumerate(values)]
        batch = RecordBatch(("texts", 0), found, len(found), lambda batch: None)
        await self.vector_stage.handle([batch])
        return batch

    async def state(self, key: str = "1") -> VectorState:
        state = (await self.states.read_states(SPACE, [key]))[0]
        assert state is not None, f"nothing is known of {key}"
        return state

    async def current(self, key: str = "1") -> bool:
        state = await self.state(key)
        return bool(state.text_hash) and state.text_hash == state.vector_hash and not state.problem

    def texts(self) -> list[str | None]:
        """All that were sent, in order; None for a deletion."""
        return [None if record is None else record.text for _, record in self.outlet.texts]

    def vectors(self) -> list[str | None]:
        """Text hashes of the vectors that were sent, in order; None for a deletion."""
        return [None if record is None else record.text_hash for _, record in self.outlet.vectors]
