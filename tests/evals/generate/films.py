"""Films, their people and scores: an excerpt of the PyPI package bokeh_sampledata, whose film data is Wikidata's (CC0).

The excerpt is committed (`tests/evals/data/films.csv`), so that the suite can be made without the package. Made anew by
`python -m tests.evals.generate.films movies.db` from the file `bokeh_sampledata/_data/movies.db` of version 2026.1.
"""

from __future__ import annotations

import csv
import sqlite3
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "data" / "films.csv"
FILMS_MAX = 360
OMDB = ("id", "title", "year", "runtime", "genre", "director", "country", "language", "metacritic", "oscars")
TOMATOES = ("id", "meter", "reviews", "rating")
_WHOLE = ("id", "year", "metacritic", "oscars", "meter", "reviews")
# Directors with many films first, so that questions about them have several answers; then every so many-th film.
_QUERY = """
SELECT o.ID, o.Title, o.Year, o.Runtime, o.Genre, o.Director, o.Country, o.Language, o.Metacritic, o.Oscars,
       t.Meter, t.Reviews, t.Rating
FROM omdb o JOIN tomatoes t ON t.ID = o.ID
WHERE o.Director <> '' AND o.Director NOT LIKE '%,%' AND o.Genre <> '' AND o.Country IS NOT NULL
  AND o.Language IS NOT NULL AND t.Meter IS NOT NULL AND t.Rating IS NOT NULL AND length(o.Title) BETWEEN 4 AND 60
ORDER BY o.ID
"""


@dataclass(frozen=True)
class Film:
    """A row of each of the two tables."""

    omdb: dict[str, Any]
    tomatoes: dict[str, Any]

    @property
    def key(self) -> int:
        return int(self.omdb["id"])


@cache
def read() -> tuple[Film, ...]:
    """By id."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = [_typed(row) for row in csv.DictReader(file)]
    return tuple(Film({n: row[n] for n in OMDB}, {n: row[n] for n in TOMATOES}) for row in rows)


def by_director() -> dict[str, list[Film]]:
    found: dict[str, list[Film]] = defaultdict(list)
    for film in read():
        found[film.omdb["director"]].append(film)
    return found


def by_busy_directors(count: int) -> list[list[Film]]:
    """The films of so many directors, four of each, by year."""
    busy = sorted(by_director().items(), key=lambda one: (-len(one[1]), one[0]))[:count]
    return [sorted(rows, key=lambda film: (film.omdb["year"], film.key))[:4] for _, rows in busy]


def _typed(row: dict[str, str]) -> dict[str, Any]:
    return {name: _value(name, text) for name, text in row.items()}


def _value(name: str, text: str) -> Any:
    if text == "":
        return None
    if name in _WHOLE:
        return int(text)
    return float(text) if name in ("runtime", "rating") else text


def _excerpt(database: Path) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    rows = list(connection.execute(_QUERY))
    connection.close()
    directors: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        directors[row[5]].append(row)
    busy = sorted(directors.items(), key=lambda one: (-len(one[1]), one[0]))[:24]
    kept = {row[0]: row for _, found in busy for row in found[:6]}
    for row in rows[:: len(rows) // FILMS_MAX]:
        if len(kept) < FILMS_MAX:
            kept.setdefault(row[0], row)
    return [kept[key] for key in sorted(kept)]


def main() -> None:
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*OMDB, *TOMATOES[1:]])
        writer.writerows(_excerpt(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
