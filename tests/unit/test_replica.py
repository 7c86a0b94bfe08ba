"""A replica over a scripted reader: where it starts, what it refuses, which values count, when it is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core import metrics
from pipeline.core.clock import SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.stores.lexical import LexicalIndex
from pipeline.stores.spaces import Condition, Placed
from pipeline.stores.store import Partition
from pipeline.streams.offsets import Extent
from pipeline.streams.replica import OpenIndexes, Replica, ReplicatedSpace
from pipeline.streams.replica_reader import PositionGone, Progress, reason_to_start_anew, starts
from schemas.vectors import VectorRecord, encode_text, encode_vectors
from tests.support.eventually import eventually
from tests.support.exact_vectors import ExactVectors
from tests.support.space_records import DIMENSION, text_record, vector_record

SPACE = ReplicatedSpace("flight", 3, "abc", DIMENSION)
VECTORS, TEXTS = SPACE.vector_topic, SPACE.text_topic


class ScriptedReader:
    """Gives what is put in, or raises it."""

    def __init__(self) -> None:
        self.script: asyncio.Queue[Any] = asyncio.Queue()
        self.extents = {(VECTORS, 0): Extent(0, 10), (TEXTS, 0): Extent(0, 10)}
        self.behind = {VECTORS: 0, TEXTS: 0}
        self.loaded = {VECTORS: True, TEXTS: True}
        self.starts: list[dict[Partition, int]] = []
        self.open_errors: list[Exception] = []
        self.offset = 0

    def put(self, topic: str, key: str, value: bytes | None) -> None:
        record = SimpleNamespace(
            topic=topic, partition=0, offset=self.offset, key=key.encode(), value=value, headers=()
        )
        self.offset += 1
        self.script.put_nowait([(topic, 0, [record])])

    async def open(self) -> dict[Partition, Extent]:
        if self.open_errors:
            raise self.open_errors.pop(0)
        return self.extents

    async def first_since(self, time_ms: int) -> dict[Partition, int]:
        return dict.fromkeys(self.extents, 0)

    async def seek(self, starts: Mapping[Partition, int]) -> None:
        self.starts.append(dict(starts))

    async def read(self) -> list[tuple[str, int, list[Any]]]:
        found = await self.script.get()
        if isinstance(found, Exception):
            raise found
        return list(found)

    async def progress(self, topic: str) -> Progress:
        return Progress(self.behind[topic], self.loaded[topic], 1_000_000 if topic == VECTORS else 2_000_000)

    async def stop(self) -> None:
        pass


class Bench:
    """A running replica with what it reads and where it writes."""

    def __init__(self) -> None:
        self.reader = ScriptedReader()
        self.opened: list[bool] = []
        self.first = ExactVectors(DIMENSION, ["year"])
        self.replica = Replica(
            SPACE, self.reader, OpenIndexes(self._open, lambda: LexicalIndex(["year"])), SystemClock()
        )

    def _open(self, anew: bool) -> ExactVectors:
        self.opened.append(anew)
        return ExactVectors(DIMENSION, ["year"]) if anew else self.first

    async def run(self) -> asyncio.Task[None]:
        await self.replica.start()
        return asyncio.create_task(self.replica.run())

    @property
    def records(self) -> dict[str, VectorRecord]:
        index = self.replica.vectors
        assert isinstance(index, ExactVectors)
        return index.records


@pytest.fixture
async def bench() -> Any:
    made = Bench()
    task = await made.run()
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await made.replica.close()


def counted(metric: Any) -> float:
    return float(metric.labels("flight", "abc")._value.get())


async def test_records_of_both_topics_are_found(bench: Bench) -> None:
    bench.reader.put(VECTORS, "a", encode_vectors(vector_record("abc", "a wide plane")))
    bench.reader.put(TEXTS, "a", encode_text(text_record("abc", "a wide plane")))
    await eventually(lambda: "a" in bench.records and bench.replica.texts.search("planes", 5))
    assert bench.replica.caught_up and bench.replica.behind_records == 0 and bench.replica.problem == ""
    assert bench.replica.as_of_us == 1_000_000, "the older of the two"
    bench.reader.put(VECTORS, "a", None)
    bench.reader.put(TEXTS, "a", None)
    await eventually(lambda: "a" not in bench.records and not bench.replica.texts.search("planes", 5))


NAN = vector_record("abc", "x")
REFUSED = {
    "not a record": (VECTORS, b"\xc1"),
    "of another space": (VECTORS, encode_vectors(vector_record("other", "x"))),
    "of another dimension": (
        VECTORS,
        encode_vectors(VectorRecord(**{**{f: getattr(NAN, f) for f in NAN.__struct_fields__}, "dimension": 32})),
    ),
    "with NaN": (
        VECTORS,
        encode_vectors(
            VectorRecord(
                **{
                    **{f: getattr(NAN, f) for f in NAN.__struct_fields__},
                    "vectors": b"\x00\x00\xc0\x7f" + NAN.vectors[4:],
                }
            )
        ),
    ),
    "a text of another space": (TEXTS, encode_text(text_record("other", "x"))),
    "a text that is none": (TEXTS, b"{}"),
}


@pytest.mark.parametrize(("topic", "value"), REFUSED.values(), ids=list(REFUSED))
async def test_what_is_none_of_the_space_is_counted_told_once_and_never_served(
    bench: Bench, caplog: pytest.LogCaptureFixture, topic: str, value: bytes
) -> None:
    caplog.set_level(logging.WARNING, "ctxpipe.replica")
    before = counted(metrics.replica_refused)
    for _ in range(3):
        bench.reader.put(topic, "bad", value)
    bench.reader.put(VECTORS, "good", encode_vectors(vector_record("abc", "x")))
    await eventually(lambda: "good" in bench.records)
    assert counted(metrics.replica_refused) == before + 3
    assert "bad" not in bench.records and bench.replica.texts.state_of("bad") is None
    assert len([record for record in caplog.records if "is left out" in record.getMessage()]) == 1


@pytest.mark.parametrize("texts_first", [True, False])
async def test_the_newest_texts_values_count_whichever_topic_is_read_first(bench: Bench, texts_first: bool) -> None:
    text = (TEXTS, "a", encode_text(text_record("abc", "x", 2, {"year": 2000})))
    vectors = (VECTORS, "a", encode_vectors(vector_record("abc", "x", 1, {"year": 1988})))
    for item in (text, vectors) if texts_first else (vectors, text):
        bench.reader.put(*item)
    await eventually(lambda: "a" in bench.records and bench.records["a"].filters == {"year": 2000})
    await eventually(lambda: bool(bench.replica.texts.search("x", 5, [Condition("year", "eq", 2000)])))


async def test_kafka_away_is_waited_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ctxpipe.replica")
    bench.reader.open_errors += [Retryable("Kafka does not answer"), EnvironmentProblem("Kafka refuses us")]
    bench.reader.script.put_nowait(Retryable("Kafka does not answer"))
    bench.reader.put(VECTORS, "a", encode_vectors(vector_record("abc", "x")))
    await eventually(lambda: "a" in bench.records)
    assert bench.replica.problem == "" and any("refuses us" in record.getMessage() for record in caplog.records)


async def test_it_ends_although_its_reader_forgets_that_it_was_cancelled() -> None:
    class Forgetful(ScriptedReader):
        reads = 0

        async def read(self) -> list[tuple[str, int, list[Any]]]:
            self.reads += 1
            with contextlib.suppress(asyncio.CancelledError):
                await super().read()
            return []

    made = Bench()
    made.replica._reader = reader = Forgetful()
    task = await made.run()
    await eventually(lambda: reader.reads)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=20)
    assert done and reader.reads == 1


async def test_a_log_that_was_cut_starts_the_index_anew(bench: Bench) -> None:
    bench.reader.put(VECTORS, "old", encode_vectors(vector_record("abc", "x")))
    await eventually(lambda: "old" in bench.records)
    bench.reader.script.put_nowait(PositionGone(VECTORS, "gone"))
    bench.reader.put(VECTORS, "new", encode_vectors(vector_record("abc", "x")))
    await eventually(lambda: list(bench.records) == ["new"])
    assert bench.opened == [False, True] and bench.first.closed


async def test_it_begins_where_the_snapshot_ends() -> None:
    made = Bench()
    made.first.apply([Placed(0, 6, "a", vector_record("abc", "x"))])
    task = await made.run()
    await eventually(lambda: made.reader.starts)
    assert made.reader.starts == [{(VECTORS, 0): 7, (TEXTS, 0): 0}]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_is_loaded_when_it_has_reached_the_ends_of_its_start() -> None:
    made = Bench()
    made.reader.loaded[VECTORS] = False
    made.reader.behind[VECTORS] = 5
    task = await made.run()
    await eventually(lambda: made.replica.texts_loaded)
    assert not made.replica.vectors_loaded and not made.replica.caught_up and made.replica.behind_records == 5
    made.reader.loaded[VECTORS] = True
    made.reader.put(VECTORS, "a", None)
    await eventually(lambda: made.replica.caught_up)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


EXTENTS = {("v", 0): Extent(3, 10), ("v", 1): Extent(0, 0), ("w", 0): Extent(0, 1)}


@pytest.mark.parametrize(
    ("positions", "since", "reason"),
    [
        ({}, {}, None),
        ({0: 3, 1: 0}, {}, None),
        ({0: 10}, {0: 10}, None),
        ({0: 11}, {}, "ends at offset 10, before 11"),
        ({0: 2}, {}, "begins at offset 3, after 2"),
        ({0: 5}, {0: 6}, "so long ago that deletions may be gone"),
        ({2: 0}, {}, "no partition 2 any more"),
    ],
)
def test_when_an_index_starts_anew(positions: dict[int, int], since: dict[int, int], reason: str | None) -> None:
    first_since = {("v", partition): since.get(partition, 0) for partition in (0, 1)}
    found = reason_to_start_anew("v", positions, EXTENTS, first_since)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_partitions_without_a_position_start_at_the_beginning() -> None:
    assert starts([("v", {0: 7}), ("w", {})], EXTENTS) == {("v", 0): 7, ("v", 1): 0, ("w", 0): 0}
