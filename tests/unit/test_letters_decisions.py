"""Decisions on dead letters add up: the last one counts, and only for letters that were there before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.streams.decisions import OPEN, Decision, Verdicts, decode_decision, encode_decision, ranges_of, total

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), min_size=1, max_size=4)
OUTCOMES = st.sampled_from(["applied", "asked", "failed", "discarded"])


@given(st.lists(st.tuples(OUTCOMES, RANGES), max_size=12))
def test_the_last_decision_on_a_letter_counts(made: list[tuple[str, list[tuple[int, int]]]]) -> None:
    verdicts, known = Verdicts(), {}
    for at_ms, (outcome, spans) in enumerate(made, 10):
        numbers = {first + step for first, length in spans for step in range(length + 1)}
        decision = Decision(outcome=outcome, numbers=ranges_of(numbers), at_ms=at_ms)  # type: ignore[arg-type]
        assert total(decision.numbers) == len(numbers)
        verdicts.add(decision)
        known.update(dict.fromkeys(numbers, decision))
    for number in range(50):
        assert verdicts.of(number, 0) == known.get(number)
        closed = [one for one, decision in known.items() if one < number and decision.outcome not in OPEN]
        assert verdicts.closed_below(number) == len(closed)
        waits = [n for n in range(number, 50) if n not in known or known[n].outcome in OPEN]
        assert verdicts.first_open(number, 50) == waits[0] and verdicts.first_open(number, number) is None


def test_what_was_decided_of_a_topic_that_is_gone_says_nothing_of_a_new_one() -> None:
    verdicts = Verdicts()
    verdicts.add(Decision(outcome="discarded", numbers=[(0, 9)], at_ms=1_000))
    assert verdicts.of(3, 1_000) is not None and verdicts.of(3, 1_001) is None


def test_decisions_travel_and_the_same_letters_have_the_same_key() -> None:
    first = Decision(outcome="failed", numbers=[(7, 7)], at_ms=1, by="ann", why="x" * 5_000, attempts=2)
    ((key, value),) = encode_decision(first)
    assert key == b"7-7" and len(decode_decision(value).why) == 2_000 and decode_decision(value).attempts == 2
    many = Decision(outcome="applied", numbers=[(number, number) for number in range(0, 2_400, 2)], at_ms=1)
    parts = list(encode_decision(many))
    assert len(parts) == 3 and len({key for key, _ in parts}) == 3 and parts == list(encode_decision(many))
    assert [pair for _, value in parts for pair in decode_decision(value).numbers] == many.numbers
    with pytest.raises(ValueError, match="not a decision"):
        decode_decision(b'{"outcome": "lost", "numbers": [], "at_ms": 1}')
