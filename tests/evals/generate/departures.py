"""The departures and films that models are asked about: which they are, what has to be decided, and the bundles.

What has to be decided is worked out here from the rows of the data; the flow, its rules and the models that were
recorded work it out from what they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.evals.generate import films, oracle
from tests.evals.generate.films import Film
from tests.evals.generate.flights import Row, groups, index_of
from tests.evals.generate.values import spread

AS_OF_US = 1_767_225_600_000_000
PASSENGERS = 3
LATE, VERY_LATE = 15, 120


@dataclass(frozen=True)
class Departure:
    """A flight, and later ones of its airline to the same place with the seats that they have in this case."""

    row: Row
    others: tuple[tuple[Row, int], ...] = ()

    @property
    def key(self) -> str:
        return str(self.row["flight_id"])

    @property
    def delay(self) -> int | None:
        delay: int | None = self.row["dep_delay"]
        return delay

    @property
    def group(self) -> str:
        return f"airline-{self.row['carrier'].lower()}"

    @property
    def candidate(self) -> int | None:
        """The first other that takes all passengers and is not late."""
        fit = (row for row, seats in self.others if seats >= PASSENGERS and not _is_late(row))
        found = next(fit, None)
        return None if found is None else int(found["flight_id"])

    def decision(self, stale: bool = False) -> dict[str, Any]:
        """What has to come of it."""
        if self.delay is None or self.delay <= LATE:
            return {"decision": "wait", "minutes": None, "flight_id": None}
        if self.delay >= VERY_LATE and self.candidate is not None and not stale:
            return {"decision": "rebook", "minutes": None, "flight_id": self.candidate}
        return {"decision": "announce", "minutes": self.delay, "flight_id": None}

    def asks(self, **more: Any) -> dict[str, Any]:
        """The input of a case."""
        others = [{"flight_id": row["flight_id"], "seats": seats} for row, seats in self.others]
        asked: dict[str, Any] = {"ask": "gate", "flight_id": self.row["flight_id"], "passengers": PASSENGERS}
        return {**asked, "carrier": self.row["carrier"], **({"others": others} if others else {}), **more}


@cache
def on_time() -> tuple[Departure, ...]:
    rows = [row for row in _known() if row["dep_delay"] is None or row["dep_delay"] <= LATE]
    return tuple(Departure(row) for row in [*spread([r for r in rows if r["dep_delay"] is None], 6), *spread(rows, 24)])


@cache
def late() -> tuple[Departure, ...]:
    """The bounds of the rule are among them."""
    rows = [row for row in _known() if row["dep_delay"] is not None and LATE < row["dep_delay"] < VERY_LATE]
    bounds = [next(row for row in rows if row["dep_delay"] == delay) for delay in (LATE + 1, VERY_LATE - 1)]
    return tuple(Departure(row) for row in [*bounds, *spread([row for row in rows if row not in bounds], 28)])


@cache
def very_late() -> tuple[Departure, ...]:
    """With others in four ways by turns: seats in the first, none in the first, none at all, too few anywhere."""
    rows = [row for row in _known() if row["dep_delay"] is not None and row["dep_delay"] >= VERY_LATE]
    found = []
    for row in rows:
        later = _later(row)
        if len(later) >= 2 and not _is_late(later[0]) and not _is_late(later[1]):
            found.append((row, later))
    chosen = spread(found, 36)
    seats = ((9, 4), (0, 5), (0, 0), (PASSENGERS - 1, PASSENGERS))
    return tuple(
        Departure(row, tuple(zip(later[:2], seats[number % 4], strict=True)))
        for number, (row, later) in enumerate(chosen)
    )


@cache
def with_late_others() -> tuple[Departure, ...]:
    """The first other is late itself."""
    rows = [row for row in _known() if row["dep_delay"] is not None and row["dep_delay"] >= VERY_LATE]
    pairs = [(row, _later(row)) for row in rows]
    fit = [(row, later) for row, later in pairs if len(later) >= 2 and _is_late(later[0])]
    return tuple(Departure(row, tuple((other, 6) for other in later[:2])) for row, later in spread(fit, 6))


def all_departures() -> list[Departure]:
    return [*on_time(), *late(), *very_late(), *with_late_others()]


@cache
def asked_films() -> tuple[Film, ...]:
    """With critics' points and without."""
    scored = [film for film in films.read() if film.omdb["metacritic"] is not None]
    unscored = [film for film in films.read() if film.omdb["metacritic"] is None]
    return (*spread(scored, 34), *spread(unscored, 8))


@cache
def tables() -> oracle.Tables:
    """Everything that the bundles show, and no more flights than those."""
    found: oracle.Tables = {name: {} for name in ("flights", "planes", "airlines", "weather", "omdb", "tomatoes")}
    for departure in all_departures():
        for row in (departure.row, *(other for other, _ in departure.others)):
            found["flights"][row["flight_id"],] = row
            _join(found, row)
    for film in films.read():
        found["omdb"][film.key,] = film.omdb
        found["tomatoes"][film.key,] = film.tomatoes
    return found


@cache
def flight_bundles() -> dict[str, Row]:
    return oracle.flights(tables())


@cache
def film_bundles() -> dict[str, Row]:
    return oracle.films(tables())


def bundle_lines() -> list[dict[str, Any]]:
    """All departures and all films, as the world of a case takes them."""
    lines = []
    for key, bundle in flight_bundles().items():
        linked = {
            "airline": bundle["carrier"] if bundle["airline"] else None,
            "plane": bundle["tailnum"] if bundle["plane"] else None,
            "punctuality": f"{bundle['carrier']}|{bundle['origin']}",
        }
        fragments = {path: name for path, name in linked.items() if name is not None}
        lines.append(_line("flight", key, bundle, fragments))
    asked = {str(film.key) for film in asked_films()}
    for key, bundle in film_bundles().items():
        if key in asked:
            lines.append(_line("film", key, bundle, {"same_director": bundle["director"]}))
    return lines


def _line(context: str, key: str, bundle: Row, fragments: dict[str, str]) -> dict[str, Any]:
    return {"context": context, "key": key, "data": bundle, "as_of_us": AS_OF_US, "fragments": fragments}


@cache
def _known() -> tuple[Row, ...]:
    """Flights of which everything is known; in the order of the file."""
    planes, weather = index_of("planes", "tailnum"), index_of("weather", "origin", "time_hour")
    return tuple(
        row
        for rows in groups().values()
        for row in rows
        if (row["tailnum"],) in planes and (row["origin"], row["time_hour"]) in weather and row["month"] == 1
    )


def _later(row: Row) -> list[Row]:
    """Flights of the airline to the same place that leave after it on its day."""
    same = [
        other
        for origin in ("EWR", "JFK", "LGA")
        for other in groups().get((_day(row), row["carrier"], origin), ())
        if other["dest"] == row["dest"] and other["time_hour"] > row["time_hour"] and other["dep_delay"] is not None
    ]
    return sorted(same, key=lambda other: (other["time_hour"], other["flight_id"]))


def _day(row: Row) -> str:
    return f"{row['year']}-{row['month']:02}-{row['day']:02}"


def _is_late(row: Row) -> bool:
    return (row["dep_delay"] or 0) > LATE


def _join(found: oracle.Tables, row: Row) -> None:
    places: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
        ("planes", ("tailnum",), ("tailnum",)),
        ("airlines", ("carrier",), ("carrier",)),
        ("weather", ("origin", "time_hour"), ("origin", "time_hour")),
    )
    for table, columns, own in places:
        key = tuple(row[column] for column in own)
        other = index_of(table, *columns).get(key)
        if other is not None:
            found[table][key] = other
