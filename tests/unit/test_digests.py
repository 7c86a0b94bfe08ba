"""Digests of key sets: order never counts, each pair does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.digests import KeySetDigest, pair_digest

PAIRS = st.dictionaries(st.text(max_size=5), st.text("0123456789abcdef", max_size=4), max_size=10)


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_adding_does_not_count(pairs: dict[str, str], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(pairs.items())
    random.shuffle(shuffled)
    one, other = KeySetDigest(), KeySetDigest()
    for key, text_hash in pairs.items():
        one.add(key, text_hash)
    for key, text_hash in shuffled:
        other.add(key, text_hash)
    assert one == other
    assert one.hex() == other.hex()


@given(PAIRS, PAIRS)
def test_sets_are_told_apart(one: dict[str, str], other: dict[str, str]) -> None:
    digests = [KeySetDigest(), KeySetDigest()]
    for digest, pairs in zip(digests, (one, other), strict=True):
        for key, text_hash in pairs.items():
            digest.add(key, text_hash)
    assert (digests[0] == digests[1]) == (one == other)


@given(PAIRS)
def test_what_is_taken_out_leaves_nothing(pairs: dict[str, str]) -> None:
    digest = KeySetDigest()
    for key, text_hash in pairs.items():
        digest.replace(key, None, text_hash)
    for key, text_hash in pairs.items():
        digest.replace(key, text_hash, None)
    assert digest == KeySetDigest()
    assert digest.hex() == f"0-{0:032x}"


def test_key_and_text_do_not_run_into_each_other() -> None:
    assert pair_digest("ab", "c") != pair_digest("a", "bc")
