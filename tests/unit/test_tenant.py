"""Whose bundle one is: the tenant's column, from the row into the header of what is stored."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.flow import Flow
from pipeline.plan import compile_plan
from pipeline.stores.memory import MemoryBundles, MemoryRelations, MemoryRows
from schemas.bundle import Meta, Stored, UnitKey, decode_stored, encode_stored
from schemas.context import ContextSpec
from schemas.keys import tenant_text
from tests.unit.test_flow import SPEC, World


def tenants(tenant: str | None = "account") -> World:
    """Orders whose `account` says whose they are; no bundle shows that column."""
    world = World()
    world.plan = compile_plan(ContextSpec.model_validate({**SPEC, "tenant": tenant}), mask_secret=b"s")
    world.bundles = MemoryBundles()
    world.flow = Flow(world.plan, MemoryRows(), MemoryRelations(), world.bundles)
    return world


@pytest.mark.parametrize(("value", "tenant"), [("acme", "acme"), (7, "7"), (None, None), ("7", "7"), ("a|b", "a|b")])
async def test_a_bundle_says_whose_it_is(value: Any, tenant: str | None) -> None:
    world = tenants()
    await world.flow.process([world.order(1, account=value), world.customer("Ann")])
    meta = world.bundles.values[UnitKey("", "1")].meta
    assert meta is not None and meta.tenant == tenant == tenant_text(value)
    assert b"account" not in world.answer("1")
    fragment = world.bundles.values[UnitKey("customer", "7")].meta
    assert fragment is not None and fragment.tenant is None, "fragments are shared by all that show them"


async def test_a_bundle_that_changes_hands_says_so_though_its_bytes_stay() -> None:
    world = tenants()
    await world.flow.process([world.order(1, account="acme")])
    before = world.bundles.values[UnitKey("", "1")]
    await world.flow.process([world.order(1, account="globex")])
    after = world.bundles.values[UnitKey("", "1")]
    assert before.meta is not None and after.meta is not None
    assert (after.meta.tenant, after.body, after.meta.hash) == ("globex", before.body, before.meta.hash)


async def test_without_a_column_there_is_none() -> None:
    world = tenants(None)
    await world.flow.process([world.order(1, account="acme")])
    meta = world.bundles.values[UnitKey("", "1")].meta
    assert meta is not None and meta.tenant is None


def test_headers_keep_it_and_older_ones_have_none() -> None:
    stored = Stored(7, Meta("h", 1, tenant="acme"), b"{}")
    assert decode_stored(encode_stored(stored)) == stored
    older = decode_stored(b'%016d {"hash":"h","spec_version":1}\n{}' % 7)
    assert older.meta is not None and older.meta.tenant is None
