"""Models under test: recorded answers and scripted faults (those of the real fault server), in virtual time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pipeline.evaluation.models import answers_of, faults, guard_of, recording_of, write_recordings
from pipeline.evaluation.models.answers import mistakes_of
from pipeline.evaluation.values import Case, Step
from pipeline.guard.config import BreakerConfig, Endpoint, GuardConfig, Route
from pipeline.guard.errors import HarnessError
from pipeline.guard.faults import FAULTS, FaultServer
from pipeline.guard.faults.answers import completion
from pipeline.guard.faults.certificates import expired_certificate, server_context
from pipeline.guard.faults.server import CONTENT
from pipeline.guard.http_client import HttpClient
from pipeline.guard.values import ModelRequest, RawAnswer, Result
from pipeline.guard.wire import body_of
from tests.support.guard_script import ANSWER, VirtualClock

OF_A_LIBRARY = {"cut", "close", "reset", "garbage", *faults.BESIDE}
"""Faults whose words are those of the HTTP library."""
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}
CONFIG = GuardConfig(
    endpoints=(
        Endpoint(name="large", url="http://h/v1", model="gpt-4o", timeout_s=10),
        Endpoint(name="here", url="http://h/v1", model="tiny", price="local-cpu", reserve_s=2),
    ),
    routes={"*": Route(primary="large", local=("here",), retries_max=1)},
    breaker=BreakerConfig(jitter=0),
)


@dataclass
class Suite:
    """What models need of a suite."""

    folder: Path
    guard: GuardConfig | None = CONFIG
    manifest: Any = field(default_factory=lambda: SimpleNamespace(recordings="recordings", flow=SimpleNamespace()))


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    yield Suite(tmp_path)


def case(**conditions: Any) -> Case:
    given = {"id": "late/ua1", "kind": "trace", "conditions": conditions, "expect": [{"check": "rung"}]}
    return Case.model_validate(given)


def request(question: str = "how many?", **more: Any) -> ModelRequest:
    messages = [{"role": "user", "content": question}]
    return ModelRequest(**{"task": "count", "messages": messages, "output": ANSWER, "deadline_s": 20.0, **more})


def record(suite: Suite, *answers: RawAnswer, endpoint: int = 0, question: str = "how many?") -> None:
    """Of one endpoint, draws of one request; what was recorded before stays."""
    from pipeline.evaluation.models import read_recordings

    asked = suite.guard.endpoints[endpoint] if suite.guard else CONFIG.endpoints[endpoint]
    body = body_of(request(question), asked)
    made = [recording_of(body, asked, answer, task="count", draw=draw) for draw, answer in enumerate(answers)]
    folder = suite.folder / "recordings"
    write_recordings(folder, [*read_recordings(folder), *made])


def said(content: str, took_s: float = 0.5) -> RawAnswer:
    headers = {"content-type": "application/json"}
    return RawAnswer(status=200, headers=headers, body=completion(content), first_byte_s=took_s, took_s=took_s)


async def call(suite: Suite, asked: Case, *requests: ModelRequest) -> tuple[list[Result], list[Step], Any]:
    """One after the other, on a clock that moves only when everybody waits."""
    clock, steps = VirtualClock(), list[Step]()
    guard = guard_of(suite, asked, clock, steps.append)
    results = []
    for one in requests or (request(),):
        task = asyncio.create_task(guard.call(one))
        await clock.run(task)
        results.append(task.result())
    return results, steps, guard


async def test_every_fault_is_what_the_client_gets_from_the_real_server(tmp_path: Path) -> None:
    asked: Mapping[str, Any] = {"model": "m", "messages": [], "tools": [TOOL]}
    content = msgspec.json.encode(asked)
    certificate, key = expired_certificate(tmp_path)
    tls = server_context(certificate, key)
    async with FaultServer() as plain, FaultServer(tls=tls) as expired, HttpClient() as client:
        urls = {name: plain.url(name) for name in FAULTS} | {
            "unreachable": "http://127.0.0.1:1/v1",
            "unresolved": "http://nowhere.invalid/v1",
            "expired_tls": expired.url("valid"),
        }
        assert set(urls) | {faults.RECORDED} == set(faults.NAMES)

        async def one(name: str) -> str:
            endpoint = Endpoint(name=name, url=urls[name], model="m", certificate_authority=str(certificate))
            until_s = time.monotonic() + (0.3 if name in faults.NEVER else 30)
            real = await client.send_content(content, endpoint, until_s)
            ours = faults.scripted(name, asked, CONTENT, endpoint)
            compared = ["status", "headers", "body", "failure"] + ([] if name in OF_A_LIBRARY else ["detail"])
            pairs = [(part, getattr(real, part), getattr(ours, part)) for part in compared]
            return "\n".join(f"{name}: {part} {a!r} is scripted as {b!r}" for part, a, b in pairs if a != b)

        told = await asyncio.gather(*(one(name) for name in urls))
    assert not any(told), "\n".join(text for text in told if text)


def test_slow_is_as_slow_as_the_server() -> None:
    assert FaultServer().delay_s == faults.SLOW_S


async def test_a_recording_answers_after_the_time_that_it_took(suite: Suite) -> None:
    record(suite, said('{"answer": 7}', took_s=0.75))
    (result,), (step,), guard = await call(suite, case())
    assert (result.output, result.rung, result.took_s) == ({"answer": 7}, "primary", 0.75)
    assert (step.what, step.name, step.at_ms, step.took_ms) == ("model", "count", 0.0, 750.0)
    assert (step.came["rung"], step.came["reason"], step.came["endpoint"]) == ("primary", "", "large")
    assert step.came["attempts"] == [{"rung": "primary", "endpoint": "large", "reason": ""}]
    assert step.came["tokens"] == {"input": 12, "output": 5} and step.came["cost"] == pytest.approx(8e-5)
    json.dumps([step.asked, step.came])
    assert guard.results == [result]


async def test_what_was_malformed_stays_malformed_byte_by_byte(suite: Suite) -> None:
    cut, latin = completion('{"answer": 7}')[:-40], '{"answer": "caf\xe9"}'.encode("latin-1")
    for number, body in enumerate((cut, latin, b"", b"\xff\x00\n\xe2\x80\xa8")):
        question = f"question {number}"
        record(suite, RawAnswer(status=200, headers={"content-type": "application/json"}, body=body), question=question)
        asked = answers_of(suite, case())
        found = asked.next(body_of(request(question), CONFIG.endpoints[0]), CONFIG.endpoints[0])
        assert found.body == body


async def test_a_missing_recording_passes_every_rung_and_says_how_to_make_it(suite: Suite) -> None:
    record(suite, said('{"answer": 7}'), question="how many flights at 12:05?")
    asked = request("how many flights at 12:06?")
    with pytest.raises(HarnessError) as raised:
        await call(suite, case(), asked)
    told = str(raised.value)
    assert "case late/ua1: there is no recording of what the task count asks the endpoint large (model gpt-4o" in told
    assert "differs at /messages/0/content: '…many flights at 12:05?' there, '…many flights at 12:06?' now" in told
    assert f"ctxpipe eval record {suite.folder} --missing --only late/ua1" in told


async def test_a_flow_that_catches_everything_hides_no_missing_recording(suite: Suite) -> None:
    guard = guard_of(suite, case(), VirtualClock(), lambda _: None)
    with pytest.raises(HarnessError):
        await guard.call(request())
    assert len(guard.harness) == 1 and "no recording" in guard.harness[0]


async def test_a_stream_is_no_recording(suite: Suite) -> None:
    body = {**body_of(request(), CONFIG.endpoints[0]), "stream": True}
    asked = answers_of(suite, case())
    with pytest.raises(HarnessError, match="stream: false"):
        asked.next(body, CONFIG.endpoints[0])
    assert len(asked.harness) == 1


async def test_another_model_another_revision_and_other_words_are_other_recordings(suite: Suite) -> None:
    record(suite, said('{"answer": 7}'))
    body, (large, here) = body_of(request(), CONFIG.endpoints[0]), CONFIG.endpoints
    reordered = dict(reversed(body.items()))
    assert answers_of(suite, case()).next(reordered, large).status == 200, "the order of fields says nothing"
    for other_body, other in (
        (body, here),
        (body, large.model_copy(update={"revision": "2026-11-01"})),
        ({**body, "temperature": 0}, large),
        ({**body, "max_tokens": 1024.0}, large),
    ):
        with pytest.raises(HarnessError):
            answers_of(suite, case()).next(other_body, other)


async def test_equal_requests_get_draw_after_draw_and_then_the_last(suite: Suite) -> None:
    record(suite, said('{"answer": 1}'), said('{"answer": 2}'))
    results, _, _ = await call(suite, case(), request(), request(), request())
    assert [result.output["answer"] for result in results] == [1, 2, 2]
    again, _, _ = await call(suite, case(), request())
    assert again[0].output == {"answer": 1}, "each case begins anew"


async def test_faults_come_in_their_order_and_the_last_for_ever(suite: Suite) -> None:
    record(suite, said('{"answer": 7}'))
    results, steps, _ = await call(suite, case(answers={"large": ["error_500", "recorded"]}))
    assert (results[0].rung, results[0].reason) == ("retry", "server_error")
    assert steps[0].came["attempts"][0] == {
        "rung": "primary",
        "endpoint": "large",
        "reason": "server_error",
        "status": 500,
    }
    record(suite, said('{"answer": 8}'), endpoint=1)
    results, _, _ = await call(suite, case(answers={"large": ["recorded", "close"]}), request(), request())
    assert [result.rung for result in results] == ["primary", "local"]


async def test_a_hang_takes_the_whole_time_of_the_attempt_and_none_of_ours(suite: Suite) -> None:
    record(suite, said('{"answer": 8}'), endpoint=1)
    began_s = time.monotonic()
    (result,), _, _ = await call(suite, case(answers={"large": ["hang"]}), request(deadline_s=3600.0))
    assert (result.rung, result.reason, result.took_s) == ("local", "timeout", pytest.approx(20.5, abs=0.06))
    assert time.monotonic() - began_s < 600, "an hour's deadline, two attempts of ten seconds"


async def test_a_delay_comes_on_top_and_ends_in_a_timeout(suite: Suite) -> None:
    record(suite, said('{"answer": 7}', took_s=0.5))
    record(suite, said('{"answer": 8}', took_s=0.5), endpoint=1)
    (result,), _, _ = await call(suite, case(delay_ms={"large": 250}))
    assert (result.rung, result.took_s) == ("primary", 0.75)
    (result,), _, _ = await call(suite, case(delay_ms={"large": 60_000}))
    assert (result.rung, result.reason) == ("local", "timeout")


async def test_a_breaker_can_be_open_from_the_beginning(suite: Suite) -> None:
    record(suite, said('{"answer": 7}'))
    record(suite, said('{"answer": 8}'), endpoint=1)
    for name, reason in (("large", "breaker_open"), ("large/answer", "output_breaker_open")):
        (result,), (step,), _ = await call(suite, case(breakers_open=[name]))
        assert (result.rung, result.reason) == ("local", reason)
        assert step.came["attempts"][0] == {"rung": "primary", "endpoint": "large", "reason": reason, "asked": False}


async def test_faults_of_what_a_model_says_are_of_what_is_recorded(suite: Suite) -> None:
    record(suite, said('{"answer": 7}'))
    (result,), _, _ = await call(suite, case(answers={"large": ["fenced"]}))
    assert (result.output, result.rung, result.repaired) == ({"answer": 7}, "primary", "mechanical")
    record(suite, RawAnswer(status=200, headers={}, body=b"nothing"), question="bad")
    with pytest.raises(HarnessError, match="the fault truncated changes what the model says"):
        await call(suite, case(answers={"large": ["truncated"]}), request("bad"))
    with pytest.raises(HarnessError, match="no recording"):
        await call(suite, case(answers={"large": ["slow"]}), request("never asked"))


async def test_a_file_of_the_suite_is_the_body(suite: Suite) -> None:
    (suite.folder / "odd.json").write_bytes(completion('{"answer": 5}'))
    (result,), _, _ = await call(suite, case(answers={"large": ["raw:odd.json"]}))
    assert result.output == {"answer": 5}


async def test_nobody_answers_and_a_person_is_asked(suite: Suite) -> None:
    (result,), (step,), guard = await call(suite, case(answers={"large": ["close"], "here": ["prose"]}))
    assert (result.rung, step.came["escalation"]) == ("escalated", "recorded")
    assert [one.task for one in guard.escalations.records] == ["count"]


async def test_the_applications_function_answers(suite: Suite) -> None:
    suite.manifest.flow.functions = {"count": f"{__name__}:count_by_rule"}
    (result,), _, _ = await call(suite, case(answers={"large": ["close"], "here": ["close"]}))
    assert (result.rung, result.output) == ("deterministic", {"answer": 0})
    suite.manifest.flow.functions = {"a": "nowhere.at_all:f", "b": f"{__name__}:CONFIG", "c": f"{__name__}:none"}
    with pytest.raises(HarnessError) as raised:
        guard_of(suite, case(), VirtualClock(), lambda _: None)
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "flow.functions.a",
        "flow.functions.b",
        "flow.functions.c",
    ]


def count_by_rule(asked: ModelRequest) -> Any:
    return {"answer": 0}


async def test_a_caller_that_goes_away_is_in_the_trace(suite: Suite) -> None:
    clock, steps = VirtualClock(), list[Step]()
    guard = guard_of(suite, case(answers={"large": ["hang"]}), clock, steps.append)
    task = asyncio.create_task(guard.call(request()))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps[0].came == {"rung": "", "reason": "cancelled"}


async def test_a_suite_without_models_says_so_only_when_one_is_asked(suite: Suite) -> None:
    suite.guard = None
    guard = guard_of(suite, case(), VirtualClock(), lambda _: None)
    with pytest.raises(HarnessError, match=r"write .*guard\.yaml"):
        await guard.call(request())


def test_all_that_conditions_name_wrongly_is_told_at_once(suite: Suite) -> None:
    (suite.folder / "here.json").write_text("{}")
    wrong = case(
        answers={"larg": ["hang"], "large": ["eror_500", "raw:../away", "raw:none.json", "raw:here.json"], "here": []},
        delay_ms={"nobody": 5},
        breakers_open=["large", "large/answer", "tiny/answer"],
    )
    found = mistakes_of(wrong.conditions, CONFIG, suite.folder)
    assert len(found) == 7
    told = "\n".join(found)
    assert "names the endpoint 'larg', which guard.yaml has not; did you mean 'large'?" in told
    assert "names the fault 'eror_500', which is none; did you mean 'error_500'?" in told
    assert "'../away' leads out of the suite" in told and "no file 'none.json'" in told
    assert "conditions.answers.here is empty" in told
    assert "breakers_open names the endpoint 'tiny'" in told and "delay_ms names the endpoint 'nobody'" in told
    with pytest.raises(HarnessError, match="case late/ua1: conditions"):
        guard_of(suite, wrong, VirtualClock(), lambda _: None)


async def test_a_request_that_no_json_can_hold_is_the_requests_own_fault(suite: Suite) -> None:
    endless: list[Any] = []
    endless.append(endless)
    (result,), _, _ = await call(suite, case(), request(parameters={"x": endless}))
    assert (result.rung, result.reason) == ("escalated", "bad_request")
