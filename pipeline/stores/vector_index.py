"""The vector index of one space: records in, nearest bundles out. Fulfils VectorIndex of pipeline.stores.spaces.

What holds at any moment: `entries` names each key's current vectors by one immutable Entry, and every row that an entry
names is readable as long as the entry is held. A view, the tuple of segments, is replaced as a whole. A search reads
the view once and decides by entries alone, so that it needs no lock and never pairs a bundle with another's vectors.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy

from pipeline.stores.pacing import paced
from pipeline.stores.spaces import Condition, Hit, Placed
from pipeline.stores.vector_filters import Filters, Value
from pipeline.stores.vector_limits import IndexLimits
from pipeline.stores.vector_search import Narrowing, checked_query, search_segments
from pipeline.stores.vector_segments import (
    Details,
    Entry,
    Matrix,
    Segment,
    decode_details,
    encode_details,
    new_head,
)
from schemas.digests import KeySetDigest
from schemas.vectors import VectorRecord

if TYPE_CHECKING:
    from pipeline.stores.spaces import Vector

_LENGTH_TOLERANCE = 1e-3
_APPLIED_AT_ONCE = 32

_log = logging.getLogger(__name__)


class SegmentedIndex:
    """An exact head for the newest vectors and sealed segments. Its upkeep is pipeline.stores.vector_upkeep's.

    `unusable` counts records whose vectors were no numbers; such a bundle has no vector then. `lock` is held by whoever
    changes anything, for less than a millisecond at a time.
    """

    def __init__(self, space: str, dimension: int, fields: Sequence[str], limits: IndexLimits) -> None:
        self.space = space
        self.dimension = dimension
        self.limits = limits
        self.filters = Filters(fields)
        self.lock = threading.Lock()
        self.unusable = 0
        self.changes = 0
        self.entries: dict[str, Entry] = {}
        self.applied: dict[int, int] = {}
        self.key_set = KeySetDigest()
        self._heads = 0
        self.view: tuple[Segment, ...] = (self._new_head(limits.head_rows_max),)

    def apply(self, records: Sequence[Placed]) -> None:
        """In offset order per partition. What lies before the partition's position was applied already and is passed
        over, so that a redelivery never shows an older state. Of a key's records the last one counts, as it does for
        whoever reads the topic later, when compaction has left only that."""
        parts = range(0, len(records), _APPLIED_AT_ONCE)
        for first in paced(parts) if len(parts) > 1 else parts:
            with self.lock:
                for placed in records[first : first + _APPLIED_AT_ONCE]:
                    self._apply(placed)

    def search(
        self, vector: Vector, k: int, conditions: Sequence[Condition] = (), min_score: float = -1.0
    ) -> list[Hit]:
        """See VectorIndex. Any number of threads at a time."""
        query = checked_query(vector, self.dimension, k, conditions, self.filters.fields)
        narrowing = Narrowing(self.filters, conditions)
        return search_segments(lambda: self.view, self.entries, query, k, narrowing, min_score)

    def note_filters(self, key: str, counter: int, filters: Mapping[str, Value]) -> None:
        """See VectorIndex; not concurrent with `apply`."""
        with self.lock:
            entry = self.entries.get(key)
            if entry is None:
                return
            details = decode_details(entry.details)
            values = self.filters.values(filters)
            same = counter == details.filters_counter and values == details.filters
            if same or counter < details.filters_counter:
                return
            codes = self.filters.take(values)
            self.filters.drop(details.filters)
            noted = _with_filters(details, values, counter)
            self.entries[key] = Entry(entry.counter, entry.segment, entry.first_row, entry.rows, encode_details(noted))
            entry.segment.recode(entry.first_row, entry.rows, codes)
            entry.segment.noted.add(entry.first_row)
            self.changes += 1

    def vectors_of(self, key: str) -> VectorRecord | None:
        """The current vectors of a bundle, for "more like this"."""
        entry = self.entries.get(key)
        if entry is None:
            return None
        details = decode_details(entry.details)
        rows = entry.segment.matrix[entry.first_row : entry.first_row + entry.rows]
        return VectorRecord(
            space=self.space,
            counter=entry.counter,
            bundle_hash=details.bundle_hash,
            text_hash=details.text_hash,
            dimension=self.dimension,
            chunks=details.chunks,
            vectors=rows.astype("<f4").tobytes(),
            tokens_cut=details.tokens_cut,
            filters=self.filters.named(details.filters),
            commit_time_us=details.commit_time_us,
        )

    def positions(self) -> dict[int, int]:
        """Partition → the offset after the last one applied: where a replay goes on."""
        return dict(self.applied)

    def digest(self) -> KeySetDigest:
        """Of all keys and the hashes of their texts (schemas.digests); a copy."""
        with self.lock:
            return KeySetDigest(self.key_set.total, self.key_set.count)

    def __len__(self) -> int:
        """How many bundles have vectors."""
        return len(self.entries)

    def entry_at(self, segment: Segment, first_row: int) -> Entry | None:
        """The bundle whose current vectors begin at this row; None: the row is another's or not current."""
        entry = self.entries.get(segment.keys[first_row])
        return entry if entry is not None and entry.segment is segment and entry.first_row == first_row else None

    def adopt(self, key: str, entry: Entry) -> list[int]:
        """An entry from disk, of a new key; the numbers of its values. For whoever has the index alone."""
        details = decode_details(entry.details)
        self.entries[key] = entry
        self.key_set.add(key, details.text_hash)
        return self.filters.take(details.filters)

    def append(self, key: str, counter: int, vectors: Matrix, details: Details) -> None:
        """Rows of a new key. For whoever holds the lock or has the index alone."""
        codes = self.filters.take(details.filters)
        head = self._head(len(vectors))
        first = head.append(key, vectors, codes)
        self.entries[key] = Entry(counter, head, first, len(vectors), encode_details(details))
        self.key_set.add(key, details.text_hash)

    def clear(self) -> None:
        """Forgets everything, positions too: the topic is read again from its start."""
        with self.lock:
            self.filters = Filters(self.filters.fields)
            self.entries, self.applied, self.key_set = {}, {}, KeySetDigest()
            self.view = (self._new_head(self.limits.head_rows_max),)
            self.changes += 1

    def _apply(self, placed: Placed) -> None:
        if placed.offset < self.applied.get(placed.partition, 0):
            return
        if placed.record is None:
            self._remove(placed.key)
        else:
            self._put(placed.key, placed.record)
        self.applied[placed.partition] = placed.offset + 1

    def _put(self, key: str, record: VectorRecord) -> None:
        before = self.entries.get(key)
        vectors = self._vectors(key, record)
        if vectors is None:
            self._remove(key)
            return
        details = Details(
            record.bundle_hash,
            record.text_hash,
            record.chunks,
            record.tokens_cut,
            record.commit_time_us,
            self.filters.values(record.filters),
            record.counter,
        )
        old = None if before is None else decode_details(before.details)
        if old is not None and old.filters_counter > record.counter:
            details = _with_filters(details, old.filters, old.filters_counter)
        # The new rows first, then the old ones go: a search finds the one or the other.
        self.append(key, record.counter, vectors, details)
        if before is not None and old is not None:
            self._bury(key, before, old)
        self.changes += 1

    def _remove(self, key: str) -> None:
        entry = self.entries.pop(key, None)
        if entry is None:
            return
        self._bury(key, entry, decode_details(entry.details))
        self.changes += 1

    def _bury(self, key: str, entry: Entry, details: Details) -> None:
        entry.segment.bury(entry.first_row, entry.rows)
        self.filters.drop(details.filters)
        self.key_set.remove(key, details.text_hash)

    def _vectors(self, key: str, record: VectorRecord) -> Matrix | None:
        """Rows of length 1; None where they are no vectors. Which shape they have was checked when they were decoded
        (schemas.vectors.decode_vectors)."""
        vectors: Matrix = numpy.frombuffer(record.vectors, dtype="<f4").reshape(len(record.chunks), self.dimension)
        lengths = numpy.sqrt(numpy.einsum("ij,ij->i", vectors, vectors, dtype=numpy.float64))
        if not numpy.isfinite(lengths).all() or not lengths.all():
            self.unusable += 1
            _log.warning("the vectors of %r in space %s are not numbers; it has none until it changes", key, self.space)
            return None
        if numpy.abs(lengths - 1).max() > _LENGTH_TOLERANCE:
            vectors = (vectors / lengths[:, None]).astype(numpy.float32)
        return vectors

    def _head(self, rows: int) -> Segment:
        """The segment that takes the next rows; a full one is sealed as it is, and compared one by one until merged."""
        head = self.view[-1]
        if head.count + rows > head.capacity:
            before = self.view if head.count else self.view[:-1]
            head = self._new_head(max(rows, self.limits.head_rows_max))
            self.view = (*before, head)
        return head

    def _new_head(self, rows: int) -> Segment:
        self._heads += 1
        return new_head(f"head-{self._heads}", rows, self.dimension, len(self.filters.fields))


def _with_filters(details: Details, values: list[Value], counter: int) -> Details:
    return Details(
        details.bundle_hash,
        details.text_hash,
        details.chunks,
        details.tokens_cut,
        details.commit_time_us,
        values,
        counter,
    )
