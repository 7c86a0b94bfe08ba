"""The published JSON Schema: current, and of one mind with the models about good and bad files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

import schemas
from pipeline.commands.schema import command
from schemas.context import ContextSpec
from schemas.context_schema import context_json_schema
from schemas.yaml_file import read_yaml
from tests.unit.test_context_file import GOOD

PUBLISHED = Path(schemas.__file__).parent / "context.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(context_json_schema())


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("schema") / "good.yaml"
    path.write_text(GOOD)
    return read_yaml(path).data


def accepts(data: Any) -> bool:

    return VALIDATOR.is_valid(data)


def model_accepts(data: Any) -> bool:
    try:
        ContextSpec.model_validate(data)
    except ValidationError:
        return False
    return True


def test_the_published_file_is_what_the_models_say() -> None:
    result = CliRunner().invoke(command)
    assert result.exit_code == 0
    assert PUBLISHED.read_text() == result.output, "run: ctxpipe schema > schemas/context.schema.json"


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(context_json_schema())


def at(data: Any, path: str, value: Any) -> Any:
    """A copy with another value at `path`; ... takes the key out."""
    data = copy.deepcopy(data)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    holder = data
    for step in steps:
        holder = holder[step]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return data


AGGREGATE = "sections.punctuality.aggregates.flights"


@pytest.mark.parametrize(
    ("path", "value", "good_one"),
    [
        ("description", "x", True),
        ("fields.0", {"name": "a"}, True),
        ("fields.0", {"name": "a", "column": "B"}, True),
        ("fields.0", {"name": "a", "value": "1", "default": [1], "mask": None}, True),
        ("fields.0", {"name": "a", "column": "b", "value": "1"}, False),
        ("fields.0", {"column": "b"}, False),
        ("fields.0", {"name": "a", "column": None}, False),
        ("fields.0", {"name": "a", "column": None, "value": "1"}, True),
        ("fields.0", "Upper", False),
        ("fields.0", 5, False),
        ("fields.0", {"name": "a", "maks": "hash"}, False),
        ("fields", [], False),
        (AGGREGATE, "share", True),
        (AGGREGATE, "sum", False),
        (AGGREGATE, "total", False),
        (AGGREGATE, {"function": "count"}, True),
        (AGGREGATE, {"function": "sum", "column": "a"}, True),
        (AGGREGATE, {"function": "sum"}, False),
        (AGGREGATE, {"sum": "a", "where": "a > 1"}, True),
        (AGGREGATE, {"sum": None}, False),
        (AGGREGATE, {"count": True}, True),
        (AGGREGATE, {"count": "a"}, True),
        (AGGREGATE, {"latest": "a"}, False),
        (AGGREGATE, {"latest": "a", "by": "b"}, True),
        (AGGREGATE, {"function": "latest", "column": "a"}, False),
        (AGGREGATE, {"avg": "a", "round": 19}, False),
        (AGGREGATE, {"avg": "a", "sum": "b"}, False),
        ("sections.plane.kind", "several", False),
        ("sections.plane.on", {}, False),
        ("sections.plane.limit", 1001, False),
        ("sections.plane.sections.last_flights.limit", 1, True),
        ("sections.plane.sections.last_flights.entity", ..., False),
        ("entities.plane.key", [], False),
        ("entities.plane.types", {"a": "decimal"}, True),
        ("root", ..., False),
        ("version", 0, False),
        ("serving.default", None, True),
        ("text.template", 5, False),
    ],
)
def test_schema_and_models_agree(good: Any, path: str, value: Any, good_one: bool) -> None:
    assert accepts(good) and model_accepts(good)
    changed = at(good, path, value)
    assert model_accepts(changed) is good_one
    assert accepts(changed) is good_one
