"""Replay cases: logs of real flights as they happened, cut wherever a wrong bundle would tell of a fault.

A flight is scheduled, leaves, lands or is cancelled; weather and planes come early or late; what was told before comes
again. Each moment of a log is one case, whose bundles the oracle works out from the tables as they are then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.evaluation.digests import digest_of
from tests.evals.generate import films, oracle
from tests.evals.generate.flights import Row, Slice, index_of, slices
from tests.evals.generate.log import Log, Moment
from tests.evals.generate.values import CaseLine, case, check

TWINS = ["redelivered", "reordered", "restarted"]
FLIGHT_LOGS, FILM_LOGS = 10, 3
FLIGHT_KEY, WEATHER_KEY = ("flight_id",), ("origin", "time_hour")
_DONE = ("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time")


def flight_logs() -> dict[str, Log]:
    return {found.name: _flight_log(found) for found in slices(FLIGHT_LOGS)}


def film_logs() -> dict[str, Log]:
    return {f"films-{number}": _film_log(rows) for number, rows in enumerate(films.by_busy_directors(FILM_LOGS), 1)}


def cases() -> Iterator[CaseLine]:
    for name, log in flight_logs().items():
        yield from _cases(name, log, ("flight", "airport"), name[:6])
    for name, log in film_logs().items():
        yield from _cases(name, log, ("film",), name)


def _cases(name: str, log: Log, contexts: tuple[str, ...], group: str) -> Iterator[CaseLine]:
    for moment in log.moments:
        yield case(
            f"replay/{name}/{moment.name}",
            "replay",
            moment.why,
            group,
            [check("bundles", expected(moment, log, contexts))],
            context={"events": f"events/{name}.jsonl", "until": moment.until},
            twins=TWINS,
        )


def expected(moment: Moment, log: Log, contexts: tuple[str, ...]) -> dict[str, str]:
    """context/key → digest of its bundle, "" for one that is gone."""
    found: dict[str, str] = {}
    for context in contexts:
        bundles = oracle.BY_CONTEXT[context](moment.tables)
        found |= {f"{context}/{key}": digest_of(bundle) for key, bundle in bundles.items()}
    deleted = {record["key"]["flight_id"] for record in log.records[: moment.until] if record["value"] is None}
    gone = {f"flight/{key}" for key in deleted} - found.keys()
    return {**found, **dict.fromkeys(sorted(gone), "")}


def _flight_log(found: Slice) -> Log:
    log = Log("nyc")
    planes = _planes(found)
    flying = [row for row in found.flights if row["dep_time"] is not None]
    cancelled = [row for row in found.flights if row["dep_time"] is None]
    log.put("airports", ("faa",), index_of("airports", "faa")[found.origin,])
    scheduled = {row["flight_id"]: log.put("flights", FLIGHT_KEY, _scheduled(row)) for row in found.flights[:3]}
    log.moment("no-airline", "a flight whose airline is not known yet is shown without it, and not kept back")
    log.put("airlines", ("carrier",), index_of("airlines", "carrier")[found.carrier,])
    for plane in planes[:2]:
        log.put("planes", ("tailnum",), plane)
    log.moment("joined", "what comes after the flight that refers to it is joined into its bundle all the same")
    scheduled |= {row["flight_id"]: log.put("flights", FLIGHT_KEY, _scheduled(row)) for row in found.flights[3:]}
    log.moment("scheduled", "flights of one hour keep their order at the airport: by hour, then by key")
    _weather(log, flying[:2])
    log.moment("weather", "the weather of its hour is on the flight")
    left = [log.put("flights", FLIGHT_KEY, _left(row)) for row in flying[:2]]
    log.moment("left", "who has left is told so at once, and counted in the punctuality of all others")
    log.again(scheduled[flying[0]["flight_id"]])
    log.moment("older-again", "an older version that comes again does not put a departure back")
    log.again(left[0])
    for row in cancelled:
        log.delete("flights", FLIGHT_KEY, _scheduled(row))
    log.moment("cancelled", "a cancelled flight is gone from its bundle, its airport and all counts")
    log.again(scheduled[cancelled[0]["flight_id"]])
    log.moment("no-resurrection", "what was deleted stays away when its beginning comes again")
    for row in flying[2:]:
        log.put("flights", FLIGHT_KEY, _left(row))
    log.moment("all-left", "averages, worst delays and shares are exact when all have left")
    for plane in planes[2:]:
        log.put("planes", ("tailnum",), plane)
    _weather(log, flying[2:])
    log.put("flights", FLIGHT_KEY, flying[0])
    log.moment("landed", "weather and planes that are told last reach the flights they belong to")
    return log


def _film_log(rows: list[films.Film]) -> Log:
    log = Log("films")
    *early, last = rows
    first = [log.put("omdb", ("id",), {**film.omdb, "metacritic": None, "oscars": 0}) for film in early]
    log.moment("announced", "a film without reviews is shown without them")
    for film in early[:2]:
        log.put("tomatoes", ("id",), film.tomatoes)
    log.moment("first-scores", "scores belong to the film of their number, and to no other")
    for film in early:
        log.put("omdb", ("id",), film.omdb)
    log.moment("reviewed", "what critics said later is in the bundle, of its own film and of the director's others")
    log.again(first[0])
    log.moment("older-again", "the film as it was announced does not come back over the film as it is")
    log.put("omdb", ("id",), last.omdb)
    log.moment("one-more", "a director's new film shows on all the films before it, the newest first")
    for film in [*early[2:], last]:
        log.put("tomatoes", ("id",), film.tomatoes)
    log.moment("all-scores", "all scores are there in the end")
    return log


def _planes(found: Slice) -> list[Row]:
    """Those that the registry knows, in the order of flights."""
    names = dict.fromkeys(row["tailnum"] for row in found.flights)
    planes = index_of("planes", "tailnum")
    return [planes[name,] for name in names if (name,) in planes]


def _weather(log: Log, flights: list[Row]) -> None:
    known = index_of("weather", *WEATHER_KEY)
    for place in dict.fromkeys((row["origin"], row["time_hour"]) for row in flights):
        if place in known and place not in log.tables.get("weather", {}):
            log.put("weather", WEATHER_KEY, known[place])


def _scheduled(row: Row) -> Row:
    return {**row, **dict.fromkeys(_DONE)}


def _left(row: Row) -> Row:
    return {**row, **dict.fromkeys(_DONE[2:])}


def files() -> dict[str, list[Any]]:
    """Of the logs, by their path in the suite."""
    return {f"events/{name}.jsonl": log.lines() for name, log in {**flight_logs(), **film_logs()}.items()}
