"""Fixed bundles: linked sections are cut out and put back, byte for byte, wherever they stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.world.files import BundleLine, WorldError
from pipeline.evaluation.world.filled import Filled
from pipeline.evaluation.world.fixed import stored_bundles
from pipeline.plan import Plan, compile_plan
from schemas.bundle import UnitKey
from schemas.context import ContextSpec

SPEC: dict[str, Any] = {
    "context": "item",
    "version": 1,
    "root": "item",
    "entities": {
        "item": {"source": "shop", "table": "public.items", "key": ["id"]},
        "order": {"source": "shop", "table": "public.orders", "key": ["id"]},
        "customer": {"source": "crm", "table": "public.customers", "key": ["id"]},
    },
    "fields": ["id", "note"],
    "sections": {
        "order": {
            "entity": "order",
            "on": {"id": "order_id"},
            "compose": "copy",
            "fields": ["id", "note"],
            "sections": {
                "customer": {"entity": "customer", "on": {"id": "customer_id"}, "compose": "link", "fields": ["name"]}
            },
        },
        "buyer": {"entity": "customer", "on": {"id": "buyer_id"}, "compose": "link", "fields": ["name"]},
    },
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile_plan(ContextSpec.model_validate(SPEC))


def filled(plan: Plan, data: str, fragments: Mapping[str, str | None]) -> Filled:
    line = BundleLine("item", "1", msgspec.Raw(data.encode("utf-8", "surrogatepass")), fragments=dict(fragments))
    (found,) = stored_bundles([(1, line)], "b.jsonl", {"item": plan}).values()
    return Filled(plan, found.values)


@given(note=VALUES, name=VALUES, ascii_only=st.booleans(), spaced=st.booleans())
def test_what_is_cut_apart_comes_together_again(
    plan: Plan, note: Any, name: Any, ascii_only: bool, spaced: bool
) -> None:
    data = {"note": note, "order": {"customer": {"name": name}, "note": note}, "buyer": {"name": name}, "id": 1}
    separators = (", ", ": ") if spaced else (",", ":")
    text = json.dumps(data, ensure_ascii=ascii_only, separators=separators)
    for fragments in ({}, {"buyer": "7"}, {"order.customer": "8"}, {"order.customer": "8", "buyer": "7"}):
        body = filled(plan, text, fragments).body("1")
        assert body is not None and json.loads(body) == json.loads(text)
        if not fragments:
            assert body == text.encode("utf-8", "surrogatepass") or spaced


def test_each_linked_section_lies_under_its_own_key(plan: Plan) -> None:
    text = '{"id":1,"order":{"id":2,"customer":{"name":"A"}},"buyer":null}'
    found = filled(plan, text, {"order.customer": "8", "buyer": None})
    assert found.values[UnitKey("order.customer", "8")].body == b'{"name":"A"}'
    root = found.values[UnitKey("", "1")]
    assert root.body == b'{"id":1,"order":{"id":2,"customer":},"buyer":}' and root.meta is not None
    assert [(one.unit, one.key) for one in root.meta.fragments] == [("order.customer", "8"), ("buyer", None)]
    assert found.body("1") == text.encode()


def test_a_fragment_inside_of_another_is_refused(plan: Plan) -> None:
    text = '{"id":1,"order":{"id":2,"customer":{"name":"A"}}}'
    with pytest.raises(WorldError, match=r"b.jsonl:1: fragments: order.customer lies in order, which is one already"):
        filled(plan, text, {"order": "2", "order.customer": "8"})
