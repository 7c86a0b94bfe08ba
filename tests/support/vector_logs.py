"""A vector index and its reference under the same changes, with the log that a replica would replay."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy
import pytest
from msgspec.structs import replace

from pipeline.core.clock import SystemClock
from pipeline.stores import faiss_library, vector_merging
from pipeline.stores.spaces import Condition, Hit, Placed
from pipeline.stores.vector_files import INDEX, MATRIX
from pipeline.stores.vector_limits import IndexLimits
from pipeline.stores.vector_upkeep import KeptIndex
from pipeline.stores.vectors import open_index
from schemas.vectors import Chunk, FilterValue, VectorRecord
from tests.support.memory_vectors import MemoryVectors

DIMENSION = 8
FIELDS = ["year", "kind"]
SMALL = IndexLimits(head_rows_max=8, flat_rows_max=24, segments_max=3, snapshot_changes_min=1, snapshot_interval_s=0)
"""So that a few dozen changes seal, merge and build."""
SAME_SCORE = 2e-6
Filters = dict[str, FilterValue | list[FilterValue]]


def unit_rows(chance: random.Random, rows: int, dimension: int = DIMENSION) -> Any:
    found = numpy.random.default_rng(chance.getrandbits(32)).normal(size=(rows, dimension)).astype(numpy.float32)
    return found / numpy.linalg.norm(found, axis=1, keepdims=True)


def record(
    vectors: Any, counter: int = 1, filters: Filters | None = None, text_hash: str = "t", space: str = "s"
) -> VectorRecord:
    return VectorRecord(
        space=space,
        counter=counter,
        bundle_hash=f"b{counter}",
        text_hash=text_hash,
        dimension=vectors.shape[1],
        chunks=[Chunk(number, number + 1) for number in range(len(vectors))],
        vectors=vectors.astype("<f4").tobytes(),
        filters=filters or {},
    )


def build_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds indexes in this process: what they are in is tested once."""

    def build(folder: Path, dimension: int, limits: IndexLimits, stopping: Any) -> bool:
        matrix = numpy.fromfile(folder / MATRIX, dtype="<f4").reshape(-1, dimension)
        faiss_library.build(matrix, folder / INDEX, 1)
        return True

    monkeypatch.setattr(vector_merging, "_build", build)


class Pair:
    """`index` beside `reference`; `log` holds what a topic would, in offset order in one partition."""

    def __init__(self, folder: Path, limits: IndexLimits = SMALL, fields: Sequence[str] = FIELDS) -> None:
        self.folder, self.limits, self.fields = folder, limits, list(fields)
        self.reference = MemoryVectors(DIMENSION, self.fields)
        self.log: list[Placed] = []
        self.notes: dict[str, tuple[int, Filters]] = {}
        self.index = self.open(folder)

    def open(self, folder: Path) -> KeptIndex:
        return open_index(folder, "s", DIMENSION, self.fields, self.limits, clock=SystemClock())

    def put(self, key: str, found: VectorRecord | None) -> None:
        placed = Placed(0, len(self.log), key, found)
        self.log.append(placed)
        if found is None:
            self.notes.pop(key, None)
        for one in (self.index, self.reference):
            self._apply(cast(KeptIndex, one), placed)

    def note(self, key: str, counter: int, filters: Filters) -> None:
        self.notes[key] = max(self.notes.get(key, (0, {})), (counter, filters), key=lambda note: note[0])
        for one in (self.index, self.reference):
            one.note_filters(key, *self.notes[key])

    def reopen(self, folder: Path | None = None) -> None:
        """Another process goes on with the folder, and reads the topic from where the index stands."""
        self.index = self.open(folder or self.folder)
        self.catch_up(self.index)

    def catch_up(self, index: KeptIndex) -> None:
        for placed in self.log[index.positions().get(0, 0) :]:
            self._apply(index, placed)
        for key, note in self.notes.items():
            index.note_filters(key, *note)

    def agree(self, chance: random.Random) -> None:
        assert self.index.digest() == self.reference.digest()
        assert self.index.positions() == self.reference.positions()
        for key, expected in self.reference.records.items():
            filters = {field: expected.filters.get(field) for field in self.fields}
            assert self.index.vectors_of(key) == replace(expected, filters=filters)
        queries = unit_rows(chance, 3)
        years: list[FilterValue] = [2000, 2001]
        for query, conditions in zip(
            queries, ([], [Condition("year", "in", years)], [Condition("kind", "eq", "a")]), strict=True
        ):
            k = chance.choice([1, 3, 10, 1000])
            same_hits(self.index.search(query, k, conditions), self.reference.search(query, k, conditions))

    def _apply(self, index: KeptIndex, placed: Placed) -> None:
        index.apply([placed])
        if placed.key in self.notes:
            index.note_filters(placed.key, *self.notes[placed.key])


def same_hits(found: Sequence[Hit], expected: Sequence[Hit]) -> None:
    """The order of two whose scores differ by the last bits is anybody's."""
    assert len(found) == len(expected)
    by_key = {hit.key: hit for hit in found}
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours.score - theirs.score) < SAME_SCORE
        if theirs.key in by_key:
            same = by_key[theirs.key]
            assert (same.chunk_number, same.text_hash, same.counter) == (
                theirs.chunk_number,
                theirs.text_hash,
                theirs.counter,
            )
        else:
            assert abs(theirs.score - expected[-1].score) < SAME_SCORE
