"""One search over segments: candidates from each, then exact scores of their bundles' current vectors."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy

from pipeline.stores import faiss_library
from pipeline.stores.conditions import condition_mistakes, meets
from pipeline.stores.spaces import Condition, Hit
from pipeline.stores.vector_filters import Filters, Flags
from pipeline.stores.vector_segments import Entry, Rows, Segment, decode_details

if TYPE_CHECKING:
    from pipeline.stores.spaces import Vector

K_MAX = 1_000
BRUTE_ROWS_MAX = 10_000
"""Up to so many allowed rows are compared one by one: cheaper than probing lists for the few that may be found."""
_SCORE_SLACK = 1e-5
"""What the last bits of a fast inner product can be wrong by; rows that close to the last one are candidates too."""
_BORDER_MAX = 256


def checked_query(
    vector: Vector, dimension: int, k: int, conditions: Sequence[Condition], marked: Sequence[str]
) -> Vector:
    """The query with length 1. Raises ValueError with all that is wrong with a search."""
    mistakes = condition_mistakes(conditions, marked)
    if not 1 <= k <= K_MAX:
        mistakes.append(f"k is 1 to {K_MAX:,}, not {k:,}")
    length = 1.0
    if vector.shape != (dimension,):
        mistakes.append(f"the vector has shape {vector.shape}; the space has {dimension} dimensions")
    elif not numpy.isfinite(vector).all():
        mistakes.append("the vector has numbers that are not finite")
    else:
        length = float(numpy.linalg.norm(vector.astype(numpy.float64)))
        if length == 0:
            mistakes.append("the vector is all zeros, which is near to nothing")
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return numpy.ascontiguousarray(vector.astype(numpy.float64) / length, dtype=numpy.float32)


class Narrowing:
    """The conditions of one search, with the numbers of values that meet them."""

    def __init__(self, filters: Filters, conditions: Sequence[Condition]) -> None:
        self.filters = filters
        self.conditions = conditions
        self._allowed = filters.allowed(conditions)

    def rows(self, segment: Segment, count: int) -> Flags:
        """Which of the first `count` rows may be found; a new array."""
        allowed = segment.alive[:count].copy()
        for field, flags in self._allowed:
            codes = segment.codes[field][:count]
            # A value that came after the flags were made has a number beyond them.
            allowed &= numpy.take(flags, codes, mode="clip") & (codes < len(flags)) if len(flags) else False
        return allowed


def search_segments(
    view: Callable[[], Sequence[Segment]],
    entries: Mapping[str, Entry],
    query: Vector,
    k: int,
    narrowing: Narrowing,
    min_score: float,
) -> list[Hit]:
    """See VectorIndex.search. `entries` may change meanwhile; each bundle is judged by one entry as a whole.

    `view` gives the segments of this moment: rows move to later ones only, so that none is missed by whoever goes
    through them in order, and again through those that came meanwhile and all that stand behind one of these.
    """
    keys: set[str] = set()
    seen: set[Segment] = set()
    segments: Sequence[Segment] = ()
    while (latest := view()) is not segments:
        segments, moved = latest, False
        for segment in segments:
            moved = moved or segment not in seen
            if moved:
                keys.update(_candidates(segment, query, k, narrowing))
                seen.add(segment)
    found = [(key, entry) for key in keys if (entry := entries.get(key)) is not None]
    ranked = sorted(
        (-score, key, chunk, entry)
        for (key, entry), (score, chunk) in zip(found, best_rows([entry for _, entry in found], query), strict=True)
        if score >= min_score
    )
    hits: list[Hit] = []
    for negative, key, chunk, entry in ranked:
        details = decode_details(entry.details)
        if meets(narrowing.conditions, narrowing.filters.named(details.filters)):
            piece = details.chunks[chunk]
            hits.append(Hit(key, -negative, piece, chunk, details.text_hash, details.bundle_hash, entry.counter))
            if len(hits) == k:
                break
    return hits


def best_rows(entries: Sequence[Entry], query: Vector) -> list[tuple[float, int]]:
    """Per entry its best exact score and the number of the row, counted from the entry's first, that has it."""
    results: list[tuple[float, int]] = [(0.0, 0)] * len(entries)
    groups: dict[int, list[int]] = {}
    for number, entry in enumerate(entries):
        groups.setdefault(id(entry.segment), []).append(number)
    for numbers in groups.values():
        matrix = entries[numbers[0]].segment.matrix
        rows = numpy.concatenate(
            [numpy.arange(entry.first_row, entry.first_row + entry.rows) for entry in map(entries.__getitem__, numbers)]
        )
        # Not by a BLAS, whose sums depend on what else is computed with them: the same row gives the same score.
        scores = numpy.einsum("ij,j->i", matrix[rows], query)
        start = 0
        for number in numbers:
            own = scores[start : start + entries[number].rows]
            chunk = int(own.argmax())
            results[number] = (float(own[chunk]), chunk)
            start += len(own)
    return results


def _candidates(segment: Segment, query: Vector, k: int, narrowing: Narrowing) -> list[str]:
    count = segment.count
    allowed = narrowing.rows(segment, count)
    living = int(numpy.count_nonzero(allowed))
    if living == 0:
        return []
    if segment.index is None or living <= BRUTE_ROWS_MAX:
        rows, scores = _compared(segment, query, count, allowed, living)
        return _best_keys(segment, rows, scores, k)
    return _probed(segment, query, k, allowed, living)


def _compared(segment: Segment, query: Vector, count: int, allowed: Flags, living: int) -> tuple[Rows, Vector]:
    """The allowed rows and their scores, all of them."""
    rows = numpy.flatnonzero(allowed).astype(numpy.int64)
    if living > count // 2:
        return rows, faiss_library.all_scores(segment.matrix[:count], query)[rows]
    return rows, faiss_library.some_scores(segment.matrix, query, rows)


def _probed(segment: Segment, query: Vector, k: int, allowed: Flags, living: int) -> list[str]:
    """Through the segment's index: more lists the fewer rows are allowed, until k bundles are found."""
    lists = faiss_library.lists(segment.index)
    bits = None if living == segment.count else numpy.packbits(allowed, bitorder="little")
    probes = min(lists, segment.probes * max(1, round(segment.count / living)))
    wanted = min(living, 2 * k + 32)
    while True:
        scores, rows = faiss_library.nearest(segment.index, query, wanted, probes, bits)
        enough = len(numpy.unique(segment.owners[rows])) >= k
        if enough or (len(rows) >= living and probes == lists):
            return _best_keys(segment, rows, scores, max(k, len(rows)))
        if len(rows) >= wanted and wanted < living:
            wanted = min(living, 4 * wanted)
        elif probes < lists:
            probes = min(lists, 4 * probes)
        else:
            return _best_keys(segment, rows, scores, max(k, len(rows)))


def _best_keys(segment: Segment, rows: Rows, scores: Vector, k: int) -> list[str]:
    """Of the k best bundles, and of those that may be as good as the last of them."""
    taken = k
    while True:
        if taken >= len(rows):
            return list(dict.fromkeys(segment.keys[row] for row in rows.tolist()))
        best = numpy.argpartition(scores, -taken)[-taken:]
        if len(numpy.unique(segment.owners[rows[best]])) >= k:
            break
        taken *= 2
    last = float(scores[best].min())
    sure = rows[scores > last + _SCORE_SLACK]
    border = rows[numpy.abs(scores - last) <= _SCORE_SLACK]
    keys = {segment.keys[row] for row in border.tolist()}
    chosen = heapq.nsmallest(k + _BORDER_MAX, keys) if len(keys) > k + _BORDER_MAX else list(keys)
    return [*(segment.keys[row] for row in sure.tolist()), *chosen]
