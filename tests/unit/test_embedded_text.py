"""From a bundle to the text that is embedded and the values that a search is narrowed by."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.core.errors import Poison
from pipeline.embedded_text import FILTER_CHARACTERS_MAX, FILTER_VALUES_MAX, EmbeddedText, TextMaker
from pipeline.stores.store import Fetched
from pipeline.text import TEXT_CHARACTERS_MAX, decode_bundle
from schemas.bundle import FragmentReference, Meta, SourceState, Stored
from schemas.vectors import TextRecord, encode_text, hash_text

EMPTY = {"author": b"null"}
MARKED = ("year", "author.country", "lines.colour")


def fetched(body: bytes, time_us: int = 5) -> Fetched:
    return Fetched(Stored(1, Meta("h", 1, {"shop": SourceState("1", time_us)}), body), {})


def make(values: Any, template: str = "{{ title }}", filters: tuple[str, ...] = ()) -> EmbeddedText:
    body = values if isinstance(values, bytes) else json.dumps(values).encode()
    return TextMaker(template, filters, EMPTY).make(fetched(body))


def linked(fragment: Stored | None, traced: tuple[str, ...] = ("author",)) -> tuple[TextMaker, Fetched]:
    body = b'{"title":"a","author":}'
    meta = Meta("h", 1, {"shop": SourceState("1", 5)}, [FragmentReference(len(body) - 1, "author", "7")])
    fragments = {} if fragment is None else {("author", "7"): fragment}
    maker = TextMaker("{{ title }} by {{ author.name }}", (), EMPTY, traced)
    return maker, Fetched(Stored(1, meta, body), fragments)


def test_a_text_has_its_hash_and_the_time_of_its_newest_change() -> None:
    made = make({"title": " a title \n"})
    assert (made.text, made.text_hash, made.commit_time_us) == ("a title", hash_text("a title"), 5)
    assert (made.filters, made.filters_hash, made.characters_cut) == ({}, "", 0)


def test_a_linked_section_is_part_of_the_text() -> None:
    meta = Meta("f", 1, {"shop": SourceState("2", 9)})
    maker, found = linked(Stored(3, meta, b'{"name":"Woolf"}'))
    made = maker.make(found)
    assert (made.text, made.commit_time_us) == ("a by Woolf", 9), "as new as the fragment"
    assert found.bundle is not None and maker.looks_elsewhere(found.bundle)


@pytest.mark.parametrize("fragment", [None, Stored(3, None, b"")])
def test_a_fragment_that_is_not_there_is_nothing(fragment: Stored | None) -> None:
    maker, found = linked(fragment)
    assert maker.make(found).text == "a by"


def test_a_link_that_the_text_does_not_show_is_not_looked_at() -> None:
    maker, found = linked(None, traced=())
    assert found.bundle is not None and not maker.looks_elsewhere(found.bundle)


@pytest.mark.parametrize("values", [{"title": None}, {"title": " \n\t "}, {}])
def test_an_empty_text_has_no_hash_and_no_filters_to_send(values: dict[str, Any]) -> None:
    made = make({**values, "year": 1}, filters=("year",))
    assert (made.text, made.text_hash, made.filters_hash) == ("", "", "")


def test_a_text_of_5_megabytes_is_cut_and_what_is_cut_is_counted() -> None:
    made = make({"title": "é" * 5_000_000})
    assert len(made.text) == TEXT_CHARACTERS_MAX == 1_000_000
    assert made.characters_cut == 4_000_000 and made.text_hash == hash_text(made.text)


def test_a_template_that_fails_is_poison() -> None:
    with pytest.raises(Poison, match="the text template fails on this bundle: unsupported operand"):
        make({"price": None}, "{{ price + 1 }}")


def test_values_to_narrow_by_are_found_at_their_paths() -> None:
    values = {
        "year": 1988,
        "author": {"country": "UK"},
        "lines": [{"colour": "red"}, {"colour": None}, {"colour": "blue"}, {"colour": "red"}, {}],
    }
    made = make(values, "x", MARKED)
    assert made.filters == {"year": 1988, "author.country": "UK", "lines.colour": ["blue", "red"]}
    assert made.filters_hash == make({**values, "title": "other"}, "x", MARKED).filters_hash
    assert made.filters_hash != make({**values, "year": 1989}, "x", MARKED).filters_hash
    assert make({"author": None, "lines": []}, "x", MARKED).filters == {
        "year": None, "author.country": None, "lines.colour": []
    }  # fmt: skip


def test_values_of_different_types_are_told_apart() -> None:
    made = make({"lines": [{"colour": value} for value in (1, True, 1.0, "1", 0, False)]}, "x", MARKED)
    assert len(made.filters["lines.colour"]) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"year": {"from": 1}}, "the filter year is a section; name one of its fields, as year.from"),
        ({"year": "x" * (FILTER_CHARACTERS_MAX + 1)}, "a value of 1,001 characters; at most 1,000"),
        ({"lines": [{"colour": n} for n in range(FILTER_VALUES_MAX + 1)]}, "has 1,001 values; at most 1,000"),
        ({"year": 1 << 64}, "the filter year has a whole number of more than 64 bits"),
        ({"year": -(1 << 63) - 1}, "more than 64 bits"),
    ],
)
def test_what_is_no_value_to_narrow_by_is_poison(values: dict[str, Any], said: str) -> None:
    with pytest.raises(Poison, match=said):
        make({"title": "t", **values}, filters=MARKED)


@pytest.mark.parametrize("year", [(1 << 64) - 1, -(1 << 63), 1e308, True, "ü\u2028"])
def test_every_other_value_can_travel(year: Any) -> None:
    made = make({"title": "t", "year": year}, filters=("year",))
    record = TextRecord(space="s", counter=1, bundle_hash="h", text_hash="t", text="t", filters=made.filters)
    assert encode_text(record)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (rb'{"title":"a\ud800b","j":[1]}', "a?b"),
        (b'{"title":"t","j":1e400}', "t"),
        (b'{"title":"t","j":123456789012345678901234567890}', "t"),
        (b'{"title":"\\u0000\\ud83d\\ude00"}', "\x00\U0001f600"),
    ],
)
def test_json_that_others_do_not_read_makes_a_text_all_the_same(body: bytes, text: str) -> None:
    made = make(body)
    assert made.text == text
    assert encode_text(TextRecord(space="s", counter=1, bundle_hash="h", text_hash=made.text_hash, text=made.text))


@pytest.mark.parametrize("body", [b"[" * 5000 + b"]" * 5000, b'{"title":' + b"[" * 2000 + b"]" * 2000 + b"}", b"{"])
def test_json_that_nobody_reads_is_poison(body: bytes) -> None:
    with pytest.raises(Poison, match="the JSON in this bundle can't be read"):
        decode_bundle(body)
