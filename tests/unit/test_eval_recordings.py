"""Files of recordings: the same bytes for the same answers, every mistake at once, and no secret in them."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.models.recordings import (
    Recording,
    RecordingError,
    Recordings,
    first_difference,
    key_of,
    line_of,
    read_recordings,
    recording_of,
    write_recordings,
)
from pipeline.evaluation.models.secrets import Secrets, secrets_of
from pipeline.evaluation.scaffold import begin_suite
from pipeline.evaluation.suite import read_suite
from pipeline.guard.config import Endpoint, GuardConfig, Route
from pipeline.guard.values import RawAnswer

ENDPOINT = Endpoint(name="large", url="http://h/v1", model="gpt-4o", revision="2024-08-06")
KEY = "sk-" + "proj" + "A1b2C3d4E5f6G7h8"


def made(question: str, body: bytes = b'{"choices": []}', **more: Any) -> Recording:
    answer = RawAnswer(status=200, headers={"content-type": "application/json"}, body=body, took_s=0.1234567)
    return recording_of({"messages": [question]}, ENDPOINT, answer, **{"task": "count", **more})


def lines(folder: Path, name: str = "count.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_bytes().split(b"\n") if line]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    failed = RawAnswer(failure="reset", detail="the connection was reset", took_s=0.25)
    listed = [made("a"), made("a", b"\xff", draw=1), recording_of({"messages": []}, ENDPOINT, failed, task="other")]
    files = write_recordings(tmp_path, listed)
    assert [file.name for file in files] == ["count.jsonl", "other.jsonl"]
    found = list(read_recordings(tmp_path))
    assert [line_of(one) for one in found] == [line_of(one) for one in sorted(listed, key=lambda o: (o.key, o.draw))]
    assert {one.answer.body for one in found} == {b'{"choices": []}', b"\xff", b""}
    assert {one.answer.took_s for one in found} == {0.123457, 0.25}
    assert base64.b64decode(lines(tmp_path)[1]["body_base64"]) == b"\xff"


def test_the_order_in_which_they_were_made_is_in_no_byte(tmp_path: Path) -> None:
    listed = [made(str(number)) for number in range(50)] + [made("0", draw=1)]
    write_recordings(tmp_path / "a", listed)
    random.Random(5).shuffle(listed)
    write_recordings(tmp_path / "b", listed)
    assert (tmp_path / "a/count.jsonl").read_bytes() == (tmp_path / "b/count.jsonl").read_bytes()
    write_recordings(tmp_path / "a", read_recordings(tmp_path / "a"))
    assert (tmp_path / "a/count.jsonl").read_bytes() == (tmp_path / "b/count.jsonl").read_bytes()


def test_a_task_without_recordings_keeps_no_file_and_odd_names_are_files_of_their_own(tmp_path: Path) -> None:
    write_recordings(tmp_path, [made("a"), made("b", task="old")])
    names = [file.name for file in write_recordings(tmp_path, [made("a"), made("b", task="../x"), made("c", task="")])]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert len(names) == 3 and "count.jsonl" in names and all("/" not in name for name in names)
    assert len(read_recordings(tmp_path)) == 3


def test_no_folder_is_no_recording(tmp_path: Path) -> None:
    assert len(read_recordings(tmp_path / "none")) == 0


def test_all_mistakes_are_told_with_their_lines(tmp_path: Path) -> None:
    good = json.loads(line_of(made("a")))
    other = json.loads(line_of(made("b")))
    written = [
        good,
        good,
        {**good, "body": "another"},
        {**other, "asked": {"messages": ["changed by hand"]}},
        {**other, "status": 0},
        {**other, "failure": "tired", "status": 0},
        {**other, "body_base64": "AAAA"},
        {**other, "headers": {"set-cookie": "a=b"}},
        {**other, "unknown": 1},
        {**other, "draw": 2},
    ]
    broken = ["{", '{"key": "\ud800"}', json.dumps({**other, "body": None, "body_base64": "!"})]
    text = "\n".join([json.dumps(one) for one in written] + broken)
    (tmp_path / "count.jsonl").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(RecordingError) as raised:
        read_recordings(tmp_path)
    told = {int(text.partition(".jsonl:")[2].partition(":")[0]): text for text in raised.value.mistakes}
    assert sorted(told) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    for line, words in {
        2: "is the same recording again as at",
        3: "is another answer to the same request as at",
        4: "changed by hand",
        5: "neither a failure nor a status",
        6: "'tired' is none of",
        7: "both body and body_base64",
        8: "header set-cookie",
        9: "unknown",
        10: "has no draw 1 before it",
        11: "is no recording",
    }.items():
        assert words in told[line], told[line]


def test_two_in_one_place_are_refused_in_memory_too() -> None:
    with pytest.raises(RecordingError, match="two recordings have the key"):
        Recordings([made("a"), made("a")])


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, JSON, max_size=5), st.randoms())
def test_the_key_is_that_of_the_json_whatever_its_order(body: dict[str, Any], chance: random.Random) -> None:
    items = list(body.items())
    chance.shuffle(items)
    key = key_of(body, "m", "r")
    assert key_of(dict(items), "m", "r") == key
    assert key_of(json.loads(json.dumps(body)), "m", "r") == key
    assert len({key, key_of(body, "m2", "r"), key_of(body, "m", ""), key_of({**body, "new": 1}, "m", "r")}) == 4


@given(JSON, JSON)
def test_two_values_differ_where_they_differ(left: Any, right: Any) -> None:
    assert first_difference(left, left) is None
    # one walk over both gives what comparing their texts gives; 0.0 and -0.0, 1 and 1.0 are other texts
    same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (first_difference(left, right) is None) is same or left == right


def test_a_difference_is_shown_where_it_is() -> None:
    found = first_difference({"a": 1, "m": [{"c": "at 12:05"}]}, {"a": 1, "m": [{"c": "at 12:06"}]})
    assert found is not None and (found.where, found.recorded, found.now) == ("/m/0/c", "'at 12:05'", "'at 12:06'")
    added = first_difference({"m": [1]}, {"m": [1, 2]})
    assert added is not None and (added.where, added.recorded, added.now) == ("/m/1", "nothing", "2")


def secrets() -> Secrets:
    endpoint = Endpoint.model_validate({"name": "large", "url": "http://h/v1", "model": "m", "api_key": "very-own-key"})
    config = GuardConfig(endpoints=(endpoint,), routes={"*": Route(primary="large")})
    environment = {
        "PAYMENT_API_KEY": "pay-me-1234",
        "HOME": "/nobody-here",
        "MONKEY": "banana-banana",
        "TOKEN": "short",
    }
    return secrets_of(config, environment)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("the key is very-own-key.", "the key of endpoint large"),
        ("pay-me-1234", "the variable PAYMENT_API_KEY"),
        (f"Incorrect API key provided: {KEY}", "a key of a model provider"),
        ("AKIA" + "ABCDEFGHIJKLMNOP", "a key of AWS"),
        ("ghp_" + 36 * "a", "a token of GitHub"),
        ("hf_" + 34 * "a", "a token of Hugging Face"),
        ("xoxb-" + "1234567890-ab", "a token of Slack"),
        ("eyJ" + "hbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF2Q", "a signed token"),
        ("Authorization: Bearer " + "abcdefghijkl5mnopqrst", "a credential of a header"),
        ("-----BEGIN RSA PRIVATE " + "KEY-----\nMII\n-----END RSA PRIVATE " + "KEY-----", "a private key"),
        ("postgresql://app:hunter2@db/x", "the password of an address"),
    ],
)
def test_secrets_are_found_told_by_name_and_masked_to_the_length(text: str, name: str) -> None:
    (found,) = secrets().in_value({"messages": [{"content": text}]})
    assert str(found) == f"{name} at /messages/0/content"
    masked, names = secrets().masked(text)
    assert names == [name] and len(masked) == len(text) and "***" in masked
    assert not list(secrets().in_value(masked))


@pytest.mark.parametrize(
    "text",
    [
        "banana-banana in /nobody, short",
        "a risk-adjusted estimate of sk-ills",
        "https://example.com/a:b@c and 12:30 http://host:8080/x",
        "the bearer of bad news, monkey=banana",
        "a basic understanding, bearer responsibilities",
        "flight UA1545 EWR-IAH 2013-01-01T05:15 N14228",
    ],
)
def test_words_that_only_look_a_little_like_it_stay(text: str) -> None:
    assert secrets().masked(text) == (text, [])


def test_a_suite_with_broken_recordings_is_refused_before_any_case_runs(tmp_path: Path) -> None:
    begin_suite(tmp_path / "suite")
    file = tmp_path / "suite/recordings/answer.jsonl"
    first, *others = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([first.replace(b"When does it come?", b"When did it come?"), b"{", *others]))
    with pytest.raises(SuiteError) as raised:
        read_suite(tmp_path / "suite")
    assert [told.partition(": ")[0] for told in raised.value.mistakes] == [f"{file}:1", f"{file}:2"]


def test_what_only_looks_like_a_secret_can_be_named_and_a_known_one_can_not() -> None:
    text = f"use {KEY}, or sk-live-0123456789abcdef; very-own-key"
    allowing = Secrets({"mine": "very-own-key"}, none=["A1b2C3d4", "very-own-key"])
    assert allowing.masked(text) == (f"use {KEY}, or {'*' * 24}; {'*' * 12}", ["mine", "a key of a model provider"])
    assert allowing.in_text(KEY) == [] and Secrets({}).in_text(KEY) == ["a key of a model provider"]
