"""What searches over so many vectors cost, between and beyond the points that were measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.ops.measured import Measured, SearchPoint


@dataclass(frozen=True, slots=True)
class SearchCost:
    """Of one process on one core."""

    searches_per_s: float
    p99_ms: float
    bytes_per_vector: float
    vectors_within: Callable[[float], float]
    """Milliseconds → the most vectors whose searches take no longer, 99 of 100."""


def search_cost(measured: Measured, vectors: int, dimension: int) -> SearchCost:
    """Over `vectors` of `dimension`, in proportion to the dimension that was measured."""
    curve = sorted(measured.search_curve, key=lambda point: point.vectors)
    scale = dimension / measured.search_dimension
    slowest = _rising([point.p99_ms for point in curve])
    counts = [point.vectors for point in curve]
    return SearchCost(
        searches_per_s=1 / _at(counts, [1 / point.searches_per_s for point in curve], vectors) / scale,
        p99_ms=_at(counts, slowest, vectors) * scale,
        bytes_per_vector=max(_bytes(point, scale) for point in _around(curve, vectors)),
        vectors_within=lambda budget_ms: _within(counts, slowest, budget_ms / scale),
    )


def _at(counts: Sequence[int], values: Sequence[float], count: int) -> float:
    """Straight between points, the first value before them, growing by the square root behind them."""
    if count <= counts[0]:
        return values[0]
    for left in range(len(counts) - 1):
        if count <= counts[left + 1]:
            share = (count - counts[left]) / (counts[left + 1] - counts[left])
            return values[left] + share * (values[left + 1] - values[left])
    return values[-1] * math.sqrt(count / counts[-1])


def _within(counts: Sequence[int], values: Sequence[float], most: float) -> float:
    if most >= values[-1]:
        return counts[-1] * (most / values[-1]) ** 2
    fitting = [count for count, value in zip(counts, values, strict=True) if value <= most]
    return max(fitting, default=0)


def _rising(values: Sequence[float]) -> list[float]:
    """No value below an earlier one: a lucky round promises nothing."""
    return [max(values[: i + 1]) for i in range(len(values))]


def _around(curve: Sequence[SearchPoint], vectors: int) -> Sequence[SearchPoint]:
    """The measured points on both sides; the last one beyond them."""
    behind = next((i for i, point in enumerate(curve) if point.vectors >= vectors), len(curve) - 1)
    return curve[max(0, behind - 1) : behind + 1]


def _bytes(point: SearchPoint, scale: float) -> float:
    """Files hold the vectors themselves. What is in memory beside them does not grow with their dimension, but small
    indexes hold the vectors there."""
    inside = point.memory_bytes if point.mapped_bytes else point.memory_bytes * scale
    return inside + point.mapped_bytes * scale
