"""How many embeddings an update stream costs: real changes through the flow and both embedding stages, in memory."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report import DeadLetter
from pipeline.streams.lanes import RecordBatch
from schemas.record import Record
from schemas.vectors import TextRecord, VectorRecord, encode_text

if TYPE_CHECKING:
    from pipeline.embedding.batching import EmbeddingPool
    from pipeline.embedding.engine import Engine
    from pipeline.streams.space_outlet import Sent

SEED = 20130101
CONTEXT = "aircraft"
SPACE = "measured"
TEXT_SHARE = 0.05
"""Of the changes of the update stream: the part that touches what the text is made from."""
FLIGHTS_BEFORE = 5_000
FIRST_POSITION = 1_000_000_000
"""Behind all positions of the rows before."""
BATCH_RECORDS = 500

Event = tuple[str, bytes, bytes]


async def count_embeddings(changes: int) -> dict[str, Any]:
    """`saved_share`: of a stream of changes that each make another bundle, those that cost no embedding.

    5% of the changes give a plane another model, which its text names; the others are further flights of planes, which
    its bundle shows and its text does not. Each change comes alone, so that none is saved by falling into one batch
    with another one.
    """
    world = _World()
    try:
        await world.handle(_beginning())
        bundles, embedded, touching = world.bundles, world.embedded, 0
        for event, of_text in _stream(changes):
            touching += of_text
            await world.handle([event])
        return {
            "saved_share": round(1 - (world.embedded - embedded) / changes, 4),
            "changes": changes,
            "changes_of_text": touching,
            "bundles_written": world.bundles - bundles,
            "embeddings": world.embedded - embedded,
            "embeddings_before": embedded,
        }
    finally:
        await world.close()


def _beginning() -> list[Event]:
    from deploy.demo.data import AIRLINES, FLIGHTS, PLANES
    from deploy.demo.events import table_events

    tables = ((AIRLINES, None), (PLANES, None), (FLIGHTS, FLIGHTS_BEFORE))
    return [event for table, limit in tables for event in table_events(table, limit)]


def _stream(changes: int) -> Iterator[tuple[Event, bool]]:
    """(change, whether it is one of the text)."""
    from deploy.demo.data import FLIGHTS, PLANES
    from deploy.demo.events import row_event, typed_rows

    chance = random.Random(SEED)
    planes = list(typed_rows(PLANES))
    models = sorted({plane["model"] for plane in planes})
    known = {plane["tailnum"] for plane in planes}
    later = (row for row in typed_rows(FLIGHTS) if row["flight_id"] > FLIGHTS_BEFORE and row["tailnum"] in known)
    for number in range(changes):
        place = FIRST_POSITION + number * 100
        of_text = chance.random() < TEXT_SHARE
        if of_text:
            plane = chance.choice(planes)
            plane["model"] = chance.choice([model for model in models if model != plane["model"]])
            yield row_event(PLANES, plane, place, place), True
        else:
            yield row_event(FLIGHTS, next(later), place, place), False


class _World:
    """The flow and the stages as a worker has them, on the stores in memory; records of embedding go from one stage to
    the next as they would through Kafka."""

    def __init__(self) -> None:
        from deploy.demo.harness import CONTEXTS
        from pipeline.core.clock import SystemClock
        from pipeline.embedded_text import TextMaker
        from pipeline.embedding.batching import BatchLimits, EmbeddingPool
        from pipeline.embedding.hashing import HashEngine
        from pipeline.flow import Flow
        from pipeline.plan import compile_plan
        from pipeline.stores.memory import MemoryBundles, MemoryRelations, MemoryRows
        from pipeline.stores.memory_spaces import MemoryVectorStates
        from pipeline.streams.reporting import SpaceMetrics
        from pipeline.streams.text_stage import TextStage
        from pipeline.streams.vector_stage import VectorStage
        from schemas.context_file import load_context

        spec = load_context(CONTEXTS / f"{CONTEXT}.yaml")
        embedding, template = spec.embedding, spec.embedded_template
        assert embedding is not None and template is not None
        bundles, states, clock = MemoryBundles(), MemoryVectorStates(), SystemClock()
        shown, engine = SpaceMetrics(CONTEXT, SPACE), HashEngine()
        pool = EmbeddingPool(engine, BatchLimits(wait_ms=0.0))
        engines = _AtHand(engine, pool)
        self._outlet = _Outlet()
        self._flow = Flow(compile_plan(spec), MemoryRows(), MemoryRelations(), bundles, embeds=True)
        maker = TextMaker(template, embedding.filters, {})
        self._texts = TextStage(SPACE, maker, bundles, states, self._outlet, clock, shown)
        self._vectors = VectorStage(SPACE, embedding.chunks, engines, states, self._outlet, clock, shown)
        self._pool, self._shown, self.bundles, self._asked = pool, shown, 0, 0

    @property
    def embedded(self) -> int:
        return self._shown.vectors

    async def handle(self, events: Sequence[Event]) -> None:
        """Rows, then the texts that they ask for, then the vectors that those ask for."""
        from pipeline.streams.publisher import REQUEST, key_bytes

        records = [Record(topic, 0, number, key, value) for number, (topic, key, value) in enumerate(events)]
        for first in range(0, len(records), BATCH_RECORDS):
            report = await self._flow.process(records[first : first + BATCH_RECORDS])
            assert not report.dead_letters and not report.fan_out, "the events are as the context declares them"
            self.bundles += report.bundles_written
            asked = self._asked
            wanted = [
                Record("requests", 0, asked + number, key_bytes(key), REQUEST)
                for number, key in enumerate(report.texts_wanted)
            ]
            self._asked += len(wanted)
            if wanted:
                await self._texts.handle([_batch(wanted)])
            texts = self._outlet.taken()
            if texts:
                await self._vectors.handle([_batch(texts)])

    async def close(self) -> None:
        await self._pool.close()


class _AtHand:
    """See Engines."""

    def __init__(self, engine: Engine, pool: EmbeddingPool) -> None:
        self._engine, self._pool = engine, pool

    async def get(self) -> tuple[Engine, EmbeddingPool]:
        return self._engine, self._pool

    async def prove(self) -> None:
        """It can't be another one."""


class _Outlet:
    """See TextOutlet and VectorOutlet: texts stay here until they are handed on, vectors are at their end."""

    def __init__(self) -> None:
        self._texts: list[Record] = []
        self._written = 0

    def taken(self) -> list[Record]:
        """The texts since the last call."""
        texts, self._texts = self._texts, []
        return texts

    async def send_texts(self, texts: Mapping[str, TextRecord | None], headers: Any = ()) -> Sent:
        from pipeline.streams.publisher import key_bytes

        sent = self._sent(texts)
        for key, text in texts.items():
            value = None if text is None else encode_text(text)
            self._texts.append(Record("texts", 0, sent.offsets[key], key_bytes(key), value))
        return sent

    async def send_vectors(self, vectors: Mapping[str, VectorRecord | None], headers: Any = ()) -> Sent:
        return self._sent(vectors)

    def _sent(self, keys: Iterable[str]) -> Sent:
        from pipeline.streams.space_outlet import Sent

        offsets = {key: self._written + number for number, key in enumerate(keys)}
        self._written += len(offsets)
        return Sent(offsets)

    async def ask_again(self, above: Mapping[str, int]) -> None:
        raise AssertionError(f"nobody else writes, so there is nothing to look at again: {above}")

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(f"a text was refused: {letters[0].reason}")


def _batch(records: list[Record]) -> RecordBatch:
    return RecordBatch((records[0].topic, 0), records, len(records), lambda batch: None)
