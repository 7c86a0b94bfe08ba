"""Flows over HTTP: a program that has nothing of ours gets context, models and tools over real HTTP, and its mishaps
stay its own."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation import http_flow
from pipeline.evaluation.errors import SuiteError
from pipeline.evaluation.models.recordings import recording_of, write_recordings
from pipeline.evaluation.results_file import results_bytes
from pipeline.evaluation.values import CaseResult, Run
from pipeline.guard.faults.answers import completion
from pipeline.guard.values import RawAnswer
from tests.support import foreign_flow
from tests.support.begun_suite import BegunSuite, case

QUESTION = "When does it come?"
SAID = "It comes on 2026-01-05."


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def suite(tmp_path: Path, port: int) -> BegunSuite:
    suite = BegunSuite(tmp_path / "suite")
    command = json.dumps([sys.executable, str(Path(foreign_flow.__file__)), str(port)])
    manifest = (
        f"suite: foreign\nflow:\n  http: {{url: 'http://127.0.0.1:{port}/run', command: {command}, timeout_s: 3}}\n"
        "  tools: support_flow:tools\nguard: guard.yaml\n"
    )
    (suite.folder / "suite.yaml").write_text(manifest)
    suite.cases(asks("a"))
    guard = suite.read().guard
    assert guard is not None
    body = {"model": "any", "messages": [{"role": "user", "content": QUESTION}]}
    answer = RawAnswer(status=200, headers={"content-type": "application/json"}, body=completion(SAID), took_s=0.01)
    write_recordings(suite.folder / "recordings", [recording_of(body, one, answer) for one in guard.endpoints])
    return suite


def asks(name: str, do: str = "", *expect: Any, **parts: Any) -> dict[str, Any]:
    asked = {"order": "1", "question": QUESTION, "do": do}
    return case(name, *expect, **{"input": asked, **parts})


def of(run: Run, name: str) -> CaseResult:
    return next(one for one in run.results if one.id == name)


def told(run: Run, name: str) -> str:
    return "; ".join(check.told for check in of(run, name).checks)


def test_it_gets_context_models_and_tools_over_http(suite: BegunSuite) -> None:
    answered = [
        {"check": "equals", "path": "/answer", "value": SAID},
        {"check": "context_fetched", "value": [{"context": "order", "key": "1", "status": "fresh"}]},
    ]
    suite.cases(
        asks("plain", "", *answered, {"check": "calls_max", "value": {"model": 1}}),
        asks("stale", "", {"check": "equals", "path": "/status", "value": "stale"}, conditions={"age_ms": 120_000}),
        asks("tool", "refund", {"check": "tools_called", "value": [{"tool": "refund", "arguments": {"order": "1"}}]}),
        asks("notes", "notes", {"check": "tools_called", "value": [{"tool": "noted", "arguments": {"by": "model"}}]}),
        asks("error", "", *answered, conditions={"answers": {"large": ["error_500"]}}),
        asks("html", "", *answered, conditions={"answers": {"large": ["html"]}}),
        asks("cut", "", *answered, conditions={"answers": {"large": ["cut"]}}),
        asks("slow", "", {"check": "took_ms_min", "value": 200}, conditions={"delay_ms": {"large": 200}}),
        asks("down", "", {"check": "raised_nothing"}, conditions={"store": "down"}),
    )
    run = suite.run()
    assert run.harness == ()
    failed = {one.id: told(run, one.id) for one in run.results if not one.passed}
    assert list(failed) == ["down"]
    assert "the flow answered 500" in failed["down"]
    for name in ("error", "html", "cut"):
        assert of(run, name).output["by"] == "other", name
        assert [step.name for step in of(run, name).steps if step.what == "model"] == ["large", "here"]
    assert of(run, "plain").measures["cost"] is None


def test_two_runs_have_the_same_bytes_but_for_times(suite: BegunSuite) -> None:
    suite.cases(asks("a"), asks("b", "refund"), asks("c", "", conditions={"answers": {"large": ["error_500"]}}))
    one, other = suite.run(), suite.run(seed=5)
    assert one.digest == other.digest
    assert one.harness == other.harness == ()
    assert results_bytes(one) != b""


def test_mishaps_of_the_flow_are_failures_of_their_cases_and_the_next_one_runs(suite: BegunSuite) -> None:
    suite.cases(asks("a-ends", "ends"), asks("b-list", "list"), asks("c-hangs", "hangs"), asks("d-fine"))
    suite.change("suite.yaml", lambda text: text.replace("timeout_s: 3", "timeout_s: 1"))
    run = suite.run()
    assert run.harness == ()
    assert [one.id for one in run.results if one.passed] == ["d-fine"]
    assert "the flow's process ended (exit code 4); its last words:\nI am going" in told(run, "a-ends")
    assert 'the flow\'s answer has to be {"output": …}' in told(run, "b-list")
    assert "the flow did not answer within 1 s" in told(run, "c-hangs")


def test_a_missing_recording_is_no_verdict_whatever_the_flow_makes_of_it(suite: BegunSuite) -> None:
    suite.cases(asks("heard"), asks("unheard", input={"order": "1", "question": "Why?"}))
    run = suite.run()
    assert [one.id for one in run.results] == ["heard"]
    (harness,) = run.harness
    assert harness.startswith("case unheard: there is no recording of what its flow asks the endpoint large")


def test_the_program_is_ended_with_all_that_it_started(suite: BegunSuite, port: int) -> None:
    suite.cases(asks("a"))
    suite.run()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_what_does_not_start_is_a_mistake_of_the_suite(suite: BegunSuite, port: int, tmp_path: Path) -> None:
    suite.cases(asks("a"))
    suite.change("suite.yaml", lambda text: text.replace(f'"{port}"]', f'"{port}", "--no"]'))
    with pytest.raises(SuiteError, match=r"ended before it listened \(exit code 1\); its last words:\nno port for me"):
        suite.run()
    suite.change("suite.yaml", lambda text: text.replace(json.dumps(sys.executable), '"no-such-program"'))
    with pytest.raises(SuiteError, match="no-such-program can't be started: No such file"):
        suite.run()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(SuiteError, match="something listens at"):
        suite.run()


def test_a_flow_that_runs_already_is_asked_where_it_is(suite: BegunSuite, port: int) -> None:
    suite.cases(asks("a"))
    lines = (suite.folder / "suite.yaml").read_text()
    (suite.folder / "suite.yaml").write_text(
        lines.replace(lines[lines.index(", command:") : lines.index(", timeout_s")], "")
    )
    with pytest.raises(SuiteError, match="nothing listens there; start the flow, or name its command"):
        suite.run()
    program = subprocess.Popen([sys.executable, str(Path(foreign_flow.__file__)), str(port)])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            program.poll()
            asyncio.run(asyncio.sleep(0.05))
        assert suite.run().results[0].passed
        assert program.poll() is None
    finally:
        program.kill()
        program.wait()


def test_checks_of_what_is_not_seen_are_refused(suite: BegunSuite) -> None:
    suite.cases(
        asks("a", "", {"check": "rung", "value": "local"}),
        asks("b", "", {"check": "counted", "value": {"metric": "m"}}),
    )
    with pytest.raises(SuiteError, match=r"rung looks at the guard(.|\n)*counted looks at"):
        suite.read()


def test_who_asks_after_the_end_of_a_case_is_told_so(suite: BegunSuite) -> None:
    server = http_flow.CaseServer()
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/1/context/v1/contexts", "headers": [], "query_string": b""}
    asyncio.run(server(scope, receive, send))
    assert sent[0]["status"] == 410
    assert b"this case is over" in sent[1]["body"]


def test_it_searches_over_http(suite: BegunSuite) -> None:
    embedding = 'embedding: {engine: hash, dimension: 64, template: "order of {{ customer.name }}, {{ status }}"}\n'
    suite.change("contexts/order.yaml", lambda text: text.replace("serving:", f"{embedding}\nserving:"))
    expected = {"check": "equals", "value": ["1", "2"]}
    seen = {"check": "context_fetched", "value": ["order"]}
    suite.cases(asks("search", "search", expected, seen, input={"do": "search", "text": "order of Ada, sent"}))
    run = suite.run()
    assert run.harness == ()
    assert run.results[0].passed, told(run, "search")
