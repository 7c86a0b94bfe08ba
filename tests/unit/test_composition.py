"""What `compose: auto` becomes: the rule that workers follow and `ctxpipe check` shows."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.composition import adopted, choose, composition_of, default_composition
from schemas.context import ContextSpec
from schemas.fan_out import FanOut


def section(entity: str, on: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"entity": entity, "on": on, "fields": ["id"], **more}


def spec(**sections: Any) -> ContextSpec:
    entities = {
        name: {"source": "shop", "table": f"public.{name}", "key": ["id"]} for name in ("flight", "plane", "maker")
    }
    made = {"context": "flight", "version": 1, "root": "flight", "entities": entities, "fields": ["id"]}
    return ContextSpec.model_validate({**made, "sections": sections})


ONE = section("plane", {"id": "plane_id"})
LIST = section("plane", {"flight_id": "route"}, kind="many")
SUMS = {key: value for key, value in LIST.items() if key != "fields"} | {"aggregates": {"count": "count"}}


@pytest.mark.parametrize(
    ("kind", "most", "expected"),
    [
        (ONE, 1, "copy"),
        (ONE, 16, "copy"),
        (ONE, 17, "link"),
        (LIST, 1, "copy"),
        (LIST, 2, "link"),
        (SUMS, 1, "copy"),
        (SUMS, 2, "link"),
        (ONE | {"compose": "copy"}, 1000, "copy"),
        (ONE | {"compose": "link"}, 1, "link"),
    ],
)
def test_the_greatest_number_of_parents_decides(kind: dict[str, Any], most: int, expected: str) -> None:
    assert composition_of(choose(spec(part=kind), {"part": FanOut(1.0, most)})) == {"part": expected}


def test_what_is_not_measured_follows_the_join() -> None:
    made = spec(by_key=section("plane", {"flight_id": "id"}, kind="many"), other=ONE)
    expected = {"by_key": "copy", "other": "link"}
    assert default_composition(made) == expected
    empty = {"by_key": FanOut(0.0, 0), "other": FanOut(0.0, 0)}
    assert composition_of(choose(made, empty)) == expected, "an empty table says nothing"


def test_a_copy_inside_a_copy_is_rewritten_for_all_parents_of_both() -> None:
    made = spec(plane=ONE | {"sections": {"maker": section("maker", {"id": "maker_id"})}})
    choices = choose(made, {"plane": FanOut(2.0, 4), "plane.maker": FanOut(1.5, 5)})
    assert composition_of(choices) == {"plane": "copy", "plane.maker": "link"}
    assert choices["plane.maker"].copied == FanOut(3.0, 20)
    assert choose(made, {"plane.maker": FanOut(1.0, 1)})["plane"].composition == "link"


def test_what_is_inside_a_link_is_part_of_its_fragment() -> None:
    made = spec(plane=ONE | {"sections": {"maker": section("maker", {"id": "maker_id"})}})
    choices = choose(made, {"plane": FanOut(50.0, 90), "plane.maker": FanOut(40.0, 60)})
    assert composition_of(choices) == {"plane": "link", "plane.maker": "copy"}
    assert choices["plane.maker"].inside == "plane" and choices["plane"].inside is None
    assert choices["plane.maker"].copied == FanOut(40.0, 60), "fragments that a change rewrites, not bundles"


def test_a_proposal_decides_nothing_that_the_spec_has_decided() -> None:
    made = spec(asked=ONE | {"compose": "link"}, free=ONE)
    proposal = {"asked": "copy", "free": "copy", "of_an_older_file": "copy"}
    assert adopted(made, proposal) == {"asked": "link", "free": "copy"}
    assert adopted(made, {}) == {"asked": "link", "free": "link"}
