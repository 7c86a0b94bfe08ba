"""Joins by decimals: what SQL calls equal meets, whatever its scale, and whichever side declares it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from schemas.context import ContextSpec
from tests.support.incremental import incremental_bundles

ACCOUNTS = [{"id": "1.00", "code": "7.50", "n": 1}, {"id": "2.0", "code": "-0.00", "n": 2}]
PAYMENTS = [{"id": 1, "account": "1", "code": "7.5"}, {"id": 2, "account": "1.000", "code": "0"}]
TABLES = {"public.accounts": ACCOUNTS, "public.payments": PAYMENTS}
DECLARED = {"id": "decimal(10,2)", "code": "decimal"}


def spec_of(root: str, sections: dict[str, Any], accounts: dict[str, str], payments: dict[str, str]) -> ContextSpec:
    entities = {
        "account": {"source": "bank", "table": "public.accounts", "key": ["id"], "types": accounts},
        "payment": {"source": "bank", "table": "public.payments", "key": ["id"], "types": payments},
    }
    base = {"context": "c", "version": 1, "root": root, "entities": entities, "fields": ["id"]}
    return ContextSpec.model_validate({**base, "sections": sections})


@pytest.mark.parametrize(
    ("accounts", "payments", "compose"),
    [
        (*types, compose)
        for types, compose in product(
            [(DECLARED, {}), ({}, {"account": "decimal", "code": "numeric"}), (DECLARED, {"account": "decimal"})],
            ["copy", "link"],
        )
    ],
)
async def test_a_decimal_finds_its_equals(accounts: dict[str, str], payments: dict[str, str], compose: str) -> None:
    parent = {"entity": "account", "on": {"id": "account"}, "fields": ["n"], "compose": compose}
    by_code = {"entity": "account", "on": {"code": "code"}, "fields": ["n"], "compose": compose}
    spec = spec_of("payment", {"account": parent, "by_code": by_code}, accounts, payments)
    rows = {**TABLES, "public.payments": [*PAYMENTS, {"id": 3, "account": "01", "code": None}]}
    for seed in range(3):
        found = await incremental_bundles(spec, rows, seed)
        assert found == {
            "1": {"id": 1, "account": {"n": 1}, "by_code": {"n": 1}},
            "2": {"id": 2, "account": {"n": 1}, "by_code": {"n": 2}},
            "3": {"id": 3, "account": None, "by_code": None},
        }


@pytest.mark.parametrize("compose", ["copy", "link"])
@pytest.mark.parametrize(("declared", "names"), [(DECLARED, ("1", "2")), ({}, ("1.00", "2.0"))])
async def test_lists_and_counts_are_found_by_decimal_keys(
    compose: str, declared: dict[str, str], names: tuple[str, str]
) -> None:
    joined = {"entity": "payment", "kind": "many", "on": {"account": "id"}, "compose": compose}
    sections = {"all": {**joined, "fields": ["id"]}, "counted": {**joined, "aggregates": {"n": "count"}}}
    spec = spec_of("account", sections, declared, {"account": "decimal"})
    for seed in range(3):
        found = await incremental_bundles(spec, TABLES, seed)
        assert found == {
            names[0]: {"id": "1.00", "all": [{"id": 1}, {"id": 2}], "counted": {"n": 2}},
            names[1]: {"id": "2.0", "all": [], "counted": {"n": 0}},
        }


async def test_what_nobody_declared_joins_by_its_spelling() -> None:
    sections = {"account": {"entity": "account", "on": {"id": "account"}, "fields": ["n"]}}
    found = await incremental_bundles(spec_of("payment", sections, {}, {}), TABLES)
    assert [bundle["account"] for bundle in found.values()] == [None, None]
