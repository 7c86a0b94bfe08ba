"""The in-memory reference of a space's vector index: every search compares all vectors. What an index must do, in plain
numpy, for tests and for a few thousand bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pipeline.core.errors import EnvironmentProblem
from pipeline.stores.conditions import condition_mistakes, meets
from pipeline.stores.spaces import Condition, Hit, Placed
from schemas.digests import KeySetDigest
from schemas.vectors import FilterValue, VectorRecord

if TYPE_CHECKING:
    from pipeline.stores.spaces import Vector

K_MAX = 1000


class MemoryVectors:
    """See VectorIndex. Nothing is kept on disk: the topic is read anew at each start."""

    def __init__(self, dimension: int, marked: Sequence[str] = ()) -> None:
        """Raises EnvironmentProblem without numpy."""
        try:
            import numpy
        except ImportError as error:
            raise EnvironmentProblem(
                "numpy is not installed, which searching by vector needs: pip install 'ctxpipe[search]'"
            ) from error
        self._numpy = numpy
        self.dimension, self._marked = dimension, list(marked)
        self.records: dict[str, VectorRecord] = {}
        self._filters_from: dict[str, int] = {}
        self._positions: dict[int, int] = {}

    def apply(self, records: Sequence[Placed]) -> None:
        for placed in records:
            if placed.offset < self._positions.get(placed.partition, 0):
                continue
            self._positions[placed.partition] = placed.offset + 1
            if placed.record is None:
                self.records.pop(placed.key, None)
                self._filters_from.pop(placed.key, None)
            else:
                self._replace(placed.key, placed.record)

    def search(
        self, vector: Vector, k: int, conditions: Sequence[Condition] = (), min_score: float = -1.0
    ) -> list[Hit]:
        mistakes = condition_mistakes(conditions, self._marked)
        if not 1 <= k <= K_MAX:
            mistakes.append(f"k is 1 to {K_MAX:,}, not {k:,}")
        if vector.shape != (self.dimension,):
            mistakes.append(f"the vector has shape {vector.shape}; the space has {self.dimension} dimensions")
        elif not self._numpy.isfinite(vector).all():
            mistakes.append("the vector has numbers that are not finite")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        hits = [
            self._hit(key, record, vector)
            for key, record in list(self.records.items())
            if meets(conditions, record.filters)
        ]
        return sorted([hit for hit in hits if hit.score >= min_score], key=lambda hit: (-hit.score, hit.key))[:k]

    def note_filters(self, key: str, counter: int, filters: Mapping[str, FilterValue | list[FilterValue]]) -> None:
        if key in self.records and counter >= self._filters_from[key]:
            self._filters_from[key] = counter
            self.records[key] = replace(self.records[key], filters=dict(filters))

    def vectors_of(self, key: str) -> VectorRecord | None:
        return self.records.get(key)

    def positions(self) -> dict[int, int]:
        return dict(self._positions)

    def digest(self) -> KeySetDigest:
        """Of all (key, text hash)."""
        digest = KeySetDigest()
        for key, record in list(self.records.items()):
            digest.add(key, record.text_hash)
        return digest

    def maintain(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def _replace(self, key: str, record: VectorRecord) -> None:
        known = self.records.get(key)
        if known is not None and self._filters_from[key] > record.counter:
            record = replace(record, filters=known.filters)
        else:
            self._filters_from[key] = record.counter
        self.records[key] = record

    def _hit(self, key: str, record: VectorRecord, vector: Vector) -> Hit:
        scores = self._numpy.frombuffer(record.vectors, "<f4").reshape(-1, self.dimension) @ vector
        best = int(scores.argmax())
        chunk = record.chunks[best]
        return Hit(key, float(scores[best]), chunk, best, record.text_hash, record.bundle_hash, record.counter)
