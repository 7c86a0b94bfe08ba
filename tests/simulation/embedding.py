"""One simulated embedding space: the production stages between a log of changes and the topics of texts and vectors.

Owners of a topic die, or lose it and go on all the same; records that they sent arrive late; Redis comes back older, or
empty. Afterwards both topics, Redis and an index must hold what the changes say.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pipeline.core.errors import Retryable
from pipeline.embedded_text import TextMaker
from pipeline.embedding.batching import EmbeddedText
from pipeline.embedding.hashing import HashEngine
from pipeline.report import DeadLetter
from pipeline.stores.memory import MemoryBundles
from pipeline.stores.memory_spaces import MemoryVectorStates
from pipeline.streams import outages
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.publisher import REQUEST, Request, key_bytes
from pipeline.streams.reporting import SpaceMetrics
from pipeline.streams.space_outlet import Sent
from pipeline.streams.text_stage import TextStage
from pipeline.streams.vector_echo import VectorEcho
from pipeline.streams.vector_stage import VectorStage
from schemas.bundle import ROOT_UNIT, FragmentReference, Meta, SourceState, Stored, UnitKey
from schemas.context import Chunks
from schemas.record import Record
from schemas.vectors import (
    TextRecord,
    VectorRecord,
    decode_text,
    decode_vectors,
    encode_text,
    encode_vectors,
    hash_text,
)
from tests.simulation.world import Crash, Faults, Pause

SPACE, DIMENSION = "space", 8
STEP_US = 5_000
STEPS_MAX = 300_000
CHANGES, REQUESTS, TEXTS, VECTORS = "changes", "requests", "texts", "vectors"
TITLES, BOOKS, AUTHORS = ("maps", "songs", "ghosts"), ("1", "2", "3", "4"), ("a", "b")


@dataclass
class Redis:
    """All that is lost together."""

    bundles: MemoryBundles = field(default_factory=MemoryBundles)
    states: MemoryVectorStates = field(default_factory=MemoryVectorStates)
    rows: dict[str, tuple[int, Any]] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)


class EmbeddingSimulation:
    """One partition of each topic."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        outages.JITTER.seed(seed)
        self.redis, self.remembered, self.faults = Redis(), Redis(), Faults(self.random)
        self.topics: dict[str, list[Record]] = {name: [] for name in (CHANGES, REQUESTS, TEXTS, VECTORS)}
        self.now = 1_700_000_000_000_000
        self.running: list[tuple[tuple[str, object], Coroutine[Any, Any, Any]]] = []
        self.owners: dict[str, object] = {}
        self.positions: dict[str, int] = {}
        engine, shown = HashEngine(DIMENSION), SpaceMetrics("context", SPACE)
        maker = TextMaker("{{ title }} by {{ author.name }}", ["year"], {"author": b"null"}, ("author",))
        texts = TextStage(SPACE, maker, self, self, self, self, shown)  # type: ignore[arg-type]
        vectors = VectorStage(SPACE, Chunks(), _Engines(engine, self), self, self, self, shown)  # type: ignore[arg-type]
        echo = VectorEcho(SPACE, DIMENSION, self, self, self, shown)  # type: ignore[arg-type]
        self.handles = {CHANGES: self._build, REQUESTS: texts.handle, TEXTS: vectors.handle, VECTORS: echo.handle}

    def run(self) -> list[str]:
        """Empty when everything agrees; otherwise what differs."""
        for _ in range(self.random.randint(10, 60)):
            self._change()
            self._drive(self.random.choice([0, 3, 30, 200]))
            self._disturb()
        self.faults.stop()
        for _ in range(STEPS_MAX):
            self._start_all()
            if not self.running:
                return self._differences()
            self._step()
        return ["the simulation did not come to rest"]

    # ---- what the stages see: the clock, the stores, Kafka

    def now_us(self) -> int:
        return self.now

    def monotonic_s(self) -> float:
        return self.now / 1e6

    async def sleep(self, duration_s: float) -> None:
        until = self.now + duration_s * 1e6
        while self.now < until:
            await Pause()

    async def fetch(self, keys: Sequence[str]) -> Any:
        await self._point()
        found = copy.deepcopy(await self.redis.bundles.fetch(keys))
        await self._point()
        return found

    def __getattr__(self, name: str) -> Any:
        """The store of vector states, as it is at the call."""
        if name not in ("read_states", "write_texts", "write_vectors", "write_problems"):
            raise AttributeError(name)

        async def call(*arguments: Any) -> Any:
            await self._point()
            found = await getattr(self.redis.states, name)(*arguments)
            await self._point()
            return found

        return call

    async def send_texts(self, texts: Mapping[str, TextRecord | None], headers: Any = ()) -> Sent:
        values = {key: None if text is None else encode_text(text) for key, text in texts.items()}
        return await self._send(TEXTS, values)

    async def send_vectors(self, vectors: Mapping[str, VectorRecord | None], headers: Any = ()) -> Sent:
        values = {key: None if made is None else encode_vectors(made) for key, made in vectors.items()}
        return await self._send(VECTORS, values)

    async def ask_again(self, above: Mapping[str, int]) -> None:
        import msgspec

        values = {key: msgspec.json.encode(Request(True, counter)) for key, counter in above.items()}
        await self._send(REQUESTS, values)

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(letters)

    async def _point(self) -> None:
        await Pause()
        self.faults.strike()

    async def _send(self, topic: str, values: Mapping[str, bytes | None]) -> Sent:
        """What has been sent arrives, sooner or later, whatever becomes of its sender."""
        await self._point()
        sent = Sent()
        self.running.append((("", object()), self._deliver(topic, values, sent)))
        while len(sent.offsets) < len(values):
            await self._point()
        return sent

    async def _deliver(self, topic: str, values: Mapping[str, bytes | None], sent: Sent) -> None:
        for key, value in values.items():
            while self.random.random() < 0.3:
                await Pause()
            sent.offsets[key] = self._append(topic, key, value)

    def _append(self, topic: str, key: str, value: bytes | None) -> int:
        log = self.topics[topic]
        log.append(Record(topic, 0, len(log), key_bytes(key), value, self.now // 1000))
        return len(log) - 1

    # ---- the flow, much simplified

    async def _build(self, batches: Sequence[RecordBatch]) -> None:
        """Rows become bundles; a request is durable before the batch counts."""
        keys: dict[str, None] = {}
        for record in (record for batch in batches for record in batch.records):
            key = (record.key or b"").decode()
            row = json.loads(record.value or b"null")
            if self.redis.rows.get(key, (-1, None))[0] <= record.offset:
                self.redis.rows[key] = (record.offset, row)
            linked = [k for k, (_, one) in self.redis.rows.items() if k in BOOKS and one and one["author"] == key]
            keys |= dict.fromkeys(linked if key in AUTHORS else [key])
            await self._put(key)
        while True:
            try:
                await self._send(REQUESTS, dict.fromkeys(keys, REQUEST))
                return
            except Retryable:
                await Pause()

    async def _put(self, key: str) -> None:
        unit = UnitKey("author" if key in AUTHORS else ROOT_UNIT, key)
        bundles = self.redis.bundles
        counter = bundles.counters[unit] = max(bundles.counters.get(unit, 0) + 1, self.now)
        await Pause()
        row = self.redis.rows.get(key, (0, None))[1]
        if row is None:
            stored = Stored(counter, None, b"")
        else:
            references = [FragmentReference(len(row["body"]) - 1, "author", row["author"])] if "author" in row else []
            body = row["body"].encode()
            meta = Meta(hash_text(row["body"] + str(row.get("author"))), 1, {"s": SourceState("1", 1)}, references)
            stored = Stored(counter, meta, body)
        await Pause()
        await self.redis.bundles.put([(unit, stored)])

    def _change(self) -> None:
        random = self.random
        if random.random() < 0.15:
            body = json.dumps({"name": random.choice(["Woolf", "Stein"])})
            self._append(CHANGES, random.choice(AUTHORS), json.dumps({"body": body}).encode())
            return
        key = random.choice(BOOKS)
        if random.random() < 0.3:
            self._append(CHANGES, key, b"null")
            return
        head = json.dumps({"title": random.choice(TITLES), "year": random.choice([1, 2])})
        row = {"body": f'{head[:-1]}, "author": }}', "author": random.choice(AUTHORS)}
        self._append(CHANGES, key, json.dumps(row).encode())

    # ---- who runs, who dies

    def _drive(self, steps: int) -> None:
        for _ in range(steps):
            self._start_all()
            if self.running:
                self._step()

    def _start_all(self) -> None:
        for topic, log in self.topics.items():
            start = self.positions.setdefault(topic, self.redis.marks.get(topic, 0))
            if topic not in self.owners and start < len(log):
                records = log[start : start + self.random.choice([1, 2, 8])]
                self.owners[topic] = owner = object()
                self.running.append(((topic, owner), self._consume(topic, owner, records)))

    async def _consume(self, topic: str, owner: object, records: list[Record]) -> None:
        redis, end = self.redis, records[-1].offset + 1
        await self.handles[topic]([RecordBatch((topic, 0), records, end, lambda batch: None)])
        await Pause()
        if redis is self.redis and self.owners.get(topic) is owner:
            self.positions[topic] = end
            if self.random.random() < 0.5:
                redis.marks[topic] = end

    def _step(self) -> None:
        self.now += STEP_US
        number = self.random.randrange(len(self.running))
        (topic, owner), coroutine = self.running[number]
        try:
            coroutine.send(None)
            return
        except StopIteration:
            if self.owners.get(topic) is owner:
                del self.owners[topic]
        except Crash:
            if self.owners.get(topic) is owner:
                self._lose(topic)
        self.running = [pair for pair in self.running if pair[1] is not coroutine]

    def _lose(self, topic: str) -> None:
        self.owners.pop(topic, None)
        self.positions.pop(topic, None)

    def _disturb(self) -> None:
        roll = self.random.random()
        if roll < 0.25:
            # Another worker starts at the mark while the old one is still at work.
            self._lose(self.random.choice([REQUESTS, TEXTS, VECTORS]))
        elif roll < 0.33:
            self.remembered = copy.deepcopy(self.redis)
        elif roll < 0.38:
            # Redis comes back as it was a moment ago, or empty; everybody goes back to its marks.
            self.redis, self.remembered = self.remembered, Redis()
            for topic in self.topics:
                self._lose(topic)

    # ---- afterwards

    def _differences(self) -> list[str]:
        rows = {(record.key or b"").decode(): json.loads(record.value or b"null") for record in self.topics[CHANGES]}
        texts = {key: self._text(rows, key) for key in BOOKS}
        states = self.redis.states.spaces.get(SPACE, {})
        found = []
        for key, text in texts.items():
            state = states.get(key)
            places = {
                "text topic": self._last_text(key),
                "vector topic": self._last_vector(key),
                "text in Redis": state.text_hash if state else "",
                "vector in Redis": state.vector_hash if state else "",
            }
            wanted = hash_text(text) if text else ""
            found += [f"{key}: {place} {seen} instead of {wanted}" for place, seen in places.items() if seen != wanted]
        return found

    def _text(self, rows: Mapping[str, Any], key: str) -> str:
        row = rows.get(key)
        if row is None:
            return ""
        author = rows.get(row["author"])
        name = json.loads(author["body"])["name"] if author else ""
        return f"{json.loads(row['body'].replace(': }', ': null}'))['title']} by {name}".strip()

    def _last_text(self, key: str) -> str:
        values = [record.value for record in self.topics[TEXTS] if record.key == key_bytes(key)]
        return decode_text(values[-1], SPACE).text_hash if values and values[-1] else ""

    def _last_vector(self, key: str) -> str:
        values = [record.value for record in self.topics[VECTORS] if record.key == key_bytes(key)]
        return decode_vectors(values[-1], SPACE, DIMENSION).text_hash if values and values[-1] else ""


class _Engines:
    """See pipeline.streams.vector_stage.Engines."""

    cost = None

    def __init__(self, engine: HashEngine, simulation: EmbeddingSimulation) -> None:
        self._engine, self._simulation = engine, simulation

    async def get(self) -> Any:
        return self._engine, self

    async def prove(self) -> None:
        raise AssertionError("the engine is as it was")

    async def embed(self, texts: Sequence[str]) -> list[EmbeddedText]:
        await self._simulation._point()
        made = self._engine.embed(texts)
        await self._simulation._point()
        return [EmbeddedText(made.vectors[number], 1, 0) for number in range(len(texts))]
