"""Texts become vectors: the newest text of each bundle, cut into pieces, embedded outside the event loop, sent on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mode import get_logger
from msgspec.structs import replace

from pipeline.core.clock import Clock
from pipeline.core.errors import Fatal, Poison, Retryable
from pipeline.embedding.batching import EmbeddedText, EmbeddingPool
from pipeline.embedding.chunks import cut_text
from pipeline.embedding.engine import Engine
from pipeline.report import DeadLetter, digest_of
from pipeline.stores.spaces import CUT, REFUSED, VectorState, VectorStateStore
from pipeline.stores.store import ShardChanged
from pipeline.streams.backoff import Backoff
from pipeline.streams.journey import Embedding, SpaceJourneys
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.outages import JITTER, persistently
from pipeline.streams.publisher import NO_HEADERS
from pipeline.streams.reporting import SpaceMetrics
from pipeline.streams.space_outlet import Sent
from pipeline.streams.text_stage import by_key
from schemas.context import Chunks
from schemas.errors import DecodeError
from schemas.headers import Headers
from schemas.record import Record
from schemas.vectors import Chunk, TextRecord, VectorRecord, decode_text

logger = get_logger(__name__)

TEXTS_AT_ONCE = 32
"""Are embedded, durable and noted before the next: what has been paid for is not lost by what fails after it."""
INLINE_CHARACTERS_MAX = 2_000
NOTED_WITHIN_S = 5.0
"""Redis learns of a text after Kafka, in this time at most: what is told of it before would be lost."""


class Engines(Protocol):
    """See pipeline.streams.space_engine."""

    async def get(self) -> tuple[Engine, EmbeddingPool]: ...

    async def prove(self) -> None: ...


class VectorOutlet(Protocol):
    """See pipeline.streams.space_outlet. Returns when Kafka has everything."""

    async def send_vectors(
        self, vectors: Mapping[str, VectorRecord | None], headers: Mapping[str, Headers] = NO_HEADERS
    ) -> Sent: ...

    async def ask_again(self, above: Mapping[str, int]) -> None: ...

    async def bury(self, letters: Sequence[DeadLetter]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Pieces:
    """A text, cut: `texts` are what the engine gets."""

    key: str
    record: TextRecord
    chunks: list[Chunk]
    texts: list[str]
    tokens_left: int


class VectorStage:
    """Handles batches of the text topic.

    An engine that is away, throttled or broken is waited for inside the batch, and every bundle that lacks its vector
    says so meanwhile; a text that it will never take is set aside.
    """

    def __init__(
        self,
        space: str,
        rule: Chunks,
        engines: Engines,
        states: VectorStateStore,
        outlet: VectorOutlet,
        clock: Clock,
        shown: SpaceMetrics,
        journeys: SpaceJourneys | None = None,
    ) -> None:
        self._space, self._rule, self._engines = space, rule, engines
        self._journeys = journeys or SpaceJourneys("", space, clock)
        self._states, self._outlet, self._clock, self._shown = states, outlet, clock, shown

    async def handle(self, batches: Sequence[RecordBatch]) -> None:
        """See pipeline.streams.agents.Handle."""
        newest = {key: records[-1] for key, records in by_key(batches).items()}
        keys = list(newest)
        for first in range(0, len(keys), TEXTS_AT_ONCE):
            part = {key: newest[key] for key in keys[first : first + TEXTS_AT_ONCE]}
            await self._part(batches, part)

    async def _part(self, batches: Sequence[RecordBatch], records: Mapping[str, Record]) -> None:
        told: set[str] = set()
        wanted: dict[str, TextRecord] = {}

        async def work() -> None:
            try:
                await self._embed(records, wanted)
            except ShardChanged:
                raise
            except Retryable as error:
                if str(error) not in told:
                    told.add(str(error))
                    await self._say(wanted, str(error))
                raise

        await persistently(batches, work, self._clock, self._shown.retried)

    async def _embed(self, records: Mapping[str, Record], wanted: dict[str, TextRecord]) -> None:
        """`wanted` becomes what is to be embedded."""
        wanted.clear()
        gone: list[str] = []
        texts: dict[str, TextRecord] = {}
        for key, record in records.items():
            if record.value is None:
                gone.append(key)
                continue
            try:
                texts[key] = decode_text(record.value, self._space)
            except DecodeError as error:
                await self._outlet.bury([DeadLetter(record, str(error), digest_of(error), [key])])
        await self._forget(gone)
        states = await self._noted(records)
        for key, text in texts.items():
            state = states[key]
            if state is not None and _to_embed(text, records[key], state):
                # An old record of a text that is wanted again: between them, there may have been a vector of another.
                wanted[key] = replace(text, counter=max(text.counter, state.counter))
        self._shown.spared(len(texts) - len(wanted))
        if wanted:
            with self._journeys.embedding({key: records[key] for key in wanted}) as embedding:
                await self._make(wanted, records, embedding)
        strange = [key for key, record in records.items() if not _noted(record, states[key])]
        if strange:
            await self._outlet.ask_again({key: texts[key].counter if key in texts else 0 for key in strange})

    async def _noted(self, records: Mapping[str, Record]) -> Mapping[str, VectorState | None]:
        """What Redis knows of the bundles, once it knows of all records that are so young that it may still learn of
        them. Of the others nobody will tell it: whoever sent them came late or was killed, or Redis lost its last
        writes. Which text the bundle has is looked at again then."""
        began_s, keys = self._clock.monotonic_s(), list(records)
        pauses = Backoff(0.001, 0.1, JITTER)
        while True:
            states = dict(zip(keys, await self._states.read_states(self._space, keys), strict=True))
            oldest_ms = self._clock.now_us() // 1000 - round(NOTED_WITHIN_S * 1000)
            waits = self._clock.monotonic_s() - began_s < NOTED_WITHIN_S
            young = (key for key, record in records.items() if record.timestamp_ms > oldest_ms)
            if not waits or all(_noted(records[key], states[key]) for key in young):
                return states
            await self._clock.sleep(pauses.next_s())

    async def _forget(self, keys: Sequence[str]) -> None:
        if keys:
            sent = await self._outlet.send_vectors(dict.fromkeys(keys))
            await self._states.write_vectors(self._space, dict.fromkeys(keys, ("", "")), sent.offsets)

    async def _make(
        self, wanted: Mapping[str, TextRecord], records: Mapping[str, Record], embedding: Embedding
    ) -> None:
        began_s = self._clock.monotonic_s()
        engine, pool = await self._engines.get()
        if sum(len(text.text) for text in wanted.values()) <= INLINE_CHARACTERS_MAX:
            cut = [self._cut(engine, key, text) for key, text in wanted.items()]
        else:
            cut = await asyncio.to_thread(lambda: [self._cut(engine, key, text) for key, text in wanted.items()])
        answers = await self._answers(pool, [text for pieces in cut for text in pieces.texts])
        vectors: dict[str, VectorRecord | None] = {}
        problems: dict[str, Poison] = {}
        at = 0
        for pieces in cut:
            made = self._record(pieces, answers[at : at + len(pieces.texts)])
            at += len(pieces.texts)
            if isinstance(made, Poison):
                problems[pieces.key] = made
            else:
                vectors[pieces.key] = made
        sent = await self._outlet.send_vectors(vectors, embedding.headers())
        problems |= sent.refused
        embedding.sent(key for key in vectors if key not in problems)
        noted = {key: made for key, made in vectors.items() if made is not None and key not in problems}
        told = {key: (made.text_hash, _shortened(made, wanted[key])) for key, made in noted.items()}
        await self._states.write_vectors(self._space, told, sent.offsets)
        await self._refuse(problems, wanted, records)
        self._shown.embedded(
            len(vectors), len(answers), sum(bool(one and one.tokens_cut) for one in vectors.values()),
            self._clock.monotonic_s() - began_s, pool.cost,
        )  # fmt: skip

    async def _answers(self, pool: EmbeddingPool, texts: Sequence[str]) -> list[EmbeddedText | Poison]:
        """An engine that answers what can't be is proven anew; where it is the one of the space all the same, one of
        the texts is to blame."""
        try:
            return await pool.embed(texts)
        except Fatal:
            await self._engines.prove()
        return [await self._alone(pool, text) for text in texts]

    async def _alone(self, pool: EmbeddingPool, text: str) -> EmbeddedText | Poison:
        try:
            return (await pool.embed([text]))[0]
        except Fatal as error:
            await self._engines.prove()
            return Poison(str(error))

    def _cut(self, engine: Engine, key: str, record: TextRecord) -> _Pieces:
        """Blocks for as long as the tokenizer takes."""
        text = record.text
        cut = cut_text(text, engine.token_ends(text), self._rule, engine.tokens_max)
        # A piece of blanks alone has nothing to say; a text never is.
        chunks = [chunk for chunk in cut.chunks if text[chunk.start : chunk.end].strip()]
        return _Pieces(key, record, chunks, [text[chunk.start : chunk.end] for chunk in chunks], cut.tokens_left)

    def _record(self, pieces: _Pieces, answers: Sequence[EmbeddedText | Poison]) -> VectorRecord | Poison:
        import numpy

        found: list[EmbeddedText] = []
        for answer in answers:
            if isinstance(answer, Poison):
                return answer
            found.append(answer)
        text = pieces.record
        matrix = numpy.stack([one.vector for one in found]).astype("<f4", copy=False)
        return VectorRecord(
            space=self._space,
            counter=text.counter,
            bundle_hash=text.bundle_hash,
            text_hash=text.text_hash,
            dimension=matrix.shape[1],
            chunks=pieces.chunks,
            vectors=matrix.tobytes(),
            tokens_cut=pieces.tokens_left + sum(one.tokens_cut for one in found),
            filters=text.filters,
            commit_time_us=text.commit_time_us,
        )

    async def _refuse(
        self, problems: Mapping[str, Poison], wanted: Mapping[str, TextRecord], records: Mapping[str, Record]
    ) -> None:
        """No vector, and an older one must not stand for this text."""
        if not problems:
            return
        for key, error in list(problems.items())[:3]:
            logger.warning("no vector of %s: %s", key, error)
        await self._outlet.bury(
            [DeadLetter(records[key], str(error), digest_of(error), [key]) for key, error in problems.items()]
        )
        await self._forget(list(problems))
        told = {key: (wanted[key].text_hash, f"{REFUSED}{error}") for key, error in problems.items()}
        await self._states.write_problems(self._space, told)
        self._shown.refused(len(problems))

    async def _say(self, wanted: Mapping[str, TextRecord], problem: str) -> None:
        """Best effort: what is away may be Redis itself."""
        try:
            told = {key: (text.text_hash, problem) for key, text in wanted.items()}
            await self._states.write_problems(self._space, told)
        except Retryable:
            logger.debug("Redis is away as well")


def _shortened(made: VectorRecord, text: TextRecord) -> str:
    return CUT if made.tokens_cut or text.characters_cut else ""


def _to_embed(text: TextRecord, record: Record, state: VectorState) -> bool:
    """Not what a newer text in the topic makes needless, nor what has its vector in Kafka, nor what nobody knows: its
    bundle may be gone."""
    return _noted(record, state) and state.text_hash == text.text_hash != state.vector_hash


def _noted(record: Record, state: VectorState | None) -> bool:
    return state is not None and state.text_at >= record.offset
