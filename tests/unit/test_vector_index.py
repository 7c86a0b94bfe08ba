"""The vector index answers as the reference does, whatever happened to it before."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.stores.spaces import Condition, Placed
from pipeline.stores.vectors import open_index
from tests.support.vector_logs import DIMENSION, FIELDS, Pair, build_here, record, same_hits, unit_rows

OPERATIONS = st.lists(
    st.sampled_from(["put"] * 12 + ["delete"] * 3 + ["note"] * 2 + ["maintain", "reopen", "crash", "burst"]),
    min_size=1,
    max_size=60,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, seed=st.integers(0, 2**32))
def test_it_answers_as_the_reference(operations: list[str], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    build_here(monkeypatch)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder) / "index-0")
        for number, operation in enumerate(operations):
            _do(operation, pair, chance, number)
        pair.agree(chance)
        pair.index.close()
        pair.agree(chance)
        pair.reopen()
        pair.agree(chance)
        pair.index.close()


def _do(operation: str, pair: Pair, chance: random.Random, number: int) -> None:
    key = f"k{chance.randrange(12)}"
    if operation == "put":
        _put(pair, chance, key, number)
    elif operation == "burst":
        for _ in range(20):
            _put(pair, chance, f"k{chance.randrange(40)}", number)
    elif operation == "delete":
        pair.put(key, None)
    elif operation == "note":
        pair.note(key, number + chance.randrange(-5, 5), {"year": chance.randrange(1999, 2003)})
    elif operation == "maintain":
        pair.index.maintain()
        pair.agree(chance)
    elif operation == "reopen":
        pair.index.close()
        pair.reopen()
    elif operation == "crash":
        # What another process would find now; this one's lock does not matter there.
        left = pair.folder.parent / f"index-{number + 1}"
        shutil.copytree(pair.folder, left)
        pair.index.close()
        pair.folder = left
        pair.reopen()


def _put(pair: Pair, chance: random.Random, key: str, number: int) -> None:
    kind = chance.choice(["a", None, ["a", "b"], True])
    filters = {"year": chance.randrange(1999, 2003), "kind": kind}
    vectors = unit_rows(chance, chance.choice([1, 1, 2, 5, 11]))
    counter = max(0, number + chance.randrange(-3, 4))
    pair.put(key, record(vectors, counter, filters, f"t{chance.random()}"))  # type: ignore[arg-type]


def test_a_redelivery_never_shows_an_older_state(tmp_path: Path) -> None:
    index = open_index(None, "s", DIMENSION, [])
    first, second = unit_rows(random.Random(1), 2)[:, None]
    records = [Placed(0, 0, "a", record(first, 1)), Placed(0, 1, "a", None), Placed(0, 2, "a", record(second, 1))]
    index.apply(records)
    index.apply(records)
    index.apply([Placed(1, 0, "b", record(first, 5)), Placed(1, 1, "b", record(second, 4))])
    assert len(index) == 2
    assert index.positions() == {0: 3, 1: 2}
    found = index.vectors_of("a")
    assert found is not None and found.vectors == second.astype("<f4").tobytes()
    found = index.vectors_of("b")
    assert found is not None and found.counter == 4, "the last one counts, as in the compacted topic"
    index.close()


def test_a_vector_that_is_no_number_hides_its_bundle_only(caplog: pytest.LogCaptureFixture) -> None:
    index = open_index(None, "s", DIMENSION, [])
    good = unit_rows(random.Random(1), 1)
    for counter, value in enumerate((float("nan"), float("inf"), 0.0)):
        index.apply([Placed(0, 3 * counter, "a", record(good, counter)), Placed(0, 3 * counter + 1, "b", record(good))])
        assert [hit.key for hit in index.search(good[0], 5)] == ["a", "b"]
        index.apply([Placed(0, 3 * counter + 2, "a", record(numpy.full((1, DIMENSION), value), counter))])
        assert [hit.key for hit in index.search(good[0], 5)] == ["b"]
    assert index.unusable == 3 and "'a'" in caplog.text
    index.close()


def test_vectors_of_another_length_are_compared_by_angle() -> None:
    index = open_index(None, "s", DIMENSION, [])
    good = unit_rows(random.Random(1), 1)
    index.apply([Placed(0, 0, "a", record(7 * good))])
    assert index.search(3 * good[0], 1)[0].score == pytest.approx(1)
    index.close()


@pytest.mark.parametrize(
    ("k", "vector", "conditions", "says"),
    [
        (0, [1.0] * DIMENSION, [], "k is 1 to 1,000, not 0"),
        (1_000_000, [1.0] * DIMENSION, [], "not 1,000,000"),
        (1, [1.0] * (DIMENSION + 1), [], "8 dimensions"),
        (1, [float("nan")] * DIMENSION, [], "not finite"),
        (1, [0.0] * DIMENSION, [], "all zeros"),
        (1, [1.0] * DIMENSION, [Condition("color", "eq", "red")], "marks no field 'color'"),
        (0, [1.0], [Condition("color", "eq", "red")], "color.*k is.*dimensions"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    k: int, vector: list[float], conditions: list[Condition], says: str
) -> None:
    index = open_index(None, "s", DIMENSION, FIELDS)
    with pytest.raises(ValueError, match=says):
        index.search(numpy.array(vector, dtype=numpy.float32), k, conditions)
    index.close()


def test_few_rows_of_a_filter_are_found_in_a_large_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_here(monkeypatch)
    pair, chance = Pair(tmp_path), random.Random(3)
    for number in range(120):
        filters = {"year": 1990 if number % 40 == 0 else 2000 + number, "kind": [f"n{number}", "all"]}
        pair.put(f"k{number}", record(unit_rows(chance, 1), 1, filters))  # type: ignore[arg-type]
    pair.index.maintain()
    assert any(segment.index is not None for segment in pair.index.view)
    for condition in (
        Condition("year", "eq", 1990),
        Condition("year", "lt", 2010),
        Condition("year", "ge", 2100),
        Condition("kind", "eq", "n77"),
        Condition("kind", "in", ["n1", "n2", "nowhere"]),
        Condition("kind", "eq", "all"),
        Condition("year", "eq", None),
    ):
        query = unit_rows(chance, 1)[0]
        same_hits(pair.index.search(query, 10, [condition]), pair.reference.search(query, 10, [condition]))
    pair.index.close()


VALUES: list[Any] = [None, True, False, 0, 1, 1.5, 2**60, 2**60 + 1, 2**64 - 1, "", "a", "b", "1", ["a", 1], [], [True]]


@pytest.mark.parametrize("comparison", ["eq", "in", "lt", "le", "gt", "ge"])
def test_conditions_on_values_of_every_kind(comparison: Any, tmp_path: Path) -> None:
    pair, chance = Pair(tmp_path), random.Random(4)
    for number, value in enumerate([*VALUES, *VALUES]):
        pair.put(f"k{number}", record(unit_rows(chance, 1), 1, {"year": value}))
        if number % 3 == 0:
            pair.put(f"k{number}", record(unit_rows(chance, 1), 2, {"year": VALUES[-1]}))
            pair.put(f"k{number}", record(unit_rows(chance, 1), 3, {"year": value}))
    query, single = unit_rows(chance, 1)[0], [10**400, *(value for value in VALUES if not isinstance(value, list))]
    asked = {"eq": single, "in": [[value, "a"] for value in single]}.get(comparison)
    for value in asked or [value for value in single if value is not None and not isinstance(value, bool)]:
        condition = Condition("year", comparison, value)
        same_hits(pair.index.search(query, 100, [condition]), pair.reference.search(query, 100, [condition]))
    pair.index.close()
