"""Cases with a flow, of whichever kind: what a departure or a film is asked, and what has to come of it."""

from __future__ import annotations

from typing import Any

from tests.evals.generate.departures import VERY_LATE, Departure
from tests.evals.generate.films import Film
from tests.evals.generate.values import check

BUNDLES = {"bundles": "bundles/world.jsonl"}
TOLD = ("/answered_by", "/reason", "/refused", "/context")
GATE_FIELDS = ["/decision", "/minutes", "/flight_id", "/message", "/citations/*", *TOLD]
FILM_FIELDS = ["/known", "/answer", "/number", "/citations/*", "/why", *TOLD]
Checks = list[dict[str, Any]]


def gate_checks(departure: Departure, stale: bool = False) -> Checks:
    """Decision, action, citations, and nothing that was not asked for."""
    return [
        *decided(departure.decision(stale)),
        check("citations", path="/citations"),
        check("schema", "gate"),
        check("fields_allowed", GATE_FIELDS),
        check("tools_called", tools_of(departure, stale)),
    ]


def decided(wanted: dict[str, Any]) -> Checks:
    return [{"check": "equals", "path": f"/{name}", "value": value} for name, value in wanted.items()]


def tools_of(departure: Departure, stale: bool = False) -> list[Any]:
    """What is done in the world, in order."""
    wanted = departure.decision(stale)
    found: list[Any] = []
    if departure.delay is not None and departure.delay >= VERY_LATE:
        found.append("later_departures")
    if wanted["decision"] == "announce":
        arguments = {"flight_id": departure.row["flight_id"], "minutes": wanted["minutes"]}
        found.append({"tool": "announce", "arguments": arguments})
    if wanted["decision"] == "rebook":
        found.append({"tool": "rebook", "arguments": {"flight_id": wanted["flight_id"]}})
    return found


def fetched(departure: Departure, status: str = "fresh") -> list[dict[str, Any]]:
    """The departure first; then the others that have seats for all, in the order in which they were listed."""
    found = [{"context": "flight", "key": departure.key, "status": status}]
    if departure.delay is not None and departure.delay >= VERY_LATE:
        roomy = [row for row, seats in departure.others if seats >= 3]
        found += [{"context": "flight", "key": str(row["flight_id"]), "status": status} for row in roomy]
    return found


def asked_staff(why: str) -> Checks:
    return [
        check("equals", "ask_staff", path="/decision"),
        check("contains", why, path="/message"),
        check("schema", "gate"),
        check("tools_called", ["ask_staff"]),
    ]


def film_asks(film: Film, about: str, **more: Any) -> dict[str, Any]:
    return {"ask": "film", "film_id": film.key, "about": about, "question": QUESTIONS[about], **more}


def film_checks(film: Film, about: str, newest: dict[str, Any]) -> Checks:
    """`newest`: of the director, by the data."""
    known, text, number = film_answer(film, about, newest)
    found = [
        {"check": "equals", "path": "/known", "value": known},
        check("citations", path="/citations"),
        check("schema", "film"),
        check("fields_allowed", FILM_FIELDS),
        check("tools_called", []),
    ]
    if text is not None:
        found.append(check("contains", text, path="/answer"))
    if number is None:
        found.append({"check": "equals", "path": "/number", "value": None})
    else:
        found.append(check("number", number, path="/number", tolerance=0.051))
    if not known:
        found.append({"check": "equals", "path": "/answer", "value": ""})
    return found


QUESTIONS = {
    "director": "Who directed it?",
    "year": "In which year did it come out?",
    "runtime": "How long does it run, in minutes?",
    "metacritic": "What does Metacritic give it?",
    "gap": "How many points apart are the Tomatometer and Metacritic?",
    "good": "About how many good reviews did it get?",
    "newest": "What is the newest film of its director?",
    "plot": "What happens at the end?",
}


def film_answer(film: Film, about: str, newest: dict[str, Any]) -> tuple[bool, str | None, float | None]:
    """(whether the data says, words of the answer, its number)."""
    omdb, score = film.omdb, film.tomatoes
    if about in ("year", "runtime", "metacritic"):
        value = omdb[about]
        return value is not None, None if value is None else f"{value:g}", value
    if about == "gap":
        gap = None if omdb["metacritic"] is None else abs(score["meter"] - omdb["metacritic"])
        return gap is not None, None if gap is None else str(gap), gap
    if about == "good":
        return True, str(score["reviews"]), score["meter"] * score["reviews"] / 100
    if about == "plot":
        return False, None, None
    return True, omdb["director"] if about == "director" else newest["title"], None
