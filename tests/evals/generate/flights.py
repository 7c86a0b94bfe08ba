"""The flights of the demo as plain rows, and the slices of them that the suite is about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from deploy.demo.data import AIRLINES, AIRPORTS, FLIGHTS, PLANES, WEATHER
from deploy.demo.events import typed_rows

Row = dict[str, Any]
FLIGHTS_READ_MAX = 36_000
"""January and, as the file has it, the beginning of October: more months would say nothing new."""

SLICE_FLIGHTS = 7


@dataclass(frozen=True)
class Slice:
    """The flights of one carrier from one airport on one day, in the order of their schedule."""

    name: str
    day: str
    carrier: str
    origin: str
    flights: tuple[Row, ...]


@cache
def rows_of(table_name: str) -> tuple[Row, ...]:
    table = {table.name: table for table in (AIRLINES, AIRPORTS, FLIGHTS, PLANES, WEATHER)}[table_name]
    return tuple(typed_rows(table, FLIGHTS_READ_MAX if table is FLIGHTS else None))


@cache
def index_of(table_name: str, *columns: str) -> dict[tuple[Any, ...], Row]:
    """The last row of each key."""
    return {tuple(row[column] for column in columns): row for row in rows_of(table_name)}


@cache
def groups() -> dict[tuple[str, str, str], tuple[Row, ...]]:
    """(day, carrier, origin) → flights by schedule."""
    found: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows_of("flights"):
        found[day_of(row), row["carrier"], row["origin"]].append(row)
    ordered = {key: sorted(rows, key=lambda row: (row["time_hour"], row["flight_id"])) for key, rows in found.items()}
    return {key: tuple(rows) for key, rows in sorted(ordered.items())}


def day_of(row: Row) -> str:
    return f"{row['year']}-{row['month']:02}-{row['day']:02}"


def slices(count: int) -> list[Slice]:
    """Each of another carrier and airport: seven flights of the day on which most went wrong there, one cancelled and
    one late at least, and two that leave in one hour."""
    fit: dict[tuple[str, str], Slice] = {}
    for (day, carrier, origin), rows in groups().items():
        chosen = _chosen(rows)
        hours = {row["time_hour"] for row in chosen}
        if len(chosen) == SLICE_FLIGHTS and len(hours) < SLICE_FLIGHTS:
            found = Slice(f"{carrier}-{origin}-{day}".lower(), day, carrier, origin, _by_schedule(chosen))
            before = fit.get((carrier, origin))
            if before is None or _worth(found) > _worth(before):
                fit[carrier, origin] = found
    good = [found for found in fit.values() if all(_worth(found))]
    return sorted(good, key=lambda one: (_worth(one), one.name), reverse=True)[:count]


def _chosen(rows: tuple[Row, ...]) -> list[Row]:
    """Two that were cancelled, the two latest, and others near the latest one by schedule."""
    cancelled = [row for row in rows if row["dep_time"] is None and row["tailnum"] is not None][:2]
    late = sorted((row for row in rows if _is_late(row)), key=lambda row: (-row["dep_delay"], row["flight_id"]))[:2]
    chosen = {row["flight_id"]: row for row in [*cancelled, *late]}
    anchor = (late or list(rows))[0]["time_hour"]
    for row in sorted(rows, key=lambda row: (abs(_hour(row) - int(anchor[11:13])), row["flight_id"])):
        if len(chosen) == SLICE_FLIGHTS:
            break
        if row["tailnum"] is not None:
            chosen.setdefault(row["flight_id"], row)
    return list(chosen.values())


def _worth(found: Slice) -> tuple[int, int]:
    """Cancelled and late ones."""
    return _cancelled(found.flights), sum(map(_is_late, found.flights))


def _by_schedule(rows: list[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: (row["time_hour"], row["flight_id"])))


def _cancelled(rows: Sequence[Row]) -> int:
    return sum(row["dep_time"] is None for row in rows)


def _is_late(row: Row) -> bool:
    return (row["dep_delay"] or 0) > 15


def _hour(row: Row) -> int:
    return int(row["time_hour"][11:13])
