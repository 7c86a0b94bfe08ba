"""Measures of answers, each against a value that was computed by hand."""

from __future__ import annotations

from math import log2

import numpy
import pytest

from pipeline.ops.space_measures import (
    ExactVectors,
    index_recall_at,
    ndcg_at,
    paired_interval,
    percentile,
    recall_at,
)
from schemas.vectors import Chunk, VectorRecord


def record(*rows: list[float]) -> VectorRecord:
    matrix = numpy.asarray(rows, "<f4")
    return VectorRecord(
        space="s",
        counter=1,
        bundle_hash="b",
        text_hash="t",
        dimension=matrix.shape[1],
        chunks=[Chunk(0, 1)] * len(rows),
        vectors=matrix.tobytes(),
    )


def test_recall_is_the_part_of_what_is_relevant() -> None:
    relevant = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}
    assert recall_at(["a", "x", "c", "b"], relevant, 3) == 0.5
    assert recall_at([], relevant, 3) == 0.0
    assert recall_at(["x"], {}, 3) == 1.0
    assert recall_at(["a", "a", "a"], {"a": 1.0, "b": 1.0}, 3) == 0.5


def test_ndcg_divides_grades_by_the_logarithm_of_their_place() -> None:
    relevant = {"a": 3.0, "b": 2.0, "c": 1.0}
    best = 3 / log2(2) + 2 / log2(3) + 1 / log2(4)
    assert ndcg_at(["a", "b", "c"], relevant, 10) == pytest.approx(1.0)
    assert ndcg_at(["c", "x", "a"], relevant, 10) == pytest.approx((1 + 3 / 2) / best)
    assert ndcg_at(["c", "x", "a"], relevant, 2) == pytest.approx(1 / (3 + 2 / log2(3)))
    assert ndcg_at(["x"], relevant, 10) == 0.0
    assert ndcg_at(["x"], {}, 10) == 1.0


def test_exact_search_takes_the_best_piece_and_breaks_ties_by_key() -> None:
    vectors = ExactVectors(
        [
            ("b", record([1, 0], [0, 1])),
            ("a", record([0, 1])),
            ("c", record([0.6, 0.8])),
            ("d", record([-1, 0])),
        ],
        2,
    )
    queries = numpy.asarray([[0, 1], [1, 0]], "<f4")
    first, second = vectors.search(queries, 3)
    assert [key for key, _ in first] == ["a", "b", "c"]
    assert [score for _, score in first] == pytest.approx([1.0, 1.0, 0.8])
    assert [key for key, _ in second] == ["b", "c", "a"]
    assert [key for key, _ in vectors.search(queries, 100)[1]] == ["b", "c", "a", "d"]
    assert vectors.score(queries[0], "c") == pytest.approx(0.8)
    assert vectors.score(queries[0], "unknown") is None
    assert ExactVectors([], 2).search(queries, 3) == [[], []]


def test_equal_vectors_are_equal_wherever_they_lie() -> None:
    """A matrix product adds in another order at the edge of a block."""
    generator = numpy.random.default_rng(1)
    same = generator.normal(size=384)
    same /= numpy.linalg.norm(same)
    keys = [f"{number:04}" for number in range(1003)]
    vectors = ExactVectors([(key, record(list(same))) for key in reversed(keys)], 384)
    query = generator.normal(size=(1, 384)).astype("<f4")
    assert [key for key, _ in vectors.search(query, 7)[0]] == keys[:7]


def test_an_index_may_take_another_of_equal_answers() -> None:
    exact = [("a", 0.9), ("b", 0.5), ("c", 0.5)]
    scores: dict[str, float | None] = {"a": 0.9, "c": 0.5, "d": 0.5, "far": 0.1, "gone": None}
    assert index_recall_at(["a", "d", "c"], exact, scores) == 1.0
    assert index_recall_at(["a", "far", "gone"], exact, scores) == pytest.approx(1 / 3)
    assert index_recall_at([], exact, scores) == 0.0
    assert index_recall_at([], [], {}) == 1.0
    assert index_recall_at(["z"], [("z", 0.0)], {"z": 0.0}) == 1.0


def test_an_interval_is_the_same_for_the_same_seed_and_holds_the_mean() -> None:
    differences = [0.0, 0.0, 0.1, -0.05, 0.2, 0.0, 0.1]
    one = paired_interval(differences, 7)
    assert one == paired_interval(differences, 7)
    assert one.low < one.mean < one.high
    assert one.mean == pytest.approx(0.05)
    same = paired_interval([0.25] * 9)
    assert (same.low, same.mean, same.high) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="no differences"):
        paired_interval([])


def test_where_there_is_no_difference_about_19_of_20_intervals_hold_0() -> None:
    generator, held = numpy.random.default_rng(3), 0
    for number in range(100):
        interval = paired_interval(list(generator.normal(size=60)), number)
        held += interval.low <= 0 <= interval.high
    assert 88 <= held <= 100


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([1.0, 2.0], 0.99) == 2.0
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)
