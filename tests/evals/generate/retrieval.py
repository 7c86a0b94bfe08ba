"""Retrieval cases: films by title, by people and by filters, planes whose descriptions tie exactly, and tenants.

What is relevant is a matter of the tables: a title's film, a director's films, the rows that a filter leaves, planes
that are described by the same words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from tests.evals.generate import films, oracle
from tests.evals.generate.departures import AS_OF_US
from tests.evals.generate.flights import Row, index_of, rows_of
from tests.evals.generate.values import CaseLine, case, check, spread

FILMS, FLEET = {"bundles": "bundles/films.jsonl"}, {"bundles": "bundles/fleet.jsonl"}
MODES = ("auto", "vector", "lexical", "hybrid")
PLANES_MAX = 260
_TEXT = ("manufacturer", "model", "type", "engines", "engine", "seats")


def cases() -> Iterator[CaseLine]:
    yield from _titles()
    yield from _misspelt()
    yield from _directors()
    yield from _filters()
    yield from _ties()
    yield from _tenants()


def film_lines() -> list[dict[str, Any]]:
    found: oracle.Tables = {"omdb": {}, "tomatoes": {}}
    for film in films.read():
        found["omdb"][film.key,], found["tomatoes"][film.key,] = film.omdb, film.tomatoes
    return [
        {
            "context": "film",
            "key": key,
            "data": bundle,
            "as_of_us": AS_OF_US,
            "fragments": {"same_director": bundle["director"]},
        }
        for key, bundle in oracle.films(found).items()
    ]


def fleet_lines() -> list[dict[str, Any]]:
    return [{"context": "aircraft", "key": row["tailnum"], "data": row, "as_of_us": AS_OF_US} for row in fleet()]


@cache
def fleet() -> tuple[Row, ...]:
    """Planes with the airline that flew them first, by tail number; large families of equal ones among them."""
    planes = index_of("planes", "tailnum")
    carriers: dict[str, str] = {}
    for row in rows_of("flights"):
        if (row["tailnum"],) in planes:
            carriers.setdefault(row["tailnum"], row["carrier"])
    names = spread(sorted(carriers), PLANES_MAX)
    kept = ("tailnum", "year", "type", "manufacturer", "model", "engines", "engine", "seats")
    return tuple({**{name: planes[one,][name] for name in kept}, "carrier": carriers[one]} for one in names)


def _titles() -> Iterator[CaseLine]:
    named = [film for film in films.read() if _titles_like(film.omdb["title"]) == 1 and len(film.omdb["title"]) > 8]
    for number, film in enumerate(spread(named, 32)):
        mode = MODES[number % 4]
        yield _film_case(
            f"title-{mode}/{film.key}",
            f"who asks for a film by its title gets it ({mode})",
            {"text": film.omdb["title"], "k": 10, "mode": mode},
            [check("recall", {"relevant": [str(film.key)], "floor": 1.0}, k=10), _ndcg([str(film.key)], 10)],
            str(film.key),
        )


def _misspelt() -> Iterator[CaseLine]:
    """A letter is gone from the middle of the longest word."""
    named = [film for film in films.read() if len(max(film.omdb["title"].split(), key=len)) >= 8]
    for film in spread(named, 14):
        title = film.omdb["title"]
        word = max(title.split(), key=len)
        typo = title.replace(word, word[: len(word) // 2] + word[len(word) // 2 + 1 :], 1)
        yield _film_case(
            f"misspelt/{film.key}",
            "how well misspelt titles are found is measured against the baseline, without a floor of its own",
            {"text": typo, "k": 10, "mode": "vector"},
            [check("recall", {"relevant": [str(film.key)]}, k=10), _ndcg([str(film.key)], 10, 0.0)],
            str(film.key),
        )


def _directors() -> Iterator[CaseLine]:
    busy = sorted(films.by_director().items(), key=lambda one: (-len(one[1]), one[0]))[:20]
    for number, (director, found) in enumerate(busy):
        mode = MODES[number % 4]
        relevant = sorted(str(film.key) for film in found)
        yield _film_case(
            f"director-{mode}/{''.join(filter(str.isascii, director)).replace(' ', '-').lower()}",
            f"a director's films are what a search for them finds first ({mode})",
            {"text": f"directed by {director}", "k": 10, "mode": mode},
            [check("recall", {"relevant": relevant, "floor": 0.5}, k=10), _ndcg(relevant, 10)],
            director,
        )


def _filters() -> Iterator[CaseLine]:
    filters: tuple[tuple[str, dict[str, Any], Callable[[Row], bool]], ...] = (
        ("before-1960", {"year": {"lt": 1960}}, lambda row: row["year"] < 1960),
        ("since-2012", {"year": {"ge": 2012}}, lambda row: row["year"] >= 2012),
        ("praised", {"metacritic": {"ge": 94}}, lambda row: (row["metacritic"] or 0) >= 94),
        ("panned", {"metacritic": {"lt": 30}}, lambda row: row["metacritic"] is not None and row["metacritic"] < 30),
    )
    for name, condition, holds in filters:
        relevant = sorted(str(film.key) for film in films.read() if holds(film.omdb))
        others = sorted(str(film.key) for film in films.read() if not holds(film.omdb))
        for number, text in enumerate(("a drama about a family", "comedy", "an american film", "war")):
            mode = ("vector", "hybrid")[number % 2]
            yield _film_case(
                f"filter-{name}/{number}-{mode}",
                "a filter lets nothing through that does not fit, and hides nothing that does",
                {"text": text, "k": 50, "mode": mode, "filter": condition},
                [check("recall", {"relevant": relevant, "floor": 1.0}, k=50), check("absent", others)],
                f"filter-{name}",
            )


def _ties() -> Iterator[CaseLine]:
    """Of planes that are told of in the same words, whoever has the smaller key is first."""
    families: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for row in fleet():
        families[tuple(row[name] for name in _TEXT)].append(row["tailnum"])
    tied = [(words, sorted(keys)) for words, keys in families.items() if len(keys) >= 3]
    for number, (words, keys) in enumerate(spread(sorted(tied, key=lambda one: one[1]), 20)):
        manufacturer, model, kind, engines, engine, seats = words
        text = f"{manufacturer} {model}, {kind} with {engines} engines ({engine}) and {seats} seats"
        first = keys[:10]
        yield case(
            f"retrieval/tie/{number:02}-{first[0].lower()}",
            "retrieval",
            "hits with equal scores come by key, so that the same question has the same answer everywhere",
            f"planes-{number:02}",
            [check("order", first)],
            context=FLEET,
            input={"context": "aircraft", "text": text, "k": 10, "mode": "vector"},
        )


def _tenants() -> Iterator[CaseLine]:
    by_carrier: dict[str, list[str]] = defaultdict(list)
    for row in fleet():
        by_carrier[row["carrier"]].append(row["tailnum"])
    many = sorted(by_carrier, key=lambda carrier: (-len(by_carrier[carrier]), carrier))[:8]
    for number, carrier in enumerate(many):
        own = sorted(by_carrier[carrier])
        foreign = sorted(row["tailnum"] for row in fleet() if row["carrier"] != carrier)
        yield case(
            f"retrieval/tenant/{carrier.lower()}",
            "retrieval",
            "an airline finds its own planes, all of them, and none of another's",
            f"airline-{carrier.lower()}",
            [check("recall", {"relevant": own, "floor": 1.0}, k=100), check("absent", foreign)],
            context=FLEET,
            input={
                "context": "aircraft",
                "text": "a plane with two engines",
                "k": 100,
                "mode": ("vector", "hybrid")[number % 2],
            },
            conditions={"tenant": carrier},
        )


def _film_case(name: str, why: str, asked: dict[str, Any], expect: list[dict[str, Any]], group: str) -> CaseLine:
    return case(f"retrieval/{name}", "retrieval", why, group, expect, context=FILMS, input={"context": "film", **asked})


def _ndcg(relevant: list[str], k: int, floor: float = 0.25) -> dict[str, Any]:
    return check("ndcg", {"relevant": relevant, "floor": floor}, k=k)


def _titles_like(title: str) -> int:
    return sum(title.lower() in film.omdb["title"].lower() for film in films.read())
