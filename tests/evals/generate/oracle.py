"""What bundles have to be, worked out from whole tables by hand: no spec is read, nothing of the product is used.

Tables are `{table: {key: row}}`; each function gives root key → bundle as its reader sees it, linked sections inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

Row = dict[str, Any]
Tables = dict[str, dict[tuple[Any, ...], Row]]


def flights(tables: Tables) -> dict[str, Row]:
    every = _rows(tables, "flights")
    return {str(row["flight_id"]): _flight(tables, every, row) for row in every}


def airports(tables: Tables) -> dict[str, Row]:
    return {row["faa"]: _airport(tables, row) for row in _rows(tables, "airports")}


def films(tables: Tables) -> dict[str, Row]:
    every = _rows(tables, "omdb")
    return {str(row["id"]): _film(tables, every, row) for row in every}


def _flight(tables: Tables, every: list[Row], row: Row) -> Row:
    delay = row["dep_delay"]
    status = "scheduled" if row["dep_time"] is None else "late" if delay is not None and delay > 15 else "on time"
    plane = tables.get("planes", {}).get((row["tailnum"],))
    weather = tables.get("weather", {}).get((row["origin"], row["time_hour"]))
    airline = tables.get("airlines", {}).get((row["carrier"],))
    kept = ("flight_id", "carrier", "flight", "tailnum", "origin", "dest", "time_hour", "dep_delay")
    return {
        **_only(row, kept),
        "status": status,
        "weather": None if weather is None else _only(weather, ("wind_speed", "visib")),
        "airline": None if airline is None else _only(airline, ("carrier", "name")),
        "plane": None if plane is None else _plane(plane, every),
        "punctuality": _punctuality([one for one in every if _pair(one) == _pair(row)]),
    }


def _plane(plane: Row, every: list[Row]) -> Row:
    flown = [row for row in every if row["tailnum"] == plane["tailnum"]]
    flown.sort(key=lambda row: (row["time_hour"], row["flight_id"]), reverse=True)
    last = [_only(row, ("flight_id", "origin", "dest", "dep_delay")) for row in flown[:3]]
    return {**_only(plane, ("tailnum", "manufacturer", "model", "seats")), "last_flights": last}


def _punctuality(rows: list[Row]) -> Row:
    delays = [row["dep_delay"] for row in rows if row["dep_delay"] is not None]
    return {
        "flights": len(rows),
        "departed": sum(row["dep_time"] is not None for row in rows),
        "late": sum(delay > 15 for delay in delays),
        "average_delay": mean(delays, 2),
        "worst_delay": max(delays, default=None),
        "planes": len({row["tailnum"] for row in rows} - {None}),
    }


def _airport(tables: Tables, airport: Row) -> Row:
    rows = sorted((row for row in _rows(tables, "flights") if row["origin"] == airport["faa"]), key=_flight_id)
    delays = [row["dep_delay"] for row in rows if row["dep_delay"] is not None]
    last = sorted(rows, key=lambda row: row["time_hour"], reverse=True)[:4]
    return {
        **_only(airport, ("faa", "name", "tzone")),
        "departures": {
            "flights": len(rows),
            "departed": sum(row["dep_time"] is not None for row in rows),
            "average_delay": mean(delays, 2),
            "best_delay": min(delays, default=None),
            "miles": sum(row["distance"] for row in rows) if rows else None,
            "destinations": len({row["dest"] for row in rows}),
        },
        "last_departures": [
            {**_only(row, ("flight_id", "carrier", "dest", "dep_delay")), "airline": _airline_name(tables, row)}
            for row in last
        ],
        "carriers": _carriers(rows),
    }


def _airline_name(tables: Tables, row: Row) -> Row | None:
    airline = tables.get("airlines", {}).get((row["carrier"],))
    return None if airline is None else {"name": airline["name"]}


def _carriers(rows: list[Row]) -> list[Row]:
    counted = Counter(row["carrier"] for row in rows)
    ordered = sorted(counted.items(), key=lambda one: (-one[1], one[0]))
    return [
        {"carrier": carrier, "flights": count, "share": mean([count], 4, len(rows))} for carrier, count in ordered[:5]
    ]


def _film(tables: Tables, every: list[Row], row: Row) -> Row:
    score = tables.get("tomatoes", {}).get((row["id"],))
    same = sorted((one for one in every if one["director"] == row["director"]), key=lambda one: one["id"])
    same.sort(key=lambda one: one["year"], reverse=True)
    kept = ("id", "title", "year", "runtime", "genre", "director", "country", "language", "metacritic", "oscars")
    return {
        **_only(row, kept),
        "score": None if score is None else _only(score, ("meter", "reviews", "rating")),
        "same_director": [_only(one, ("id", "title", "year")) for one in same[:5]],
    }


def mean(values: Iterable[int], places: int, count: int | None = None) -> int | float | None:
    """Half to even; whole numbers without a point, as they are written."""
    values = list(values)
    count = len(values) if count is None else count
    if not count:
        return None
    exact = (Decimal(sum(values)) / count).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
    return int(exact) if exact == exact.to_integral_value() else float(exact)


BY_CONTEXT: dict[str, Callable[[Tables], dict[str, Row]]] = {"flight": flights, "airport": airports, "film": films}


def _rows(tables: Tables, name: str) -> list[Row]:
    return list(tables.get(name, {}).values())


def _only(row: Row, names: Iterable[str]) -> Row:
    return {name: row[name] for name in names}


def _pair(row: Row) -> tuple[str, str]:
    return row["carrier"], row["origin"]


def _flight_id(row: Row) -> int:
    return int(row["flight_id"])
