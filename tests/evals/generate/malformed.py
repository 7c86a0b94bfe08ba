"""Malformed cases: every fault that endpoints are known for, on the first of them, on all, and once before it mends."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

from tests.evals.generate import departures
from tests.evals.generate.asking import BUNDLES, film_asks, gate_checks
from tests.evals.generate.departures import Departure
from tests.evals.generate.values import CaseLine, case, check

# What each fault is, as a caller has to be told; whether it may be gone at the second try; what follows it at once is
# the local model for rate limits, another provider for everything else.
RETRIED, FINAL, PAUSED = "retried", "final", "paused"
FAULTS: dict[str, tuple[str, str]] = {
    "hang": ("timeout", RETRIED),
    "hang_after_headers": ("timeout", RETRIED),
    "drip": ("timeout", RETRIED),
    "gigabyte": ("too_large", FINAL),
    "gigabyte_told": ("too_large", FINAL),
    "cut": ("cut", RETRIED),
    "close": ("reset", RETRIED),
    "reset": ("reset", RETRIED),
    "garbage": ("protocol", RETRIED),
    "compressed": ("protocol", RETRIED),
    "html": ("content_type", RETRIED),
    "html_as_json": ("not_an_answer", RETRIED),
    "wrong_type": ("content_type", RETRIED),
    "redirect": ("redirect", FINAL),
    "bad_request": ("refused", FINAL),
    "unauthorized": ("refused", FINAL),
    "error_500": ("server_error", RETRIED),
    "error_503": ("server_error", RETRIED),
    "rate_limited": ("rate_limited", PAUSED),
    "rate_limited_absurd": ("rate_limited", PAUSED),
    "rate_limited_negative": ("rate_limited", PAUSED),
    "rate_limited_past": ("rate_limited", PAUSED),
    "rate_limited_far": ("rate_limited", PAUSED),
    "rate_limited_nonsense": ("rate_limited", PAUSED),
    "empty": ("not_an_answer", RETRIED),
    "no_choices": ("not_an_answer", RETRIED),
    "truncated": ("invalid_output", FINAL),
    "length": ("invalid_output", FINAL),
    "tool_call": ("invalid_output", FINAL),
    "truncated_tool_call": ("invalid_output", FINAL),
    "unknown_fields": ("invalid_output", FINAL),
    "prose": ("invalid_output", FINAL),
    "two_values": ("invalid_output", FINAL),
    "duplicate_key": ("invalid_output", FINAL),
    "not_a_number": ("invalid_output", FINAL),
    "too_deep": ("invalid_output", FINAL),
    "refusal": ("model_refused", FINAL),
    "filtered": ("model_refused", FINAL),
    "unreachable": ("unreachable", RETRIED),
    "unresolved": ("unresolved", RETRIED),
    "expired_tls": ("tls", FINAL),
}
OF_WHAT_IT_SAID = ("truncated", "length", "two_values")
"""Faults that spoil a good answer: an endpoint has to have one, so these are for the first endpoint alone."""
DEADLINE_MS = 3_000
LATE_BY_MS_MAX = 50


def cases() -> Iterator[CaseLine]:
    asked = cycle([*departures.late()[:12], *departures.on_time()[8:16]])
    for fault, departure in zip(FAULTS, asked, strict=False):
        yield _first(fault, departure)
    mended = [fault for fault, (_, then) in FAULTS.items() if then == RETRIED][::2]
    for fault, departure in zip(mended, asked, strict=False):
        yield _once(fault, departure)
    everywhere = [fault for fault in FAULTS if fault not in OF_WHAT_IT_SAID][::3]
    for number, (fault, departure) in enumerate(zip(everywhere, asked, strict=False)):
        yield _people(fault, number) if number % 4 == 3 else _all(fault, departure)
    yield from _words_around()


def _first(fault: str, departure: Departure) -> CaseLine:
    reason, then = FAULTS[fault]
    answers = {"large": [fault]}
    if then == PAUSED:
        answers["local"] = ["error_503"]
    return case(
        f"malformed/first/{fault}",
        "malformed",
        f"{fault} of one provider is answered by another, and the reason is told",
        departure.group,
        [
            *gate_checks(departure),
            check("rung", "other"),
            check("reason", reason),
            check("took_ms_max", DEADLINE_MS + LATE_BY_MS_MAX),
        ],
        context=BUNDLES,
        input=departure.asks(deadline_ms=DEADLINE_MS),
        conditions={"answers": answers},
    )


def _once(fault: str, departure: Departure) -> CaseLine:
    reason, _ = FAULTS[fault]
    return case(
        f"malformed/once/{fault}",
        "malformed",
        f"{fault} that is gone at the next try costs a moment, and no other provider",
        departure.group,
        [*gate_checks(departure), check("rung", "retry"), check("reason", reason), check("calls_max", {"model": 1})],
        context=BUNDLES,
        input=departure.asks(deadline_ms=DEADLINE_MS),
        conditions={"answers": {"large": [fault, "recorded"]}},
    )


def _all(fault: str, departure: Departure) -> CaseLine:
    return case(
        f"malformed/all/{fault}",
        "malformed",
        f"when all models answer with {fault}, the application's rules decide, and say so",
        departure.group,
        [
            *gate_checks(departure),
            check("rung", "deterministic"),
            check("reason", FAULTS[fault][0]),
            check("equals", "deterministic", path="/answered_by"),
            check("took_ms_max", DEADLINE_MS + LATE_BY_MS_MAX),
        ],
        context=BUNDLES,
        input=departure.asks(deadline_ms=DEADLINE_MS),
        conditions={"answers": {name: [fault] for name in ("large", "other", "local")}},
    )


def _people(fault: str, number: int) -> CaseLine:
    film = departures.asked_films()[20 + number]
    return case(
        f"malformed/people/{fault}",
        "malformed",
        f"when all models answer with {fault} and no rule fits, a person is asked, and nothing is guessed",
        f"film-{film.key}",
        [
            check("rung", "escalated"),
            check("reason", FAULTS[fault][0]),
            check("escalated", True),
            check("equals", False, path="/known"),
            check("equals", "", path="/answer"),
            check("took_ms_max", DEADLINE_MS + LATE_BY_MS_MAX),
        ],
        context=BUNDLES,
        input=film_asks(film, "gap", deadline_ms=DEADLINE_MS),
        conditions={"answers": {name: [fault] for name in ("large", "other", "local")}},
    )


def _words_around() -> Iterator[CaseLine]:
    """A fence around a good answer is no fault."""
    for departure in departures.late()[12:15]:
        yield case(
            f"malformed/fenced/{departure.key}",
            "malformed",
            "words around the one JSON value are dropped, and nothing inside it is touched",
            departure.group,
            [*gate_checks(departure), check("rung", "primary"), check("reason", "")],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"answers": {"large": ["fenced"]}},
        )
