"""Trace cases: which context was fetched, which models and tools were called, in which order, and what was decided."""

from __future__ import annotations

from collections.abc import Iterator

from tests.evals.generate import departures
from tests.evals.generate.asking import (
    BUNDLES,
    QUESTIONS,
    TOLD,
    asked_staff,
    fetched,
    film_asks,
    film_checks,
    gate_checks,
)
from tests.evals.generate.departures import Departure
from tests.evals.generate.values import CaseLine, case, check

MESSAGES = (
    "My bag did not come.",
    "I missed my connection to Chicago.",
    "When do we board?",
    "The flight was cancelled and I have to be in Boston now.",
    "A suitcase is broken.",
    "Where is gate B12?",
    "Our plane is late, who pays for the hotel?",
    "I left my phone on board, please help now",
)
ONE_MODEL = check("calls_max", {"model": 1})


def cases() -> Iterator[CaseLine]:
    yield from _gate(
        "on-time", departures.on_time(), "nobody is alarmed, and nothing done, for a flight that is on time"
    )
    yield from _gate("late", departures.late(), "passengers hear how late it will be, as it stands in the context")
    yield from _gate(
        "very-late", departures.very_late(), "passengers get the first flight that has seats for all, or none"
    )
    yield from _gate("late-others", departures.with_late_others(), "nobody is moved to a flight that is late itself")
    yield from _stale()
    yield from _films()
    yield from _found()
    yield from _not_theirs()
    yield from _desks()


def _gate(name: str, found: tuple[Departure, ...], why: str) -> Iterator[CaseLine]:
    for departure in found:
        yield case(
            f"trace/{name}/{departure.key}",
            "trace",
            why,
            departure.group,
            [
                check("context_fetched", fetched(departure)),
                *gate_checks(departure),
                check("rung", "primary"),
                check("reason", ""),
                ONE_MODEL,
            ],
            context=BUNDLES,
            input=departure.asks(),
        )


def _stale() -> Iterator[CaseLine]:
    """Twins of cases above, on the same bundles a minute later."""
    for departure in [*departures.very_late()[:8], *departures.late()[:3]]:
        yield case(
            f"trace/stale/{departure.key}",
            "trace",
            "on a context that may be out of date nobody is rebooked: that can't be taken back",
            departure.group,
            [
                check("context_fetched", fetched(departure, "stale")),
                *gate_checks(departure, stale=True),
                check("rung", "primary"),
                ONE_MODEL,
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"age_ms": 60_000},
        )


def _films() -> Iterator[CaseLine]:
    subjects = ("director", "year", "gap", "good")
    for number, film in enumerate(departures.asked_films()[:16]):
        about = subjects[number % len(subjects)]
        newest = departures.film_bundles()[str(film.key)]["same_director"][0]
        yield case(
            f"trace/film/{film.key}-{about}",
            "trace",
            "a question about a film takes one look at it and one model, and rests on what was seen",
            "film-director-" + "".join(filter(str.isalpha, film.omdb["director"]))[:40].lower(),
            [
                check("context_fetched", [{"context": "film", "key": str(film.key), "status": "fresh"}]),
                *film_checks(film, about, newest),
                check("rung", "primary"),
                ONE_MODEL,
            ],
            context=BUNDLES,
            input=film_asks(film, about),
        )


def _found() -> Iterator[CaseLine]:
    """By words; the film is among the forty of the world."""
    named = [film for film in departures.asked_films() if len(film.omdb["title"]) >= 14][:10]
    for film in named:
        newest = departures.film_bundles()[str(film.key)]["same_director"][0]
        asked = {"ask": "film", "find": film.omdb["title"], "about": "year", "question": QUESTIONS["year"]}
        yield case(
            f"trace/find/{film.key}",
            "trace",
            "who does not know a film's number finds it by its name, and is answered about that one",
            f"film-{film.key}",
            [
                check("context_fetched", ["film", {"context": "film", "key": str(film.key), "status": "fresh"}]),
                *film_checks(film, "year", newest),
                check("rung", "primary"),
                ONE_MODEL,
            ],
            context=BUNDLES,
            input=asked,
        )


def _not_theirs() -> Iterator[CaseLine]:
    """Another airline asks, or nobody knows the flight: for both it is the same."""
    for departure in [*departures.late()[3:9], *departures.on_time()[:2]]:
        other = "UA" if departure.row["carrier"] != "UA" else "DL"
        yield case(
            f"trace/not-theirs/{departure.key}",
            "trace",
            "an airline learns nothing of another's flight, not even that there is one",
            f"airline-{other.lower()}",
            [
                *asked_staff("there is no context now, only the default"),
                check("calls_max", {"model": 0}),
                check("absent", [departure.row["tailnum"], departure.row["dest"]], path=""),
            ],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"tenant": other},
        )
    for departure in departures.late()[9:13]:
        yield case(
            f"trace/theirs/{departure.key}",
            "trace",
            "an airline sees its own flight as everybody would who may see all",
            departure.group,
            [check("status", "fresh"), *gate_checks(departure)],
            context=BUNDLES,
            input=departure.asks(),
            conditions={"tenant": departure.row["carrier"]},
        )


def _desks() -> Iterator[CaseLine]:
    """The real quantised model, whose words mean nothing: what it says has to have the form, and nothing else."""
    for number, message in enumerate(MESSAGES):
        yield case(
            f"trace/desk/{number}",
            "trace",
            "a small local model, kept to its form by a grammar, is a rung that holds",
            f"message-{number}",
            [
                check("schema", "desk"),
                check("rung", "primary"),
                check("reason", ""),
                check("fields_allowed", ["/desk", "/urgent", *TOLD]),
                check("context_fetched", []),
                ONE_MODEL,
            ],
            input={"ask": "desk", "message": message},
        )
