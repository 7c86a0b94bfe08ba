"""Questions for people as they are kept: without secrets, never too large, and answered once for every reader alike."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import BaseModel

from pipeline.commands._escalations_show import printable, why
from pipeline.guard.escalation_records import (
    BYTES_MAX,
    PersonsAnswer,
    Question,
    decode,
    decode_heading,
    encode_answer,
    encode_question,
    skeleton,
    standings_of,
)
from pipeline.guard.escalations import Escalation
from pipeline.guard.output import of_model, of_schema
from pipeline.guard.secrets import HIDDEN, Secrets
from pipeline.guard.values import Attempt


def escalation(**more: Any) -> Escalation:
    attempt = Attempt(rung="primary", endpoint="large", model="gpt-4o", reason="timeout", detail="it did not answer")
    given: dict[str, Any] = {
        "id": "3f1c", "task": "rebook", "tenant": "acme", "request_id": "r-1", "at_us": 7, "data": {"seat": "12A"},
        "messages": [{"role": "user", "content": "Which seat?"}], "output_name": "Seat", "last_output": "maybe",
        "json_schema": {"type": "object"}, "attempts": (attempt,),
    }  # fmt: skip
    return Escalation(**{**given, **more})


def kept(**more: Any) -> Question:
    _, value = encode_question(escalation(**more), Secrets(["the-key-of-large"]))
    question = decode(value)
    assert isinstance(question, Question)
    return question


def test_a_question_keeps_what_a_person_needs() -> None:
    question = kept()
    assert (question.id, question.task, question.tenant, question.request_id) == ("3f1c", "rebook", "acme", "r-1")
    assert question.messages == [{"role": "user", "content": "Which seat?"}]
    assert question.data == {"seat": "12A"} and question.json_schema == {"type": "object"} and not question.cut
    (tried,) = question.attempts
    assert (tried.endpoint, tried.reason, tried.detail) == ("large", "timeout", "it did not answer")
    assert why(question.attempts) == "large: timeout"
    heading = decode_heading(encode_question(escalation(), Secrets())[1])
    assert (heading.kind, heading.id, heading.output_name) == ("question", "3f1c", "Seat")


@pytest.mark.parametrize(
    "secret",
    [
        "the-key-of-large",
        "sk-proj-abcdefghijklmnopqrstuvwx",
        "ghp_0123456789abcdefghijABCDEFGHIJ",
        "AKIAABCDEFGHIJKLMNOP",
        "Bearer abcdef0123456789abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ],
)
def test_secrets_are_in_no_part_of_it(secret: str) -> None:
    attempt = Attempt(rung="primary", endpoint="e", model="m", reason="refused", detail=f"no: {secret}")
    messages = [{"role": "user", "content": [{"type": "text", "text": f"my key is {secret}, use it"}]}]
    value = encode_question(
        escalation(
            messages=messages,
            data={"deep": [{"note": f"x {secret} y"}]},
            last_output=f"{secret}",
            attempts=(attempt,),
            request_id=secret,
        ),
        Secrets(["the-key-of-large"]),
    )[1].decode()
    inner = secret.removeprefix("Bearer ").split("\n")[-1]
    assert inner not in value and value.count(HIDDEN) >= 4
    assert "my key is" in value


def test_what_is_named_a_secret_is_none_of_ours_to_show() -> None:
    data = {"password": "hunter2", "Authorization": "Basic x", "nested": {"api_key": "short"}, "passengers": "3"}
    assert kept(data=data).data == {
        "password": HIDDEN,
        "Authorization": HIDDEN,
        "nested": {"api_key": HIDDEN},
        "passengers": "3",
    }
    told = kept(last_output="postgresql://u:hunter2@db/x").last_output
    assert "hunter2" not in told and told.startswith("postgresql://u:")


class Seat(BaseModel):
    row: int
    letter: str = "A"


def test_whatever_an_application_puts_in_comes_out_as_json() -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    data = {
        "day": date(2026, 11, 30), "cost": Decimal("1.50"), "seat": Seat(row=3), "nan": float("nan"), "big": 2**80,
        "half": "\ud800", "bytes": b"x", "set": {1}, "circle": circle, 5: None,
    }  # fmt: skip
    found = kept(data=data).data
    assert found["day"] == "2026-11-30" and found["cost"] == "1.50" and found["seat"] == {"row": 3, "letter": "A"}
    assert (found["nan"], found["big"], found["half"], found["5"]) == ("nan", str(2**80), "?", None)
    assert found["set"] == [1]


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": "x" * 5_000_000}]},
        {"messages": [{"role": "user", "content": f"{number}" * 400} for number in range(20_000)]},
        {"data": {f"field {number}": "y" * 300 for number in range(50_000)}},
        {"data": {"k" * 300_000 + str(number): number for number in range(50)}},
        {"last_output": "\x00" * 1_000_000},
    ],
)
def test_it_is_never_larger_than_kafka_takes_and_says_that_it_was_cut(more: dict[str, Any]) -> None:
    _, value = encode_question(escalation(**more), Secrets())
    assert len(value) <= BYTES_MAX
    assert kept(**more).cut and not kept().cut
    last = kept(messages=[{"role": "user", "content": f"{n}" * 400} for n in range(20_000)]).messages[-1]
    assert last["content"].startswith("19999"), "of a conversation the end counts"


@given(
    some.recursive(
        some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
        lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
        max_leaves=20,
    )
)
def test_any_data_can_be_kept_and_read(data: Any) -> None:
    question = kept(data={"any": data})
    json.dumps(question.data, allow_nan=False)


def test_the_first_answer_counts_whatever_comes_later() -> None:
    records = [
        (0, encode_question(escalation(), Secrets())[1]),
        (1, b"junk"),
        (2, encode_answer(PersonsAnswer(to="3f1c", value=1, by="ann", at_us=9), "a")[1]),
        (3, encode_answer(PersonsAnswer(to="3f1c", value=2, by="bob", at_us=8), "b")[1]),
        (4, encode_question(escalation(id="3f2d"), Secrets())[1]),
        (5, encode_answer(PersonsAnswer(to="gone", value=2, by="bob", at_us=8), "c")[1]),
        (6, b'{"kind":"other","id":"x"}'),
    ]
    found = standings_of(records)
    first, second = found.questions
    assert first.answered is not None and (first.answered[0], first.answered[1].by) == (2, "ann")
    assert second.open and not first.open
    assert found.named("3f") == [first, second] and found.named("3f1c") == [first] and found.named("gone") == []
    found.add(7, decode_heading(records[0][1]))
    assert first.answered[1].by == "ann", "put once more, it is the same question"
    found.drop_below(5)
    assert [one.number for one in found.questions] == [7], "retention took the other one"


def test_answers_have_keys_of_their_own_so_that_compaction_keeps_the_first() -> None:
    keys = {encode_answer(PersonsAnswer(to="q", value=1, by="x", at_us=1), name)[0] for name in ("a", "b")}
    assert keys == {b"q/answer/a", b"q/answer/b"} and encode_question(escalation(id="q"), Secrets())[0] == b"q"


def test_the_skeleton_of_an_answer_has_its_form() -> None:
    class Decision(BaseModel):
        seat: Seat
        sure: bool
        others: list[Seat] = []

    assert skeleton(of_model(Decision).json_schema) == {"seat": {"row": 0}, "sure": False}
    assert skeleton({"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"const": 5}}}) == {
        "a": "x",
        "b": 5,
    }
    assert skeleton(None) == ""
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert skeleton(loop) is None
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    assert of_schema("x", schema).check_value(skeleton(schema)) == {"n": 0}


def test_texts_of_models_move_no_cursor() -> None:
    assert printable("a\x1b[2Jb\u202ec\nd\te\x07\u200b") == "a�[2Jb�c\nd\te��"
