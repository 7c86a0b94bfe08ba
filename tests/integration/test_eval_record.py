"""`ctxpipe eval record` against real HTTP servers: what is recorded is what every later run sees."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from deploy.local import model_server
from deploy.local.processes import choose_port
from pipeline.evaluation.models.gathering import asking_cases, gather, live_endpoints
from pipeline.evaluation.models.live import Live, LivePlan
from pipeline.evaluation.models.recordings import Recordings, read_recordings, write_recordings
from pipeline.evaluation.runner import run_suite
from pipeline.evaluation.scaffold import begin_suite
from pipeline.evaluation.suite import read_suite
from pipeline.guard.faults import FaultServer
from pipeline.guard.prices import read_prices
from tests.support.eventually import eventually

REPLY = json.dumps({"answer": "On 5 January.", "quote": "2026-01-05", "refund": False})
KEY = "sk-" + "test0123456789abcdef"


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer(REPLY) as made:
        yield made


def change_guard(suite: Path, changes: Mapping[str, str]) -> None:
    text = (suite / "guard.yaml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (suite / "guard.yaml").write_text(text)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The one that `eval init` makes, without its recordings, and with a key from the environment."""
    folder = tmp_path / "suite"
    begin_suite(folder)
    for file in (folder / "recordings").iterdir():
        file.unlink()
    guard = (folder / "guard.yaml").read_text()
    (folder / "guard.yaml").write_text(guard.replace("{name: large,", '{name: large, api_key: "${MODEL_KEY}",'))
    return folder


async def record(suite: Path, *words: str, key: str = KEY) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pipeline.cli", "eval", "record", str(suite), *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MODEL_KEY": key},
    )
    out, error = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def recorded(suite: Path, *words: str) -> tuple[int, Any]:
    code, out, error = await record(suite, *words, "--json")
    assert out, error
    return code, json.loads(out.splitlines()[-1])


def bytes_of(suite: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (suite / "recordings").iterdir()}


async def test_recorded_once_replayed_for_ever(suite: Path, server: FaultServer) -> None:
    """Every case has all it asks, a replay needs no server, and nothing of the key is in any file."""
    addresses = [f"{name}={server.url('valid', name)}" for name in ("large", "here")]
    code, told = await recorded(suite, "--model-url", addresses[0], "--model-url", addresses[1], "--yes")
    assert (code, told["failed"], told["harness"], told["orphans"]) == (0, {}, [], [])
    assert told["recorded"] == told["calls"] == sum(server.asked.values()) > 0
    assert told["rounds"] > 1, "the local model is asked after the large one has failed by script"
    assert told["cost"] > 0 and told["answered_by"] == {"here": ["scripted"], "large": ["scripted"]}
    assert f"authorization: bearer {KEY}" in server.headers["valid", "large"].lower()
    assert "authorization" not in server.headers["valid", "here"].lower()
    assert not any(KEY.encode() in content for content in bytes_of(suite).values())
    await server.stop()
    first = await asyncio.to_thread(run_suite, read_suite(suite), jobs=0)
    second = await asyncio.to_thread(run_suite, read_suite(suite), jobs=0)
    assert first.harness == () and first.digest == second.digest


async def test_the_run_that_is_recorded_is_its_own_replay(
    suite: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output, trace, times and checks of every case, to the digit."""
    monkeypatch.setenv("MODEL_KEY", KEY)
    read = read_suite(suite)
    endpoints, secrets = live_endpoints(read, [server.url("slow")])
    live = Live(LivePlan(endpoints=endpoints, secrets=secrets, prices=read_prices(), day=date(2026, 11, 30)))
    gathered = await asyncio.to_thread(gather, read, live, Recordings(), asking_cases(read, None))
    assert gathered.whole and live.calls == sum(server.asked.values()) > 0
    write_recordings(suite / "recordings", live.recordings())
    run = await asyncio.to_thread(run_suite, read_suite(suite), jobs=0)
    replayed = {result.id: result for result in run.results if result.id in gathered.results}
    assert replayed == gathered.results
    assert any(step.took_ms >= 1000 * server.delay_s for one in run.results for step in one.steps)


async def test_a_secret_in_a_prompt_is_sent_to_nobody(suite: Path, server: FaultServer) -> None:
    cases = suite / "cases/first.jsonl"
    cases.write_text(cases.read_text().replace("When does it come?", f"My key is {KEY}. When does it come?"))
    code, told = await recorded(suite, "--model-url", server.url("valid"), "--yes", "--only", "output/when")
    assert (code, told["recorded"], sum(server.asked.values())) == (3, 0, 0)
    assert "the key of endpoint large at /messages/1/content" in told["failed"]["output/when"]
    assert KEY not in json.dumps(told) and not bytes_of(suite)


async def test_missing_asks_only_what_is_missing_and_writes_the_same_bytes(suite: Path, server: FaultServer) -> None:
    address = ("--model-url", server.url("valid"), "--yes")
    _, first = await recorded(suite, *address)
    before = bytes_of(suite)
    code, again = await recorded(suite, *address, "--missing")
    assert (code, again["recorded"], again["calls"], again["files"]) == (0, 0, 0, []) and bytes_of(suite) == before
    file = suite / "recordings/answer.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[1:]))
    code, again = await recorded(suite, *address, "--missing")
    assert (code, again["recorded"]) == (0, 1) and len(bytes_of(suite)["answer.jsonl"].splitlines()) == len(lines)
    code, anew = await recorded(suite, *address)
    assert (code, anew["recorded"], anew["replaced"]) == (0, first["recorded"], first["recorded"])


async def test_what_no_case_asks_for_is_told_and_removed_on_request(suite: Path, server: FaultServer) -> None:
    address = ("--model-url", server.url("valid"), "--yes", "--missing")
    _, first = await recorded(suite, *address)
    cases, question = suite / "cases/first.jsonl", "When does it come?"
    assert question in cases.read_text()
    cases.write_text(cases.read_text().replace(question, "When will it come?"))
    code, told = await recorded(suite, *address)
    assert code == 0 and told["orphans"] and told["pruned"] == 0
    orphans = {one["key"] for one in told["orphans"]}
    assert orphans < {one.key for one in read_recordings(suite / "recordings")}
    _, told = await recorded(suite, *address, "--only", "trace")
    assert told["orphans"] == [], "cases that did not run may ask for them"
    code, told = await recorded(suite, *address, "--prune")
    assert code == 0 and told["pruned"] == len(orphans)
    assert not orphans & {one.key for one in read_recordings(suite / "recordings")}
    assert first["recorded"] > 0


async def test_malformed_answers_are_recorded_as_they_came(suite: Path, server: FaultServer) -> None:
    code, told = await recorded(suite, "--model-url", server.url("truncated"), "--yes", "--only", "trace")
    assert code == 0 and told["recorded"] > 0
    bodies = {one.answer.body for one in read_recordings(suite / "recordings")}
    assert bodies and all(json.loads(body)["choices"][0]["message"]["content"] in REPLY[:-1] for body in bodies)


async def test_an_outage_records_nothing_and_says_which_cases_lack_what(suite: Path, server: FaultServer) -> None:
    code, out, error = await record(suite, "--model-url", server.url("unauthorized"), "--yes", "--only", "trace/refund")
    assert code == 3 and "0 recorded" in out
    assert "no recording: trace/refund: the endpoint large at" in error
    assert "answered 401; nothing was recorded" in error
    assert not bytes_of(suite) and "Traceback" not in error and KEY not in error + out


async def test_nobody_is_asked_by_surprise(suite: Path, server: FaultServer) -> None:
    code, _, error = await record(suite, "--model-url", server.url("valid"), "--ask-above", "0")
    assert code == 3 and "calls are to be made, to" in error and "say --yes" in error and "USD" in error
    assert server.asked == {} and not bytes_of(suite)


async def test_mistakes_of_endpoints_are_told_together(suite: Path, server: FaultServer) -> None:
    change_guard(suite, {"{name: here,": "{name: here, api_key: written-down,", "MODEL_KEY": "NO_SUCH_KEY"})
    code, _, error = await record(suite, "--model-url", "larg=http://h/v1", "--yes")
    assert code == 3 and "Traceback" not in error and "written-down" not in error
    for told in ("there is no endpoint 'larg'", "environment has no NO_SUCH_KEY", "api_key stands in the file itself"):
        assert told in error


async def test_ctrl_c_keeps_what_came(suite: Path, server: FaultServer) -> None:
    script = "valid,valid,hang"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pipeline.cli", "eval", "record", str(suite), "--yes", "--at-once", "1"),
        *("--model-url", server.url(script)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MODEL_KEY": KEY},
    )
    await eventually(lambda: server.asked[script, "0"] >= 3)
    process.send_signal(signal.SIGINT)
    _, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130 and b"2 recordings are kept" in error and b"Traceback" not in error
    assert len(read_recordings(suite / "recordings")) == 2


@pytest.mark.servers
@pytest.mark.skipif(not model_server.installed(), reason="build it once with python -m deploy.local.model_server")
async def test_a_real_quantised_model_is_recorded(suite: Path, tmp_path: Path) -> None:
    """llama.cpp's server, grammar-constrained: its words mean nothing, but they are its own, and they come again."""
    change_guard(
        suite, {"{name: here,": "{name: here, constraint: json_object_schema,", "timeout_s: 1}": "timeout_s: 60}"}
    )
    made = model_server.ModelServer(tmp_path / "llm", choose_port())
    await asyncio.to_thread(made.start)
    try:
        words = ("--model-url", f"here={made.address}", "--yes", "--only", "degraded/breaker-open")
        code, told = await recorded(suite, *words)
        assert code == 0 and told["answered_by"] == {"here": ["tiny"]} and told["cost"] > 0
        before = [one.answer.body for one in read_recordings(suite / "recordings")]
    finally:
        made.kill()
    run = await asyncio.to_thread(run_suite, read_suite(suite), only=["degraded/breaker-open"], jobs=0)
    assert run.harness == () and len(before) == told["recorded"]


HTTP_FLOW = """
import json, sys, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer


class Flow(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = "first"
        for turn in range(2):  # the second question depends on the first answer
            body = {"model": "any", "messages": [{"role": "user", "content": f"{said} {asked['input']['n']}"}]}
            request = urllib.request.Request(asked["model_url"] + "/chat/completions", json.dumps(body).encode(),
                                             {"content-type": "application/json"})
            with urllib.request.urlopen(request) as answer:
                said = json.load(answer)["choices"][0]["message"]["content"]
        whole = json.dumps({"output": {"said": said}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole)

    def do_GET(self):
        self.send_response(200)
        self.end_headers()


HTTPServer(("127.0.0.1", int(sys.argv[1])), Flow).serve_forever()
"""


async def test_flows_in_other_languages_are_recorded_alike(tmp_path: Path, server: FaultServer) -> None:
    """They ask over HTTP; a second question that hangs on the first answer comes in a second round."""
    suite, port = tmp_path / "http", choose_port()
    (suite / "cases").mkdir(parents=True)
    (suite / "flow.py").write_text(HTTP_FLOW)
    command = json.dumps([sys.executable, str(suite / "flow.py"), str(port)])
    flow = f'{{http: {{url: "http://127.0.0.1:{port}/run", command: {command}}}}}'
    (suite / "suite.yaml").write_text(f"suite: over-http\nflow: {flow}\nguard: guard.yaml\n")
    endpoint = '{name: large, url: "http://127.0.0.1:1/v1", model: m, price: local-cpu}'
    (suite / "guard.yaml").write_text(f"endpoints: [{endpoint}]\nroutes: {{'*': {{primary: large}}}}\n")
    expect = [{"check": "equals", "path": "/said", "value": REPLY}]
    lines = [{"id": f"c/{n}", "kind": "output", "input": {"n": n}, "expect": expect} for n in range(3)]
    (suite / "cases/all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, told = await recorded(suite, "--model-url", server.url("valid"), "--yes")
    assert (code, told["failed"], told["harness"]) == (0, {}, [])
    assert (told["recorded"], told["rounds"]) == (6, 2)
    await server.stop()
    run = await asyncio.to_thread(run_suite, read_suite(suite))
    assert run.harness == () and [result.passed for result in run.results] == 3 * [True]
