"""What a version was built from: written, read back, and compared with what a person changed."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.context import ContextSpec
from schemas.definition import Definition, changed_parts, decode_definition, encode_definition
from schemas.errors import DecodeError

ENTITIES = {
    "order": {"source": "shop", "table": "public.orders", "key": ["id"], "types": {"amount": "decimal"}},
    "customer": {"source": "crm", "table": "public.customers", "key": ["id"]},
}
SECTIONS: dict[str, Any] = {
    "customer": {"entity": "customer", "on": {"id": "customer_id"}, "fields": ["name"], "compose": "link"},
    "others": {
        "entity": "order",
        "kind": "many",
        "on": {"customer_id": "customer_id"},
        "aggregates": {"orders": "count", "mean": {"avg": "amount", "round": 2}, "last": {"latest": "id", "by": "at"}},
    },
}


def spec(**changes: Any) -> ContextSpec:
    fields = ["id", {"name": "total", "column": "amount"}, {"name": "late", "value": "days > 3", "default": False}]
    made = {"context": "order", "version": 2, "root": "order", "entities": ENTITIES, "fields": fields}
    return ContextSpec.model_validate({**made, "sections": SECTIONS, **changes})


def test_a_definition_is_read_as_it_was_written() -> None:
    definition = Definition(
        spec(tenant="id", serving={"budget_ms": 7, "default": {"x": [1, None]}}), {"customer": "link", "others": "copy"}
    )
    assert decode_definition(encode_definition(definition)) == definition


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b'{"spec":{"context":"a"},"composition":{}}', b'{"spec":{"new":1},"composition":{}}']
)
def test_what_another_release_wrote_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_definition(data)


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, []),
        ({"version": 3, "description": "new", "serving": {"max_age_ms": 1}}, []),
        ({"entities": dict(reversed(ENTITIES.items()))}, []),
        ({"fields": ["id"]}, ["fields"]),
        ({"entities": ENTITIES | {"order": ENTITIES["order"] | {"filter": "id > 1"}}}, ["entities"]),
        ({"tenant": "id", "root": "customer"}, ["root", "tenant"]),
        ({"sections": {"others": SECTIONS["others"]}}, ["sections.customer"]),
        ({"sections": SECTIONS | {"customer": SECTIONS["customer"] | {"compose": "copy"}}}, ["sections.customer"]),
        ({"sections": SECTIONS | {"more": SECTIONS["customer"]}}, ["sections.more"]),
        ({"sections": dict(reversed(SECTIONS.items()))}, ["the order of sections"]),
    ],
)
def test_only_what_shapes_bundles_is_a_change(changes: dict[str, Any], changed: list[str]) -> None:
    assert changed_parts(spec(), spec(**changes)) == changed
    assert changed_parts(spec(**changes), spec()) == changed
