"""What counts as an output: everything else has one reason, is mended once at most, and never guessed at."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from pipeline.core.errors import ConfigError
from pipeline.guard.output import TEXT, Tool, of_model, of_schema
from pipeline.guard.strict_json import DEPTH_MAX, InvalidOutput, mended, parse


class Leg(BaseModel):
    code: str
    minutes: int


class Trip(BaseModel):
    legs: list[Leg]
    total: float


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    code: str


TRIP = of_model(Trip)
SCHEMA = of_schema(
    "answer",
    {
        "type": "object",
        "properties": {"answer": {"type": "integer", "minimum": 0}},
        "required": ["answer"],
        "additionalProperties": False,
    },
)
GOOD = '{"legs": [{"code": "AA1", "minutes": 5}], "total": 1.5}'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "not_json"),
        ('{"a": 1', "not_json"),
        ("{'a': 1}", "not_json"),
        ('{"a": 1,}', "not_json"),
        ('{"a": 1} {"a": 2}', "not_json"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "duplicate_key"),
        ('{"a": 1, "\\u0061": 2}', "duplicate_key"),
        ("[NaN]", "not_finite"),
        ("[Infinity]", "not_finite"),
        ("[-Infinity]", "not_finite"),
        ("[1e400]", "not_finite"),
        ("9" * 5000, "not_finite"),
        ("[0." + "1" * 5000 + "]", "not_finite"),
        ("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1), "too_deep"),
        ("[" * 100_000, "too_deep"),
        ('{"a":' * 50_000, "too_deep"),
        ('["\\ud800"]', "bad_text"),
        ("[\ud800]", "bad_text"),
        ('"' + "x" * 300_000 + '"', "too_large"),
        ('"' + "ä" * 200_000 + '"', "too_large"),
    ],
)
def test_what_is_refused_before_a_schema_is_asked(text: str, kind: str) -> None:
    with pytest.raises(InvalidOutput) as caught:
        parse(text)
    assert caught.value.kind == kind
    assert len(caught.value.detail) <= 300


def test_brackets_in_strings_are_not_depth() -> None:
    assert parse(json.dumps(["[" * 1000])) == ["[" * 1000]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=15,
    ),
    st.sampled_from(["{}", "Here you are: {}", "```json\n{}\n```", "x {} y"]),
)
def test_what_is_good_stays_as_it_is_and_words_around_it_are_all_that_is_dropped(value: Any, around: str) -> None:
    text = json.dumps(value)
    assert parse(text) == value
    if isinstance(value, dict | list):
        inner = mended(around.replace("{}", text, 1))
        # text inside strings may look like a fence; then nothing is taken rather than something else
        assert inner is None or parse(inner) == value


@given(st.text(alphabet='{}[]",:\\ a1`\n'))
def test_whatever_comes_ends_in_a_value_or_a_reason(text: str) -> None:
    try:
        SCHEMA.check(text)
    except InvalidOutput as error:
        assert error.kind and error.detail


@pytest.mark.parametrize(
    "text", ['"\\"' * 60_000, "[" + '"' * 100_001, '{"a":"' + "\\" * 200_001, "```json\n" * 20_000]
)
def test_no_text_takes_long(text: str) -> None:
    began_s = time.process_time()
    with pytest.raises(InvalidOutput):
        SCHEMA.check(text)
    assert time.process_time() - began_s < 5, "linear: some milliseconds here; quadratic would be minutes"


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        (GOOD, False),
        (f"\n  {GOOD}\n", False),
        (f"```json\n{GOOD}\n```", True),
        (f"```\n{GOOD}\n```", True),
        (f"Sure! Here it is:\n{GOOD}\nAnything else?", True),
        (f"\ufeff{GOOD}", True),
    ],
)
def test_one_mechanical_repair_is_recorded(text: str, repaired: bool) -> None:
    checked = TRIP.check(text)
    assert checked.value == Trip(legs=[Leg(code="AA1", minutes=5)], total=1.5)
    assert checked.repaired is repaired


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD} or {GOOD}",
        f"[1] {GOOD}",
        f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```",
        GOOD[:-1],
        '{"legs": [{"code": "AA1", "minutes": 5}], "total": 1.5, "more": ',
        '{"outer": {"legs": [], "total": 1.0}',
        GOOD.replace('"', "'"),
    ],
)
def test_nothing_is_guessed(text: str) -> None:
    with pytest.raises(InvalidOutput) as caught:
        TRIP.check(text)
    assert caught.value.kind == "not_json"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"legs": [{"code": "AA1", "minutes": "5"}], "total": 1.5}', "legs.0.minutes"),
        ('{"legs": [{"code": "AA1", "minutes": 5.0}], "total": 1.5}', "legs.0.minutes"),
        ('{"legs": [], "total": "1.5"}', "total"),
        ('{"legs": []}', "total"),
        ('{"legs": [], "total": 1, "tenant": "other"}', "tenant"),
        ('{"legs": [{"code": "A", "minutes": 1, "x": 1}], "total": 1}', "legs.0.x"),
        ("[]", "it"),
    ],
)
def test_a_model_is_strict_and_says_where(text: str, named: str) -> None:
    with pytest.raises(InvalidOutput, match=rf"^{named}: ") as caught:
        TRIP.check(text)
    assert caught.value.kind == "schema"


def test_a_model_that_says_itself_that_it_is_open_is() -> None:
    assert of_model(Open).check('{"code": "x", "more": 1}').value.model_dump() == {"code": "x", "more": 1}


def test_a_schema_is_checked_and_fetches_nothing() -> None:
    assert SCHEMA.check('{"answer": 5}').value == {"answer": 5}
    with pytest.raises(InvalidOutput, match="answer: "):
        SCHEMA.check('{"answer": -1}')
    for schema in ({"type": "objekt"}, {"$ref": "http://127.0.0.1:1/schema.json"}, {"$ref": "file:///etc/hostname"}):
        with pytest.raises(ConfigError, match=r"output 'x': its JSON Schema can't be used"):
            of_schema("x", schema)


def test_a_pattern_of_a_schema_can_not_hang_on_what_a_model_wrote() -> None:
    trap = of_schema("trap", {"type": "string", "pattern": "^(a+)+$"})
    began_s = time.process_time()
    with pytest.raises(InvalidOutput):
        trap.check('"' + "a" * 40 + '!"')
    assert time.process_time() - began_s < 5, "a backtracking engine would take centuries"


def test_texts() -> None:
    assert TEXT.check("  hello ").value == "  hello "
    for text, kind in (("", "empty"), (" \n", "empty"), ("\ud800", "bad_text"), ("x" * 300_000, "too_large")):
        with pytest.raises(InvalidOutput) as caught:
            TEXT.check(text)
        assert caught.value.kind == kind


def test_arguments_of_tools_are_never_mended() -> None:
    tool = Tool("weather", "", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    assert tool.arguments('{"city": "Berlin"}') == {"city": "Berlin"}
    for text in ('{"city": "Ber', 'x {"city": "Berlin"}', '```\n{"city": "B"}\n```', '["city"]', "{}", '{"city": 1}'):
        with pytest.raises(InvalidOutput):
            tool.arguments(text)


def test_values_of_the_application_are_checked_too() -> None:
    trip = Trip(legs=[], total=2.0)
    assert TRIP.check_value(trip) == trip
    assert SCHEMA.check_value({"answer": 1}) == {"answer": 1}
    assert TEXT.check_value("x") == "x"
    for output, value in ((SCHEMA, {"answer": "1"}), (SCHEMA, {"answer": {1}}), (TEXT, 5), (SCHEMA, float("nan"))):
        with pytest.raises(InvalidOutput):
            output.check_value(value)
