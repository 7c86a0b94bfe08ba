"""Random context specs over three small tables: joins over several hops, lists, aggregates, filters."""

from __future__ import annotations

from random import Random
from typing import Any

from schemas.context import ContextSpec

TABLES: dict[str, list[str]] = {"a": ["id"], "b": ["id"], "c": ["p", "q"]}
NUMBERS, DECIMALS, TEXTS, FLAGS = ["n", "m"], ["d"], ["t", "u"], ["flag"]
LINKS = ["a_id", "b_id", "p", "q"]
COLUMNS = {
    table: list(dict.fromkeys([*key, "a_id", "b_id", *NUMBERS, *DECIMALS, *TEXTS, *FLAGS, "p", "q"]))
    for table, key in TABLES.items()
}
ORDERS = ["n", "-n", "t", "-t", "d", "-d", "-m", "flag"]


def random_spec(random: Random, compose: str | None = None) -> ContextSpec:
    """`compose` forces every section that may be either to be a copy or a link."""
    entities: dict[str, Any] = {}
    for table, key in TABLES.items():
        entities[table] = {"source": "s", "table": f"public.{table}", "key": key, "types": {"d": "decimal"}}
        if random.random() < 0.2:
            entities[table]["filter"] = _filter(random)
    root = random.choice(sorted(TABLES))
    spec = {
        "context": "simulated",
        "version": 1,
        "root": root,
        "entities": entities,
        "fields": _fields(random),
        "sections": _sections(random, root, depth=0, inside_link=False, compose=compose),
    }
    return ContextSpec.model_validate(spec)


def _filter(random: Random) -> str:
    return random.choice(["n > 1", "flag == true", "t != 'x'", "d < 5", "m >= n"])


def _fields(random: Random) -> list[Any]:
    names = random.sample(["n", "m", "d", "t", "u", "flag"], random.randint(1, 4))
    fields: list[Any] = list(names)
    if random.random() < 0.3:
        fields.append(
            {"name": "derived", "value": random.choice(["n + m", "n * 2 > m", "upper(t)", "coalesce(n, 0) / 4"])}
        )
    if random.random() < 0.2:
        fields.append({"name": "masked", "column": "t", "mask": random.choice(["hash", "redact", "last4"])})
    return fields


def _sections(random: Random, parent: str, depth: int, inside_link: bool, compose: str | None) -> dict[str, Any]:
    if depth > 2:
        return {}
    count = random.choice([1, 2, 3] if depth == 0 else [0, 0, 1, 2])
    return {f"s{number}": _section(random, parent, depth, inside_link, compose) for number in range(count)}


def _section(random: Random, parent: str, depth: int, inside_link: bool, compose: str | None) -> dict[str, Any]:
    entity = random.choice(sorted(TABLES))
    section: dict[str, Any] = {"entity": entity, "on": _join(random, entity, parent)}
    drawn = random.choice(["copy", "link"])
    section["compose"] = "copy" if inside_link else (compose or drawn)
    if random.random() < 0.25:
        section["filter"] = _filter(random)
    shape = random.choice(["one", "one", "list", "aggregates", "groups"])
    section["kind"] = "one" if shape == "one" else "many"
    if shape in ("one", "list"):
        section["fields"] = _fields(random)
        below = inside_link or section["compose"] == "link"
        section["sections"] = _sections(random, entity, depth + 1, below, compose)
        section["order_by"] = random.sample(ORDERS, random.randint(0, 2))
        if shape == "list" and random.random() < 0.7:
            section["limit"] = random.randint(1, 3)
        return section
    section["aggregates"] = _aggregates(random, shape == "groups")
    if shape == "groups":
        section["group_by"] = random.sample(["t", "n", "flag"], random.randint(1, 2))
        section["order_by"] = random.choice([[], [next(iter(section["aggregates"]))], ["-total"]])
        section["aggregates"]["total"] = "count"
    return section


def _join(random: Random, entity: str, parent: str) -> dict[str, str]:
    key = TABLES[entity]
    style = random.random()
    if style < 0.45:
        if len(key) == 1:
            return {key[0]: random.choice(["a_id", "b_id"])}
        return {"p": "p", "q": "q"} if parent != "c" else {"p": "a_id", "q": "b_id"}
    if style < 0.75:
        parent_key = TABLES[parent]
        if len(parent_key) == 1:
            return {random.choice(["a_id", "b_id"]): parent_key[0]}
        return {"a_id": "p", "b_id": "q"}
    own = random.choice(["a_id", "d", "n"])
    return {own: random.choice(["a_id", "d", "n"])}


def _aggregates(random: Random, grouped: bool) -> dict[str, Any]:
    choices: dict[str, Any] = {
        "counted": {"count": "n"},
        "summed": {"sum": random.choice(["n", "d"])},
        "average": {"avg": random.choice(["n", "d"]), "round": random.randint(0, 4)},
        "lowest": {"min": random.choice(["n", "d", "t"])},
        "highest": {"max": random.choice(["n", "d", "t"])},
        "newest": {"latest": random.choice(["t", "n"]), "by": random.choice(["n", "m", "d"])},
        "kinds": {"count_distinct": random.choice(["t", "n", "flag"])},
    }
    if grouped:
        choices["share"] = "share"
    names = random.sample(sorted(choices), random.randint(1, 4))
    picked = {name: choices[name] for name in names}
    for name, aggregate in picked.items():
        if isinstance(aggregate, dict) and random.random() < 0.2:
            picked[name] = {**aggregate, "where": _filter(random)}
    return picked
