"""Where each field comes from: as the spec says it, of what the caller may see."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from pipeline.lookup.page_fields import FieldOrigin, SectionOrigin, origins
from schemas.context import ContextSpec
from tests.unit.test_access_http import World, bearer

SPEC = ContextSpec.model_validate(
    {
        "context": "flight",
        "version": 3,
        "root": "flight",
        "entities": {
            "flight": {"source": "nyc", "table": "public.flights", "key": ["id"], "filter": "not cancelled"},
            "plane": {"source": "fleet", "table": "fleet.planes", "key": ["tailnum"]},
        },
        "fields": [
            "id",
            {"name": "guest", "column": "passenger", "mask": "last4"},
            {"name": "late", "value": "d > 15"},
        ],
        "sections": {
            "plane": {
                "entity": "plane",
                "on": {"tailnum": "tail"},
                "compose": "link",
                "fields": [{"name": "model", "default": "?"}],
                "sections": {
                    "flown": {
                        "entity": "flight",
                        "kind": "many",
                        "on": {"tail": "tailnum"},
                        "order_by": ["-id"],
                        "limit": 10,
                        "filter": "d is not null",
                        "fields": ["id"],
                    }
                },
            },
            "delays": {
                "entity": "flight",
                "kind": "many",
                "on": {"carrier": "carrier"},
                "group_by": ["origin"],
                "aggregates": {"late": {"count": "id", "where": "d > 15"}, "last": {"latest": "d", "by": "id"}},
            },
        },
    }
)
ROOT = {"section": "", "entity": "flight", "source": "nyc", "table": "public.flights"}


def test_every_field_tells_its_table_and_column() -> None:
    found = {field.path: field for field in origins(SPEC).fields}
    paths = "id guest late plane.model plane.flown.id delays.origin delays.late delays.last"
    assert list(found) == paths.split()
    assert found["guest"] == FieldOrigin(path="guest", kind="column", column="passenger", mask="last4", **ROOT)
    assert found["late"] == FieldOrigin(path="late", kind="value", value="d > 15", **ROOT)
    assert (found["plane.model"].source, found["plane.model"].default) == ("fleet", "?")
    assert found["delays.origin"].kind == "group"
    late, last = found["delays.late"], found["delays.last"]
    assert (late.kind, late.function, late.column, late.where) == ("aggregate", "count", "id", "d > 15")
    assert (last.function, last.by) == ("latest", "id")


def test_every_section_tells_how_its_rows_come_in() -> None:
    root, plane, flown, delays = origins(SPEC).sections
    assert (root.path, root.filters, root.key, root.compose) == ("", ["not cancelled"], ["id"], None)
    assert (plane.on, plane.compose, plane.kind) == ({"tailnum": "tail"}, "link", "one")
    assert flown == SectionOrigin(
        path="plane.flown",
        entity="flight",
        source="nyc",
        table="public.flights",
        kind="many",
        key=["id"],
        on={"tail": "tailnum"},
        filters=["not cancelled", "d is not null"],
        order_by=["-id"],
        limit=10,
        compose="auto",
    )
    assert delays.path == "delays"


def test_what_a_caller_may_not_see_is_not_told() -> None:
    found = origins(SPEC, ("guest", "plane.flown"))
    assert [field.path for field in found.fields] == ["guest", "plane.flown.id"]
    assert [section.path for section in found.sections] == ["", "plane", "plane.flown"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_over_http_a_scope_is_needed_and_fields_are_narrowed(world: World) -> None:
    transport = httpx.ASGITransport(app=world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lookup") as client:
        whole, narrow = world.key("bundles:read"), world.key("bundles:read:flight", fields={"flight": ["plane"]})
        searching = world.key("search:read")
        asked = [await client.get("/v1/contexts/flight:fields", headers=bearer(key)) for key in (whole, narrow)]
        paths = [[field["path"] for field in response.json()["fields"]] for response in asked]
        assert paths[1] and paths[1] == [path for path in paths[0] if path.startswith("plane.")] != paths[0]
        refused = await client.get("/v1/contexts/flight:fields", headers=bearer(searching))
        unknown = await client.get("/v1/contexts/no_such:fields", headers=bearer(whole))
        assert (refused.status_code, unknown.status_code) == (403, 404)
