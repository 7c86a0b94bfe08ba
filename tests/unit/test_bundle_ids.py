"""Bundle ids: there and back for whatever an answer is made from, short; anything else is refused in one sentence."""

from __future__ import annotations

import base64
import contextlib
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from pipeline.lookup.answer import Answer, hash_of
from pipeline.lookup.bundle_ids import BadId, BundleId, Shape, id_of, read_id, text_of
from pipeline.lookup.options import LookupOptions
from pipeline.lookup.principal import Principal
from pipeline.stores.store import Fetched
from schemas.bundle import FragmentReference, Meta, Stored

URL_SAFE = {*string.ascii_letters, *string.digits, "-", "_"}
NOW_US = 1_795_600_000_000_000
paths = some.none() | some.lists(some.text(min_size=1, max_size=20), max_size=5).map(tuple)
counters = some.integers(0, 10**16 - 1)


@some.composite
def ids(draw: some.DrawFn) -> BundleId:
    counter = draw(counters)
    one = some.none() | some.just(False) | counters.map(lambda other: other - counter)
    return BundleId(
        draw(some.integers(1, 999_999_999)),
        draw(some.text(max_size=50)),
        counter,
        tuple(draw(some.lists(one, max_size=20))),
        draw(some.binary(min_size=8, max_size=8)),
        Shape(draw(paths), draw(paths), draw(paths), draw(some.none() | some.integers(1, 10_000_000))),
    )


@given(ids())
def test_every_id_is_read_back(made: BundleId) -> None:
    text = text_of(made)
    assert read_id(text) == made and URL_SAFE.issuperset(text)


@given(some.text(max_size=200) | some.binary(max_size=100).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadId, match="is no bundle id; take it from the id of an answer"):
        read_id(text)


@given(ids(), some.data())
def test_no_other_text_stands_for_the_same(made: BundleId, data: some.DataObject) -> None:
    text = text_of(made)
    place = data.draw(some.integers(0, len(text) - 1))
    other = text[:place] + data.draw(some.sampled_from(sorted(URL_SAFE))) + text[place + 1 :]
    with contextlib.suppress(BadId):
        assert other == text or read_id(other) != made


def crafted(*fields: object) -> str:
    return base64.urlsafe_b64encode(b"\x01" + msgspec.msgpack.encode(list(fields))).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A" * 9000,
        crafted(0, "1", 1, [], b"x" * 8),
        crafted(1, "1", -1, [], b"x" * 8),
        crafted(1, "1", 5, [-6], b"x" * 8),
        crafted(1, "1", 5, [True], b"x" * 8),
        crafted(1, "1", 5, [1.0], b"x" * 8),
        crafted(1, "1", 5, [], b"short"),
        crafted(1, "1", 5, [], b"x" * 8, [None, None, None, 0]),
        crafted(1, "1", 5, [], b"x" * 8, [None, None, None, None]),
        crafted(1, "1", 5, [], b"x" * 8, [None, None, ["a"] * 101, None]),
        crafted(1, "1", 5, [], b"x" * 8, [None, None, None, None], "more"),
        crafted(1, 1, 5, [], b"x" * 8),
        base64.urlsafe_b64encode(b"\x02" + msgspec.msgpack.encode([1, "1", 5, [], b"x" * 8])).decode(),
        base64.urlsafe_b64encode(b"\x01" + b"\x91" * 5000).decode(),
    ],
)
def test_crafted_ids_are_refused(text: str) -> None:
    with pytest.raises(BadId):
        read_id(text)


def answer_of(bundle: bytes | None) -> Answer:
    digest = None if bundle is None else hash_of(bundle)
    return Answer(
        context="c", key="1", status="fresh", as_of_us={}, age_ms={}, spec_version=3, hash=digest, bundle=bundle
    )


def fetched_of(count: int) -> Fetched:
    references = [FragmentReference(n, "u", str(n)) for n in range(count)] + [FragmentReference(count, "u", None)]
    root = Stored(NOW_US, Meta("0" * 32, 3, {}, references * 2), b"{}")
    fragments = {("u", str(n)): Stored(NOW_US - 10**9 * n, Meta("0" * 32, 3), b"1") for n in range(count)}
    return Fetched(root, fragments)


def test_an_answers_id_names_its_parts_and_what_made_less_of_it() -> None:
    fetched = fetched_of(3)
    del fetched.fragments["u", "1"]
    fetched = msgspec.structs.replace(fetched, late=frozenset({("u", "2")}))
    principal = Principal("p", fields={"c": ("a", "b"), "other": ()})
    options = LookupOptions(budget_ms=5, sections=("s",), token_budget=9, principal=principal)
    text = id_of("1", fetched, options, answer_of(b"{}"))
    assert text is not None
    assert read_id(text) == BundleId(
        3, "1", NOW_US, (0, None, False), bytes.fromhex(hash_of(b"{}"))[:8], Shape(("a", "b"), ("s",), None, 9)
    )
    assert [read_id(text).counter_of(number) for number in range(3)] == [NOW_US, None, None]


def test_an_id_is_short() -> None:
    alone = id_of("UA|1545|2013-01-01", fetched_of(0), LookupOptions(), answer_of(b"{}"))
    linked = id_of("UA|1545|2013-01-01", fetched_of(5), LookupOptions(), answer_of(b"{}"))
    assert alone is not None and linked is not None and len(alone) <= 60 and len(linked) <= 120


def test_no_bundle_and_no_end_of_parts_have_no_id() -> None:
    assert id_of("1", Fetched(None, {}), LookupOptions(), answer_of(None)) is None
    assert id_of("1", fetched_of(1000), LookupOptions(), answer_of(b"{}")) is None
