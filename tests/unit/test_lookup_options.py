"""What callers may ask of a lookup, and the parts of bundles that they get."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.lookup.options import BadOptions, LookupOptions, path_mistakes, read_options
from pipeline.lookup.selection import select
from schemas.context import ContextSpec

SPEC = ContextSpec.model_validate(
    {
        "context": "order",
        "version": 1,
        "root": "order",
        "entities": {
            "order": {"source": "shop", "table": "public.orders", "key": ["id"]},
            "customer": {"source": "shop", "table": "public.customers", "key": ["id"]},
            "line": {"source": "shop", "table": "public.lines", "key": ["id"]},
        },
        "fields": ["id", {"name": "sum", "column": "total"}],
        "sections": {
            "customer": {"entity": "customer", "on": {"id": "customer_id"}, "fields": ["name", "city"]},
            "lines": {
                "entity": "line",
                "kind": "many",
                "on": {"order_id": "id"},
                "fields": ["article", "count"],
                "order_by": ["id"],
            },
        },
    }
)
BUNDLE = b'{"id":1,"sum":"9.90","customer":{"name":"Ada","city":"London"},"lines":[{"article":"a","count":2}]}'
SECTIONS = ["customer", "lines"]


@pytest.mark.parametrize(
    ("headers", "query", "found"),
    [
        ({}, "", LookupOptions()),
        ({"x-request-timeout-ms": "15"}, "", LookupOptions(budget_ms=15)),
        ({"grpc-timeout": "20m"}, "", LookupOptions(budget_ms=20)),
        ({"grpc-timeout": "3S", "x-request-timeout-ms": "50.5"}, "", LookupOptions(budget_ms=50.5)),
        ({"grpc-timeout": "1500u"}, "budget_ms=7", LookupOptions(budget_ms=1.5)),
        ({}, "max_age_ms=0&token_budget=800", LookupOptions(max_age_ms=0, token_budget=800)),
        ({}, "sections=a,b&sections=c, a", LookupOptions(sections=("a", "b", "c"))),
        ({}, "fields=&position=x", LookupOptions(fields=(), positions=("x",))),
    ],
)
def test_options_from_headers_and_parameters(headers: dict[str, str], query: str, found: LookupOptions) -> None:
    pairs = [tuple(part.split("=", 1)) for part in query.split("&") if part]
    assert read_options(headers, pairs) == found  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "query", "told"),
    [
        ({"x-request-timeout-ms": "0"}, [], "a budget is 1 to 60,000 milliseconds, not 0"),
        ({"grpc-timeout": "8760H"}, [], "a budget is 1 to 60,000 milliseconds"),
        ({"grpc-timeout": "soon"}, [], "grpc-timeout is up to eight digits"),
        ({"x-request-timeout-ms": "nan"}, [], "x-request-timeout-ms is a number"),
        ({}, [("max_age_ms", "-1")], "max_age_ms is 0 to"),
        ({}, [("token_budget", "1e3")], "token_budget is a whole number"),
        ({}, [("token_budget", "0")], "token_budget is 1 to"),
        ({}, [("max_age", "1")], "did you mean max_age_ms?"),
        ({}, [("sections", ",".join(f"s{n}" for n in range(101)))], "at most 100"),
    ],
)
def test_all_mistakes_are_told(headers: dict[str, str], query: list[tuple[str, str]], told: str) -> None:
    with pytest.raises(BadOptions) as caught:
        read_options(headers, [*query, ("budget_ms", "x")])
    assert len(caught.value.mistakes) == 2
    assert any(told in mistake for mistake in caught.value.mistakes)


def test_paths_that_a_context_does_not_have() -> None:
    options = LookupOptions(sections=("customers", "lines"), fields=("sum", "total", "customer.nam", "lines"))
    assert path_mistakes(options, SPEC) == [
        "order has no section 'customers'; did you mean customer?",
        "order has no field 'total'; it has id, sum, customer.name, customer.city, lines.article, lines.count",
        "order has no field 'customer.nam'; did you mean customer.name?",
    ]


@pytest.mark.parametrize(
    ("options", "kept", "left_out"),
    [
        (
            {"sections": ("customer",)},
            {"id": 1, "sum": "9.90", "customer": {"name": "Ada", "city": "London"}},
            ["lines"],
        ),
        ({"sections": ()}, {"id": 1, "sum": "9.90"}, ["customer", "lines"]),
        ({"fields": ("id",)}, {"id": 1}, ["customer", "lines"]),
        ({"fields": ("customer.city", "lines.count")}, {"customer": {"city": "London"}, "lines": [{"count": 2}]}, []),
        (
            {"fields": ("sum",), "sections": ("lines",)},
            {"sum": "9.90", "lines": [{"article": "a", "count": 2}]},
            ["customer"],
        ),
        ({"fields": ("customer", "customer.city")}, {"customer": {"name": "Ada", "city": "London"}}, ["lines"]),
    ],
)
def test_parts_of_a_bundle(options: dict[str, Any], kept: dict[str, Any], left_out: list[str]) -> None:
    found, without = select(BUNDLE, LookupOptions(**options), SECTIONS)
    assert (json.loads(found), without) == (kept, left_out)


def test_an_empty_section_stays_what_it_is() -> None:
    found, _ = select(b'{"customer":null,"lines":[]}', LookupOptions(fields=("customer.city", "lines.count")), SECTIONS)
    assert found == b'{"customer":null,"lines":[]}'
