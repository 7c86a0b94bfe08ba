"""How good the answers of an embedding space are: exact search, recall, nDCG, and how sure a difference is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import TYPE_CHECKING, TypeAlias

from schemas.vectors import VectorRecord

if TYPE_CHECKING:
    import numpy

    Matrix: TypeAlias = numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]
    Vector: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]
    Scores: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.float64]]
    Numbers: TypeAlias = numpy.ndarray[tuple[int], numpy.dtype[numpy.int64]]

SCORES_AT_ONCE = 16 << 20
ROWS_AT_ONCE = 1 << 16
TIE = 1e-5
"""Scores from many multiplications at once differ by less than this from the exact ones."""
DRAWS = 10_000
DRAWS_AT_ONCE = 500


class ExactVectors:
    """All vectors of a space, searched without an index: the best of a bundle's pieces is the bundle's score.

    Takes the vectors' size in memory twice while it is made. `bundles` gives each key once.
    """

    def __init__(self, bundles: Iterable[tuple[str, VectorRecord]], dimension: int) -> None:
        import numpy

        pairs = sorted(bundles, key=lambda pair: pair[0])
        self.keys = [key for key, _ in pairs]
        self.dimension = dimension
        self._numbers = {key: number for number, key in enumerate(self.keys)}
        counts = [len(record.chunks) for _, record in pairs]
        self._starts = numpy.concatenate([[0], numpy.cumsum(counts, dtype=numpy.int64)]).astype(numpy.int64)
        flat = numpy.frombuffer(b"".join([record.vectors for _, record in pairs]), "<f4")
        self._matrix: Matrix = flat.reshape(-1, dimension)

    def search(self, queries: Matrix, k: int) -> list[list[tuple[str, float]]]:
        """The k best keys with their scores per query, best first; equal ones in the order of their keys."""
        import numpy

        if not self.keys:
            return [[] for _ in range(len(queries))]
        step = max(1, SCORES_AT_ONCE // max(1, len(self._matrix)))
        found = []
        for first in range(0, len(queries), step):
            part = queries[first : first + step]
            best = numpy.maximum.reduceat(self._matrix @ part.T, self._starts[:-1], axis=0)
            found += [self._best(part[number], best[:, number], k) for number in range(len(part))]
        return found

    def score(self, query: Vector, key: str) -> float | None:
        """None for a key that is not there."""
        import numpy

        number = self._numbers.get(key)
        return None if number is None else float(self._exact(query, numpy.array([number], numpy.int64))[0])

    def _best(self, query: Vector, scores: Vector, k: int) -> list[tuple[str, float]]:
        """What may be among the k best is computed again, in the same order of adding: equal vectors are equal."""
        import numpy

        least = numpy.partition(scores, -k)[-k] if k < len(scores) else scores.min()
        numbers = numpy.flatnonzero(scores >= least - TIE)
        exact = self._exact(query, numbers)
        order = numpy.argsort(-exact, kind="stable")[:k]
        return [(self.keys[numbers[place]], float(exact[place])) for place in order]

    def _exact(self, query: Vector, numbers: Numbers) -> Scores:
        import numpy

        wide = query.astype(numpy.float64)
        best = numpy.empty(len(numbers), numpy.float64)
        for first in range(0, len(numbers), ROWS_AT_ONCE):
            for place, number in enumerate(numbers[first : first + ROWS_AT_ONCE], first):
                rows = self._matrix[self._starts[number] : self._starts[number + 1]]
                best[place] = (rows * wide).sum(axis=1).max()
        return best


def recall_at(ranking: Sequence[str], relevant: Mapping[str, float], k: int) -> float:
    """Which part of the relevant keys is among the first k; 1 where none is relevant."""
    if not relevant:
        return 1.0
    return len({*ranking[:k]} & {*relevant}) / len(relevant)


def ndcg_at(ranking: Sequence[str], relevant: Mapping[str, float], k: int) -> float:
    """Normalised discounted cumulative gain: grades, each divided by log2(place + 1), against the best order of all."""
    best = sum(grade / log2(place + 2) for place, grade in enumerate(sorted(relevant.values(), reverse=True)[:k]))
    if not best:
        return 1.0
    gained = sum(relevant.get(key, 0.0) / log2(place + 2) for place, key in enumerate(ranking[:k]))
    return gained / best


def index_recall_at(
    hits: Sequence[str], exact: Sequence[tuple[str, float]], scores: Mapping[str, float | None]
) -> float:
    """Which part of the exact answer an index found. A hit as good as the exact answer's last one counts, so that it
    does not matter which of several equal ones is taken. `scores`: the exact score of each hit."""
    if not exact:
        return 1.0
    least = exact[-1][1]
    found = (scores.get(key) for key in dict.fromkeys(hits))
    good = sum(score is not None and score >= least for score in found)
    return min(1.0, good / len(exact))


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over paired differences and where it would lie in 95 of 100 other samples of the queries."""

    mean: float
    low: float
    high: float


def paired_interval(differences: Sequence[float], seed: int = 0) -> Interval:
    """Bootstrap over the queries; the same seed gives the same interval. Raises ValueError for no differences."""
    import numpy

    if not len(differences):
        raise ValueError("no differences to judge")
    values = numpy.asarray(differences, numpy.float64)
    generator, means = numpy.random.default_rng(seed), []
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        drawn = generator.integers(0, len(values), (DRAWS_AT_ONCE, len(values)))
        means.append(values[drawn].mean(axis=1))
    low, high = numpy.quantile(numpy.concatenate(means), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` of all do not exceed; the nearest that was measured. Raises ValueError for none."""
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered), max(1, ceil(part * len(ordered)))) - 1]
