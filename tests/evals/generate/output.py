"""Output cases: answers to film questions by the data, and models that say what the context does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.evals.generate import departures
from tests.evals.generate.asking import (
    BUNDLES,
    FILM_FIELDS,
    decided,
    film_asks,
    film_checks,
    gate_checks,
)
from tests.evals.generate.departures import Departure
from tests.evals.generate.films import Film
from tests.evals.generate.values import CaseLine, case, check

Said = dict[str, Any]
SUBJECTS = ("director", "year", "runtime", "metacritic", "gap", "good", "newest", "plot")


def cases() -> Iterator[CaseLine]:
    for number, film in enumerate(departures.asked_films()[10:42]):
        yield _film(film, SUBJECTS[number % len(SUBJECTS)])
    for name, (why, _) in LIES.items():
        for departure in _lied_to(name):
            yield _refused(name, why, departure)
    for name, (why, _) in FILM_LIES.items():
        for film in departures.asked_films()[:2]:
            yield _film_refused(name, why, film)


def raw_files() -> dict[str, Said]:
    """What models say in these cases, as bodies of answers, by path."""
    found = {}
    for name, (_, lie) in LIES.items():
        for departure in _lied_to(name):
            found[_raw(name, departure.key)] = _completion(lie(departure))
    for name, (_, film_lie) in FILM_LIES.items():
        for film in departures.asked_films()[:2]:
            found[_raw(name, str(film.key))] = _completion(film_lie(film))
    return found


def _film(film: Film, about: str) -> CaseLine:
    newest = departures.film_bundles()[str(film.key)]["same_director"][0]
    return case(
        f"output/film/{film.key}-{about}",
        "output",
        "answers say what the data says, to the number, and admit what it does not say",
        f"film-{film.key}",
        film_checks(film, about, newest),
        context=BUNDLES,
        input=film_asks(film, about),
    )


def _refused(name: str, why: str, departure: Departure) -> CaseLine:
    """All that may come of it is what the rules say; of very late flights a person's word."""
    rules = departure.decision(stale=True)
    people = departure.delay is not None and departure.delay >= departures.VERY_LATE
    wanted = decided({"decision": "ask_staff", "minutes": None, "flight_id": None} if people else rules)
    checks = wanted if people else [*wanted, *gate_checks(departure)[3:6]]
    raw = f"raw:{_raw(name, departure.key)}"
    return case(
        f"output/{name}/{departure.key}",
        "output",
        why,
        departure.group,
        [*checks, check("equals", "rules", path="/answered_by"), check("rung", ["primary", "primary"])],
        context=BUNDLES,
        input=departure.asks(),
        conditions={"answers": {"large": [raw]}},
    )


def _film_refused(name: str, why: str, film: Film) -> CaseLine:
    return case(
        f"output/{name}/{film.key}",
        "output",
        why,
        f"film-{film.key}",
        [
            *film_checks(film, "year", {}),
            check("fields_allowed", FILM_FIELDS),
            check("equals", "rules", path="/answered_by"),
        ],
        context=BUNDLES,
        input=film_asks(film, "year"),
        conditions={"answers": {"large": [f"raw:{_raw(name, str(film.key))}"]}},
    )


def _lied_to(name: str) -> tuple[Departure, ...]:
    return departures.very_late()[:3] if name in ("no-seat", "own-flight") else departures.late()[:3]


def _raw(name: str, key: str) -> str:
    return f"raw/{name}-{key}.json"


def _announce(departure: Departure, **more: Any) -> Said:
    said = {**departure.decision(stale=True), "message": "The flight is late."}
    return {**said, "citations": [_cite(departure, "/dep_delay", departure.delay)], **more}


def _cite(departure: Departure, pointer: str, value: Any) -> Said:
    return {"source": f"flight/{departure.key}", "pointer": pointer, "value": value}


def _other_flight(departure: Departure) -> Said:
    return {"source": "flight/1", "pointer": "/dep_delay", "value": departure.delay}


LIES: dict[str, tuple[str, Callable[[Departure], Said]]] = {
    "wrong-value": (
        "a citation with another value than the context has is a made-up one",
        lambda one: _announce(one, citations=[_cite(one, "/dep_delay", (one.delay or 0) + 60)]),
    ),
    "no-such-place": (
        "a citation of a place that the context does not have is a made-up one",
        lambda one: _announce(one, citations=[_cite(one, "/delay_minutes", one.delay)]),
    ),
    "not-seen": (
        "what was not looked up can't be cited",
        lambda one: _announce(one, citations=[_other_flight(one)]),
    ),
    "no-minutes": (
        "an announcement without minutes says nothing",
        lambda one: _announce(one, minutes=None),
    ),
    "no-seat": (
        "nobody is moved to a flight that is not among those with seats",
        lambda one: _announce(one, decision="rebook", minutes=None, flight_id=1),
    ),
    "own-flight": (
        "nobody is moved to the flight that is late",
        lambda one: _announce(one, decision="rebook", minutes=None, flight_id=one.row["flight_id"]),
    ),
}
FILM_LIES: dict[str, tuple[str, Callable[[Film], Said]]] = {
    "film-wrong-year": (
        "a year that is not the film's does not pass because it is cited",
        lambda film: _film_said("1899", 1899, [_cite_film(film, "/year", 1899)]),
    ),
    "film-empty": (
        "an answer that is known is not empty",
        lambda film: _film_said("", None, [_cite_film(film, "/year", film.omdb["year"])]),
    ),
    "film-of-another": (
        "what is cited of another film is not looked up, and not taken",
        lambda film: _film_said("1990", 1990, [{"source": "film/1", "pointer": "/year", "value": 1990}]),
    ),
}


def _film_said(text: str, number: float | None, cited: list[Said]) -> Said:
    return {"known": True, "answer": text, "number": number, "citations": cited}


def _cite_film(film: Film, pointer: str, value: Any) -> Said:
    return {"source": f"film/{film.key}", "pointer": pointer, "value": value}


def _completion(said: Said) -> Said:
    message = {"role": "assistant", "content": json.dumps(said, ensure_ascii=False)}
    return {
        "id": "chatcmpl-raw",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "rules-large",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 60, "total_tokens": 260},
    }
