"""Upkeep of the vector index: what is merged when, recall of what was built, and searches beside all of it."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy
import pytest

from pipeline.core.clock import SystemClock
from pipeline.stores import vector_merging, vector_search
from pipeline.stores.spaces import Condition, Placed
from pipeline.stores.vector_limits import IndexLimits
from pipeline.stores.vector_merging import choose
from pipeline.stores.vector_segments import Segment
from pipeline.stores.vector_upkeep import KeptIndex
from pipeline.stores.vectors import open_index
from tests.support.vector_logs import DIMENSION, SMALL, Pair, build_here, record, unit_rows


def segment(rows: int, dead: int = 0, indexed: bool = False) -> Segment:
    made = Segment(f"{rows}", numpy.empty((rows, 1), dtype=numpy.float32), 0)
    made.count, made.dead, made.index = rows, dead, object() if indexed else None
    return made


LIMITS = IndexLimits(flat_rows_max=100, dead_share_max=0.25, segments_max=3)


def chosen(*segments: Segment) -> list[int]:
    return sorted(segments.index(one) for one in choose(segments, LIMITS))


def test_what_is_merged() -> None:
    assert chosen() == []
    assert chosen(segment(60), segment(40)) == []
    assert chosen(segment(60), segment(41)) == [0, 1]
    assert chosen(segment(1000, indexed=True), segment(60), segment(60)) == [1, 2]
    assert chosen(segment(120, indexed=True), segment(60), segment(60)) == [0, 1, 2]
    assert chosen(segment(1000, 250, indexed=True), segment(10)) == []
    assert chosen(segment(1000, 251, indexed=True), segment(10)) == [0, 1]
    assert chosen(segment(90, 89)) == []
    assert chosen(*[segment(10**n, indexed=True) for n in (5, 4, 3, 2)]) == [2, 3]
    assert chosen(*[segment(10**n, indexed=True) for n in (5, 4, 3)], segment(60), segment(60)) == [2, 3, 4]


def test_a_round_of_upkeep_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_here(monkeypatch)
    pair, chance = Pair(tmp_path), random.Random(5)
    for number in range(600):
        pair.put(f"k{chance.randrange(150)}", record(unit_rows(chance, 1), number))
        if number % 97 == 0:
            pair.index.maintain()
    pair.index.maintain()
    assert choose(pair.index.view[:-1], SMALL) == []
    assert sum(one.count for one in pair.index.view if one.index is None) <= 24 + 8
    assert sum(one.living for one in pair.index.view) == len(pair.index) == len(pair.reference.records)
    pair.agree(chance)
    for key in list(pair.reference.records):
        pair.put(key, None)
    pair.index.maintain()
    assert len(pair.index.view) == 1 and pair.index.search(unit_rows(chance, 1)[0], 10) == []
    pair.index.close()


def test_what_changes_during_a_build_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_here(monkeypatch)
    pair, chance = Pair(tmp_path), random.Random(7)
    for number in range(60):
        pair.put(f"k{number}", record(unit_rows(chance, 2), 1, {"year": 2000}))
    build = vector_merging._build

    def build_and_change(*arguments: Any) -> bool:
        for number in range(0, 60, 4):
            pair.put(f"k{number}", None)
            pair.put(f"k{number + 1}", record(unit_rows(chance, 1), 2))
            pair.note(f"k{number + 2}", 2, {"year": 2001})
        pair.agree(chance)
        return build(*arguments)

    monkeypatch.setattr(vector_merging, "_build", build_and_change)
    pair.index.maintain()
    pair.agree(chance)
    pair.index.close()
    pair.reopen()
    pair.agree(chance)
    assert len(pair.index) == 45
    pair.index.close()


def test_an_index_is_built_by_a_process_of_its_own_and_finds_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_search, "BRUTE_ROWS_MAX", 10)
    rows, dimension = 6_000, 32
    vectors = clustered(rows + 200, dimension)
    index = open_index(tmp_path, "s", dimension, ["odd"], IndexLimits(head_rows_max=2_000, flat_rows_max=3_000))
    fill(index, vectors[:rows])
    index.maintain()
    assert [(one.count, one.index is not None) for one in index.view] == [(4_000, True), (2_000, False)]
    assert recall(index, vectors, rows, [], numpy.ones(rows, dtype=bool)) >= 0.95
    odd = numpy.arange(rows) % 7 == 1
    assert recall(index, vectors, rows, [Condition("odd", "eq", 1)], odd) >= 0.95
    # Nothing that matters is lost on disk.
    index.close()
    again = open_index(tmp_path, "s", dimension, ["odd"])
    query = vectors[-1]
    assert again.search(query, 10) == index.search(query, 10)
    again.close()


def clustered(rows: int, dimension: int) -> Any:
    chance = numpy.random.default_rng(1)
    centres = chance.normal(size=(60, dimension))
    found = centres[chance.integers(0, 60, rows)] + 0.6 * chance.normal(size=(rows, dimension))
    return (found / numpy.linalg.norm(found, axis=1, keepdims=True)).astype(numpy.float32)


def fill(index: KeptIndex, vectors: Any) -> None:
    index.apply(
        [
            Placed(0, number, f"k{number}", record(vectors[number : number + 1], 1, {"odd": number % 7}))
            for number in range(len(vectors))
        ]
    )


def recall(index: KeptIndex, vectors: Any, rows: int, conditions: list[Condition], allowed: Any) -> float:
    shares = []
    for query in vectors[rows:]:
        scores = numpy.where(allowed, vectors[:rows] @ query, -2)
        best = {f"k{row}" for row in numpy.argsort(-scores)[:10]}
        hits = index.search(query, 10, conditions)
        assert all(abs(hit.score - scores[int(hit.key[1:])]) < 1e-5 for hit in hits)
        shares.append(len(best & {hit.key for hit in hits}) / 10)
    return float(numpy.mean(shares))


def test_a_build_that_fails_leaves_everything_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair, chance = Pair(tmp_path), random.Random(9)
    for number in range(60):
        pair.put(f"k{number}", record(unit_rows(chance, 1)))
    monkeypatch.setattr("pipeline.stores.vector_merging.BUILDER", "pipeline.stores.no_such_module")
    for _ in range(3):
        pair.index.maintain()
    pair.agree(chance)
    assert caplog.text.count("stays as it is") == 1 and "no_such_module" in caplog.text
    names = {one.folder.name for one in pair.index.view if one.folder is not None}
    assert {path.name for path in tmp_path.glob("segment-*")} == names
    pair.index.close()


def test_closing_ends_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs_until_it_is_ended.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("pipeline.stores.vector_merging.BUILDER", "runs_until_it_is_ended")
    tmp_path = tmp_path / "index"
    pair, chance = Pair(tmp_path), random.Random(9)
    for number in range(60):
        pair.put(f"k{number}", record(unit_rows(chance, 1)))
    upkeep = threading.Thread(target=pair.index.maintain)
    upkeep.start()
    while not list(tmp_path.glob("segment-*/errors")):
        time.sleep(0.01)
    pair.index.close()
    upkeep.join()
    pair.agree(chance)
    pair.reopen()
    pair.agree(chance)
    pair.index.close()


def test_searches_beside_changes_never_mispair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version of a bundle has a vector of its own that says which it is: a hit's text, counter and score are of
    one version, a bundle that is always there is always found, and never in a version older than seen before."""
    build_here(monkeypatch)
    limits = IndexLimits(head_rows_max=16, flat_rows_max=40, snapshot_changes_min=50, snapshot_interval_s=0)
    index = open_index(tmp_path, "s", DIMENSION, ["v"], limits, clock=SystemClock())
    chance, stop, mistakes = random.Random(11), threading.Event(), list[str]()
    versions = unit_rows(chance, 64)
    counters = dict.fromkeys(range(50), 0)
    offset = 0

    def put(key: int) -> None:
        nonlocal offset
        counters[key] += 1
        counter = counters[key]
        vectors = versions[[counter % 64] * (1 + counter % 3)]
        index.apply([Placed(0, offset, f"k{key}", record(vectors, counter, {"v": counter % 64}, f"t{counter}"))])
        offset += 1

    def search() -> None:
        queries, seen = random.Random(threading.get_ident()), dict[str, int]()
        while not stop.is_set():
            query = versions[queries.randrange(64)]
            hits = index.search(query, 1000)
            if len({hit.key for hit in hits}) != 50:
                mistakes.append(f"{len(hits)} bundles of 50")
            for hit in hits:
                if hit.text_hash != f"t{hit.counter}" or hit.counter < seen.get(hit.key, 0):
                    mistakes.append(f"{hit} after {seen.get(hit.key)}")
                if abs(hit.score - float(versions[hit.counter % 64] @ query)) > 1e-5:
                    mistakes.append(f"{hit} scored as another version")
                seen[hit.key] = hit.counter
            wanted = queries.randrange(64)
            if any(hit.counter % 64 != wanted for hit in index.search(query, 1000, [Condition("v", "eq", wanted)])):
                mistakes.append("a hit does not meet the condition")

    for key in counters:
        put(key)
    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1_500):
        put(chance.randrange(50))
        if number % 25 == 0:
            index.maintain()
            time.sleep(0)
    stop.set()
    for thread in threads:
        thread.join()
    assert mistakes == []
    index.close()
