"""The oracle behind verify on a real Postgres: against hand-written answers and a naive evaluation in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from random import Random
from typing import Any

import psycopg
import pytest

from connectors.postgres.reader import PostgresReader
from pipeline.core.errors import ConfigError, EnvironmentProblem
from pipeline.ops.oracle import Oracle
from schemas.context import ContextSpec
from tests.simulation import oracle as naive
from tests.simulation.specs import TABLES, random_spec

pytestmark = pytest.mark.servers


@pytest.fixture
async def reader(postgres_dsn: str) -> AsyncIterator[PostgresReader]:
    made = PostgresReader(postgres_dsn, "shop")
    yield made
    await made.close()


def run_sql(dsn: str, text: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(text)


async def bundles_of(spec: ContextSpec, reader: PostgresReader, secret: bytes = b"") -> dict[str, Any]:
    oracle = await Oracle.create(spec, {entity.source: reader for entity in spec.entities.values()}, secret)
    found: dict[str, Any] = {}
    async for chunk in oracle.all_bundles():
        found.update({key: json.loads(bundle, parse_float=Decimal) for key, bundle in chunk.items()})
    again = await oracle.bundles([*found, "no such key", "1|2|3", ""])
    assert {key: json.loads(bundle, parse_float=Decimal) for key, bundle in again.items()} == found
    return found


SHOP = """
CREATE TABLE customers (id int PRIMARY KEY, name text, email text, vip boolean, profile jsonb);
CREATE TABLE orders (
  id bigint PRIMARY KEY, customer_id text, amount numeric(12,2), weight float8, status text, placed timestamptz,
  parts int[]
);
INSERT INTO customers VALUES
  (1, 'Ann', 'ann@example.org', true, '{"b": [1, 2.50], "a": null}'), (2, 'Bob', NULL, false, NULL),
  (3, 'Eve', 'e', NULL, '7');
INSERT INTO orders VALUES
  (9, '1', 10.10, 0.1, 'open', '2026-01-02 03:04:05+00', '{1,NULL}'),
  (10, '1', 10.20, 0.2, 'paid', '2026-01-02 04:04:05.5+01', '{}'),
  (11, '1', NULL, 'NaN', 'paid', NULL, NULL),
  (12, '1', -3.00, NULL, NULL, '2026-01-02 03:04:04+00', NULL),
  (13, '2', 0.05, 1e21, 'Paid', 'infinity', NULL),
  (14, '01', 1, 1, 'open', NULL, NULL),
  (15, NULL, 1, 1, 'open', NULL, NULL);
"""
ENTITIES = {
    "customer": {"source": "shop", "table": "public.customers", "key": ["id"], "types": {"profile": "json"}},
    "order": {"source": "shop", "table": "public.orders", "key": ["id"], "types": {"amount": "decimal"}},
}


def shop_spec(sections: dict[str, Any], **rest: Any) -> ContextSpec:
    spec = {"context": "customer", "version": 1, "root": "customer", "entities": ENTITIES, "fields": ["id"]}
    return ContextSpec.model_validate({**spec, "sections": sections, **rest})


def orders(**rest: Any) -> dict[str, Any]:
    return {"entity": "order", "kind": "many", "on": {"customer_id": "id"}, **rest}


async def shop(dsn: str, reader: PostgresReader, sections: dict[str, Any], **rest: Any) -> dict[str, Any]:
    run_sql(dsn, SHOP)
    return await bundles_of(shop_spec(sections, **rest), reader, b"secret")


async def test_fields_are_columns_expressions_masks_and_defaults(postgres_dsn: str, reader: PostgresReader) -> None:
    fields = [
        {"name": "customer", "column": "name"},
        {"name": "loud", "value": "upper(name)"},
        {"name": "email", "mask": "last4"},
        {"name": "hidden", "column": "email", "mask": "redact"},
        {"name": "vip", "default": False},
        "profile",
    ]
    found = await shop(postgres_dsn, reader, {}, fields=fields)
    assert found["1"] == {
        "customer": "Ann",
        "loud": "ANN",
        "email": "***.org",
        "hidden": "***",
        "vip": True,
        "profile": {"a": None, "b": [1, Decimal("2.50")]},
    }
    assert found["2"] == {
        "customer": "Bob",
        "loud": "BOB",
        "email": None,
        "hidden": None,
        "vip": False,
        "profile": None,
    }
    assert (found["3"]["vip"], found["3"]["profile"]) == (False, 7)


async def test_lists_are_ordered_with_nulls_smallest_and_joined_by_spelling(
    postgres_dsn: str, reader: PostgresReader
) -> None:
    sections = {
        "newest": orders(fields=["id"], order_by=["-placed"]),
        "oldest": orders(fields=["id"], order_by=["placed"], limit=2),
        "dearest": orders(fields=["id", "amount"], order_by=["-amount"], limit=3),
        "by_status": orders(fields=["id"], order_by=["status", "-id"]),
        "plain": orders(fields=["id"], filter="amount > 0"),
        "first": {
            **orders(fields=["id", "parts", "placed", "weight"], order_by=["placed"], filter="status == 'open'"),
            "kind": "one",
        },
    }
    found = await shop(postgres_dsn, reader, sections)
    ids = {name: [item["id"] for item in found["1"][name]] for name in list(sections)[:-1]}
    # "…05.5Z" is after "…05Z", though a dot is before a Z.
    assert ids == {
        "newest": [10, 9, 12, 11],
        "oldest": [11, 12],
        "dearest": [10, 9, 12],
        "by_status": [12, 9, 11, 10],
        "plain": [9, 10],
    }
    assert found["1"]["dearest"][0]["amount"] == "10.20"
    assert found["1"]["first"] == {
        "id": 9,
        "parts": [1, None],
        "placed": "2026-01-02T03:04:05Z",
        "weight": Decimal("0.1"),
    }
    assert found["2"]["first"] is None and found["2"]["newest"] == [{"id": 13}]
    assert found["3"]["newest"] == []


AGGREGATES: dict[str, Any] = {
    "orders": "count",
    "priced": {"count": "amount"},
    "total": {"sum": "amount"},
    "average": {"avg": "amount", "round": 2},
    "least": {"min": "amount"},
    "most": {"max": "amount"},
    "last_status": {"latest": "status", "by": "placed"},
    "statuses": {"count_distinct": "status"},
    "weight": {"sum": "weight"},
}
AGGREGATED_FIRST = {
    "orders": 4,
    "priced": 3,
    "total": Decimal("17.3"),
    "average": Decimal("5.77"),
    "least": "-3.00",
    "most": "10.20",
    "last_status": "paid",
    "statuses": 2,
    "weight": "NaN",
}
AGGREGATED_NONE = {
    "orders": 0,
    "priced": 0,
    "total": None,
    "average": None,
    "least": None,
    "most": None,
    "last_status": None,
    "statuses": 0,
    "weight": None,
}


@pytest.mark.parametrize("section_filter", [None, "id > 0"], ids=["counted by SQL", "counted from rows"])
async def test_aggregates_are_exact_on_both_ways(
    postgres_dsn: str, reader: PostgresReader, section_filter: str | None
) -> None:
    entities = {**ENTITIES, "order": {**ENTITIES["order"], "types": {"amount": "decimal"} if section_filter else {}}}
    found = await shop(
        postgres_dsn, reader, {"all": orders(aggregates=AGGREGATES, filter=section_filter)}, entities=entities
    )
    assert found["1"]["all"] == AGGREGATED_FIRST
    assert found["2"]["all"]["weight"] == 10**21
    assert found["3"]["all"] == AGGREGATED_NONE


@pytest.mark.parametrize("section_filter", [None, "id > 0"], ids=["counted by SQL", "counted from rows"])
async def test_groups_are_ordered_limited_and_share_all_rows(
    postgres_dsn: str, reader: PostgresReader, section_filter: str | None
) -> None:
    aggregates = {"share": {"function": "share", "round": 3}, "n": "count"}
    sections = {
        "by_name": orders(group_by=["status"], aggregates=aggregates, filter=section_filter),
        "top": orders(group_by=["status"], aggregates=aggregates, order_by=["-n"], limit=2, filter=section_filter),
    }
    found = await shop(postgres_dsn, reader, sections)
    quarter = Decimal("0.25")
    nothing = {"status": None, "share": quarter, "n": 1}
    opened = {"status": "open", "share": quarter, "n": 1}
    paid = {"status": "paid", "share": Decimal("0.5"), "n": 2}
    assert found["1"] == {"id": 1, "by_name": [nothing, opened, paid], "top": [paid, nothing]}
    assert found["3"] == {"id": 3, "by_name": [], "top": []}


async def test_aggregates_count_only_rows_that_their_where_lets_through(
    postgres_dsn: str, reader: PostgresReader
) -> None:
    aggregates = {
        "all": "count",
        "paid": {"function": "count", "where": "status == 'paid'"},
        "paid_amount": {"sum": "amount", "where": "status == 'paid'"},
        "average": {"avg": "amount", "where": "amount is not null", "round": 0},
    }
    found = await shop(postgres_dsn, reader, {"all": orders(aggregates=aggregates)})
    assert found["1"]["all"] == {"all": 4, "paid": 2, "paid_amount": Decimal("10.2"), "average": 6}


async def test_averages_round_half_to_even(postgres_dsn: str, reader: PostgresReader) -> None:
    run_sql(
        postgres_dsn,
        SHOP + "DELETE FROM orders; INSERT INTO orders (id, customer_id, weight) VALUES (1,'1',0.125),(2,'2',0.375)",
    )
    spec = shop_spec({"w": orders(aggregates={"w": {"avg": "weight", "round": 2}})})
    found = await bundles_of(spec, reader)
    assert (found["1"]["w"]["w"], found["2"]["w"]["w"]) == (Decimal("0.12"), Decimal("0.38"))


async def test_filters_decide_which_rows_exist(postgres_dsn: str, reader: PostgresReader) -> None:
    entities = {**ENTITIES, "customer": {**ENTITIES["customer"], "filter": "vip"}}
    assert set(await shop(postgres_dsn, reader, {}, entities=entities)) == {"1"}


async def test_rows_that_the_publication_leaves_out_do_not_exist(postgres_dsn: str) -> None:
    run_sql(postgres_dsn, SHOP)
    filters = {"public.customers": "id < 3", "public.orders": "status = 'paid' OR id = 9"}
    filtered = PostgresReader(postgres_dsn, "shop", filters)
    sections = {"counted": orders(aggregates={"n": "count"}), "listed": orders(fields=["id"])}
    found = await bundles_of(shop_spec(sections), filtered)
    await filtered.close()
    assert set(found) == {"1", "2"}
    assert found["1"] == {"id": 1, "counted": {"n": 3}, "listed": [{"id": 9}, {"id": 10}, {"id": 11}]}


async def test_sections_go_several_hops(postgres_dsn: str, reader: PostgresReader) -> None:
    run_sql(postgres_dsn, SHOP + "DELETE FROM orders WHERE id IN (14, 15)")
    spec = ContextSpec.model_validate(
        {
            "context": "orders",
            "version": 1,
            "root": "order",
            "entities": ENTITIES,
            "fields": ["id"],
            "sections": {
                "buyer": {
                    "entity": "customer",
                    "on": {"id": "customer_id"},
                    "fields": ["name"],
                    "sections": {"recent": orders(fields=["id"], order_by=["-id"], limit=2)},
                }
            },
        }
    )
    found = await bundles_of(spec, reader)
    assert found["9"] == {"id": 9, "buyer": {"name": "Ann", "recent": [{"id": 12}, {"id": 11}]}}
    assert found["13"]["buyer"]["recent"] == [{"id": 13}]


async def test_a_missing_table_or_column_is_named(postgres_dsn: str, reader: PostgresReader) -> None:
    run_sql(postgres_dsn, SHOP)
    with pytest.raises(ConfigError, match=r"public\.customers has no column 'nmae'"):
        await Oracle.create(shop_spec({}, fields=["nmae"]), {"shop": reader})
    entities = {**ENTITIES, "customer": {**ENTITIES["customer"], "table": "public.kustomers"}}
    with pytest.raises(ConfigError, match=r"shop has no table public\.kustomers"):
        await Oracle.create(shop_spec({}, entities=entities), {"shop": reader})
    with pytest.raises(ConfigError, match="no source 'shop'"):
        await Oracle.create(shop_spec({}), {})


async def test_a_database_that_is_away_is_one_clear_message() -> None:
    away = PostgresReader("postgresql://nobody@127.0.0.1:1/nothing", "shop")
    with pytest.raises(EnvironmentProblem, match=r"source shop: .*refused"):
        await away.columns("public.orders")


async def test_decimals_that_sort_should_be_declared(postgres_dsn: str, reader: PostgresReader) -> None:
    run_sql(postgres_dsn, SHOP)
    entities = {**ENTITIES, "order": {**ENTITIES["order"], "types": {}}}
    spec = shop_spec({"all": orders(fields=["id"], order_by=["amount"])}, entities=entities)
    oracle = await Oracle.create(spec, {"shop": reader})
    assert oracle.hints == ["public.orders.amount is numeric in the source: declare it under 'types' as decimal"]


def random_row(random: Random, table: str, number: int) -> dict[str, Any]:
    def some(values: list[Any]) -> Any:
        return random.choice([None, *values])

    row = {
        "n": some([-1, 0, 1, 2, 3]),
        "m": some([0, 1, 5, 12]),
        "d": some(["1.0", "1.25", "-2.75", "2.00", "10.00", "9.99"]),
        "t": some(["x", "y", "Z", "é", "", "a|b", "50%"]),
        "u": some(["u", "v"]),
        "flag": some([True, False]),
        "a_id": some([1, 2, 3, 4]),
        "b_id": some([1, 2, 3, 4]),
        "p": some([1, 2]),
        "q": some([1, 2, 3]),
    }
    keys = {"a": {"id": number}, "b": {"id": number}, "c": {"p": number % 3, "q": number // 3}}
    return {**row, **keys[table]}


def create_and_fill(dsn: str, tables: naive.Tables) -> None:
    columns = "n int, m bigint, d numeric, t text, u varchar, flag boolean, a_id int, b_id int, p int, q int, "
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table, key in TABLES.items():
            identifier = "" if key == ["p", "q"] else "id int, "
            connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(f"CREATE TABLE {table} ({columns}{identifier}PRIMARY KEY ({', '.join(key)}))")
            rows = list(tables[f"s.public.{table}"].values())
            names = list(rows[0])
            marks = ", ".join(["%s"] * len(names))
            with connection.cursor() as cursor:
                cursor.executemany(
                    f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",
                    [tuple(row[name] for name in names) for row in rows],
                )


def as_values(bundle: Any) -> Any:
    return json.loads(json.dumps(bundle), parse_float=Decimal)


async def test_random_specs_agree_with_a_naive_evaluation_in_memory(postgres_dsn: str) -> None:
    seed = Random().randrange(10**9)
    random = Random(seed)
    for number in range(60):
        tables: naive.Tables = {}
        for table, key in TABLES.items():
            rows = [random_row(random, table, index) for index in range(random.randint(1, 9))]
            tables[f"s.public.{table}"] = {"|".join(str(row[name]) for name in key): row for row in rows}
        spec = random_spec(random)
        create_and_fill(postgres_dsn, tables)
        reader = PostgresReader(postgres_dsn)
        try:
            found = await bundles_of(spec, reader)
        finally:
            await reader.close()
        expected = {key: as_values(bundle) for key, bundle in naive.bundles(spec, tables).items()}
        message = f"seed {seed}, spec {number}: {spec.model_dump_json(exclude_defaults=True)}"
        assert found == expected, message
