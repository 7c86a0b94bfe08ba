"""Lexical search over real tantivy: what is found, by which words, under which conditions, what never comes back."""

from __future__ import annotations

import random
import threading

import pytest

from pipeline.stores.conditions import meets
from pipeline.stores.lexical import LexicalIndex
from pipeline.stores.spaces import Condition, PlacedText
from schemas.digests import KeySetDigest
from schemas.vectors import FilterValue, TextRecord, hash_text

Filters = dict[str, FilterValue | list[FilterValue]]


def record(text: str, counter: int = 1, filters: Filters | None = None) -> TextRecord:
    return TextRecord(
        space="s", counter=counter, bundle_hash="b", text_hash=hash_text(text), text=text, filters=filters or {}
    )


class Log:
    """Places records at the next offset of partition 0."""

    def __init__(self, index: LexicalIndex) -> None:
        self.index, self.offset = index, 0

    def put(self, key: str, text: str, counter: int = 1, filters: Filters | None = None) -> PlacedText:
        return self.place(key, record(text, counter, filters))

    def place(self, key: str, placed_record: TextRecord | None) -> PlacedText:
        placed = PlacedText(0, self.offset, key, placed_record)
        self.offset += 1
        self.index.apply([placed])
        return placed


@pytest.fixture
def index() -> LexicalIndex:
    return LexicalIndex(["carrier", "year", "tags", "leased"])


def keys(index: LexicalIndex, text: str, *conditions: Condition, k: int = 10) -> list[str]:
    index.refresh()
    return [key for key, _ in index.search(text, k, conditions)]


def test_words_are_joined_by_or_and_rare_ones_weigh_more(index: LexicalIndex) -> None:
    log = Log(index)
    log.put("a", "A wide-body plane of Zürich")
    log.put("b", "A plane")
    log.put("c", "Something else")
    assert keys(index, "WIDE planes from zurich") == ["a", "b"]
    best, second = index.search("zurich plane", 2)
    assert best[1] > second[1] > 0


@pytest.mark.parametrize(
    "text",
    ["", " ", "AND OR", '"', "a:b", "(", "field:[* TO", "+-!^~*?\\/", "\x00", "\ud800", "x" * 10_000, "a " * 9_999],
)
def test_no_text_is_a_mistake(index: LexicalIndex, text: str) -> None:
    Log(index).put("a", "plane")
    assert keys(index, text) in ([], ["a"])


def test_signs_of_east_asian_languages_are_words(index: LexicalIndex) -> None:
    log = Log(index)
    log.put("haneda", "東京国際空港")
    log.put("narita", "成田国際空港")
    assert keys(index, "東京") == ["haneda"]


def test_a_replaced_text_is_found_by_its_new_words_only(index: LexicalIndex) -> None:
    log = Log(index)
    log.put("a", "old words", 1)
    assert keys(index, "old") == ["a"]
    log.put("a", "new words", 2)
    assert (keys(index, "old"), keys(index, "new")) == ([], ["a"])
    log.put("a", "late words", 1)
    assert (keys(index, "late"), keys(index, "new")) == (["a"], []), "the last one counts, as in the compacted topic"
    assert index.text_of("a") == "late words"


def test_a_deletion_is_seen_before_the_refresh_and_nothing_resurrects(index: LexicalIndex) -> None:
    log = Log(index)
    first = log.put("a", "plane", 5)
    assert keys(index, "plane") == ["a"]
    log.place("a", None)
    assert index.search("plane", 10) == []
    index.apply([first])  # a repetition of what was applied
    assert keys(index, "plane") == [] and index.text_of("a") is None and len(index) == 0
    log.put("a", "plane again", 1)
    assert keys(index, "plane") == ["a"]


def test_texts_are_known_before_and_after_the_refresh(index: LexicalIndex) -> None:
    log = Log(index)
    log.put("a|1", "half a pair \ud800 and é")
    assert index.text_of("a|1") == "half a pair \ud800 and é"
    index.refresh()
    assert index.text_of("a|1") == "half a pair \ud800 and é" and index.pending == 0
    assert index.text_of("b") is None


def test_an_empty_text_is_no_text(index: LexicalIndex) -> None:
    log = Log(index)
    log.put("a", "plane", 1)
    log.put("a", "", 2)
    assert keys(index, "plane") == [] and len(index) == 0


def test_positions_are_behind_what_was_applied(index: LexicalIndex) -> None:
    index.apply([PlacedText(0, 7, "a", record("x")), PlacedText(3, 1, "b", None)])
    assert index.positions() == {0: 8, 3: 2}


def test_the_digest_is_that_of_the_living_texts(index: LexicalIndex) -> None:
    log, randomness = Log(index), random.Random(5)
    expected: dict[str, str] = {}
    for number in range(300):
        key = f"k{randomness.randrange(40)}"
        if randomness.random() < 0.3:
            log.place(key, None)
            expected.pop(key, None)
        else:
            log.put(key, f"text {number}", number)
            expected[key] = hash_text(f"text {number}")
    digest = KeySetDigest()
    for key, text_hash in expected.items():
        digest.add(key, text_hash)
    assert index.digest() == digest
    assert sorted(keys(index, "text", k=100)) == sorted(expected)


VALUES: list[Filters] = [
    {"carrier": "DL", "year": 1988, "tags": ["old", 7], "leased": True},
    {"carrier": "dl", "year": 1990.5, "tags": [], "leased": 1},
    {"carrier": None, "year": None, "tags": [None, "x"], "leased": False},
    {"carrier": "UA", "year": "1988", "tags": "old"},
    {"carrier": "Ü" * 300, "year": 2**60 + 1},
    {"carrier": "", "year": -(10**400), "leased": 0},
]
CONDITIONS = [
    Condition("carrier", "eq", "DL"),
    Condition("carrier", "eq", None),
    Condition("carrier", "eq", "Ü" * 300),
    Condition("carrier", "in", ["DL", "UA", None]),
    Condition("carrier", "in", []),
    Condition("carrier", "lt", "DL"),
    Condition("carrier", "ge", "DL"),
    Condition("year", "le", 1990.5),
    Condition("year", "lt", 1990.5),
    Condition("year", "gt", 1988),
    Condition("year", "eq", 1988.0),
    Condition("year", "eq", 2**60),
    Condition("year", "le", 2**60),
    Condition("year", "gt", 2**60),
    Condition("year", "lt", "2"),
    Condition("tags", "eq", "old"),
    Condition("tags", "in", [7, "x"]),
    Condition("tags", "eq", None),
    Condition("tags", "gt", "a"),
    Condition("leased", "eq", True),
    Condition("leased", "eq", 1),
    Condition("leased", "lt", 1),
]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda one: f"{one.field} {one.comparison} {str(one.value)[:20]}")
def test_conditions_narrow_as_their_definition_says(index: LexicalIndex, condition: Condition) -> None:
    log = Log(index)
    for number, values in enumerate(VALUES):
        log.put(str(number), "plane", 1, values)
    expected = [str(number) for number, values in enumerate(VALUES) if meets([condition], values)]
    assert sorted(keys(index, "plane", condition)) == expected


def test_a_value_that_changed_without_its_text_counts(index: LexicalIndex) -> None:
    log = Log(index)
    log.put("a", "plane", 1, {"year": 1988})
    log.put("a", "plane", 2, {"year": 2000})
    assert keys(index, "plane", Condition("year", "lt", 1990)) == []
    assert keys(index, "plane", Condition("year", "ge", 1990)) == ["a"]


@pytest.mark.parametrize(
    ("k", "condition", "said"),
    [
        (0, Condition("year", "eq", 1), "k is 1 to 1,000, not 0"),
        (1_000_000, Condition("year", "eq", 1), "not 1,000,000"),
        (1, Condition("seats", "eq", 1), "marks no field 'seats'"),
        (1, Condition("year", "in", 1), "in takes a list"),
        (1, Condition("year", "lt", [1]), "lt takes a single value"),
        (1, Condition("year", "lt", None), "compares numbers or texts"),
    ],
)
def test_what_cannot_be_searched_is_refused(index: LexicalIndex, k: int, condition: Condition, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        index.search("plane", k, [condition])


def test_many_deleted_ones_hide_nobody(index: LexicalIndex) -> None:
    log = Log(index)
    for number in range(200):
        log.put(f"gone{number}", "plane plane plane")
    log.put("here", "a plane among other things")
    index.refresh()
    for number in range(200):
        log.place(f"gone{number}", None)
    assert [key for key, _ in index.search("plane", 1)] == ["here"]


def test_searches_run_beside_changes(index: LexicalIndex) -> None:
    log, stop, failures = Log(index), threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            try:
                for key, _ in index.search("plane", 50, [Condition("carrier", "ge", "c1")]):
                    index.text_of(key)
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(2_000):
        log.put(f"k{number % 100}", f"plane {number}", number, {"carrier": f"c{number % 50}"})
        if number % 50 == 0:
            index.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == [] and len(index) == 100
