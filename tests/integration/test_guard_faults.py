"""Every fault on every rung, over real HTTP: no exception, no answer after the deadline, the right rung each time."""

from __future__ import annotations

import asyncio
import resource
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.guard.config import BreakerConfig, Endpoint, GuardConfig, Route
from pipeline.guard.errors import HarnessError
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.faults import FAULTS, FaultServer
from pipeline.guard.faults.certificates import expired_certificate, server_context
from pipeline.guard.guard import Guard
from pipeline.guard.http_client import HttpClient
from pipeline.guard.output import Output, Tool, of_schema
from pipeline.guard.values import ModelRequest, Result
from tests.support.certificates import make_authority
from tests.support.eventually import eventually

OUTPUT: Output = of_schema(
    "answer",
    {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    },
)
TOOL = Tool(
    "weather", "of a city", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
DEADLINE_S = 20.0
HANGS_S, HANGS_ONCE_S, ATTEMPT_S = 0.4, 2.0, 15.0
"""For one attempt: where nothing will come, where the next one answers, where the machine alone may be slow."""
LATE_S = 1.0
"""What a busy machine may take beyond the deadline in a test; what it really was is printed."""
SILENT = {"hang", "hang_after_headers", "drip"}
GOOD = {"valid", "slow", "fenced"}
REASONS = {
    "hang": "timeout", "hang_after_headers": "timeout", "drip": "timeout",
    "gigabyte": "too_large", "gigabyte_told": "too_large",
    "cut": "cut", "close": "reset", "reset": "reset", "garbage": "protocol", "compressed": "protocol",
    "html": "content_type", "html_as_json": "not_an_answer", "wrong_type": "content_type", "redirect": "redirect",
    "bad_request": "refused", "unauthorized": "refused", "error_500": "server_error", "error_503": "server_error",
    "rate_limited": "rate_limited", "rate_limited_absurd": "rate_limited", "rate_limited_negative": "rate_limited",
    "rate_limited_past": "rate_limited", "rate_limited_far": "rate_limited", "rate_limited_nonsense": "rate_limited",
    "empty": "not_an_answer", "no_choices": "not_an_answer",
    "truncated": "invalid_output", "length": "invalid_output", "tool_call": "invalid_output",
    "truncated_tool_call": "invalid_output", "unknown_fields": "invalid_output", "prose": "invalid_output",
    "two_values": "invalid_output", "duplicate_key": "invalid_output", "not_a_number": "invalid_output",
    "too_deep": "invalid_output", "refusal": "model_refused", "filtered": "model_refused",
    "expired_tls": "tls", "unreachable": "unreachable",
}  # fmt: skip
"""Fault → what the result says of it."""
NOT_RETRIED = {"too_large", "redirect", "refused", "rate_limited", "invalid_output", "model_refused", "tls"}


@dataclass
class Servers:
    """Scripts, and the two faults that no script can have."""

    plain: FaultServer
    expired: FaultServer
    authority: str
    client: HttpClient
    number: int = 0

    def endpoint(self, name: str, script: str) -> Endpoint:
        self.number += 1
        url = "http://127.0.0.1:1/v1" if script == "unreachable" else ""
        if script == "expired_tls":
            url = self.expired.url("valid", str(self.number))
        return Endpoint(
            name=name,
            url=url or self.plain.url(script, str(self.number)),
            model="gpt-4o",
            timeout_s=ATTEMPT_S if not SILENT & set(script.split(",")) else HANGS_ONCE_S if "," in script else HANGS_S,
            certificate_authority=self.authority,
        )

    def guard(self, primary: str, other: str, local: str, *, function: bool = True, **route: Any) -> Guard:
        return Guard(
            GuardConfig(
                endpoints=(
                    self.endpoint("primary", primary),
                    self.endpoint("other", other),
                    self.endpoint("local", local),
                ),
                routes={
                    "*": Route(primary="primary", others=("other",), local=("local",), retry_delay_s=0.01, **route)
                },
            ),
            self.client,
            MemoryEscalations(),
            {"t": lambda request: {"answer": 0}} if function else {},
        )


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    certificate, key = expired_certificate(tmp_path)
    tls = server_context(certificate, key)
    async with FaultServer() as plain, FaultServer(tls=tls) as expired, HttpClient() as client:
        yield Servers(plain, expired, str(certificate), client)


def request(**more: Any) -> ModelRequest:
    messages = [{"role": "user", "content": "how many?"}]
    asked = {"task": "t", "messages": messages, "output": OUTPUT, "tools": [TOOL], "deadline_s": DEADLINE_S}
    return ModelRequest(**{**asked, **more})


def cases() -> list[tuple[str, tuple[str, str, str], bool, str]]:
    """(fault, scripts of the three endpoints, whether there is a function, the rung that has to answer)"""
    found = []
    for fault, reason in REASONS.items():
        after_limit = "local" if reason == "rate_limited" else "other"
        found.append((fault, (fault, "valid", "valid"), True, after_limit))
        found.append((fault, (fault, fault, "valid"), True, "local"))
        found.append((fault, (fault, "valid", fault), True, "other"))
        found.append((fault, (fault, fault, fault), True, "deterministic"))
        found.append((fault, (fault, fault, fault), False, "escalated"))
        if fault in FAULTS:
            rung = "primary" if reason == "invalid_output" else after_limit if reason in NOT_RETRIED else "retry"
            if fault == "truncated_tool_call":
                rung = "other"  # what a tool would do is not asked for twice
            found.append((fault, (f"{fault},valid", "valid", "valid"), True, rung))
    return found


async def test_every_fault_on_every_rung(servers: Servers) -> None:
    assert set(REASONS) - {"expired_tls", "unreachable"} == set(FAULTS) - GOOD, "a new fault has no line here"
    at_once = asyncio.Semaphore(8)
    overruns_s: list[float] = []

    async def one(fault: str, scripts: tuple[str, str, str], function: bool, rung: str) -> str:
        guard = servers.guard(*scripts, function=function)
        async with at_once:
            began_s = time.monotonic()
            result = await guard.call(request())
            overruns_s.append(time.monotonic() - began_s - DEADLINE_S)
        where = f"{fault} as {scripts}, function {function}"
        if result.rung != rung:
            return f"{where}: {result.rung} answered instead of {rung}: {_path(result)}"
        expected = "" if rung == "primary" else REASONS[fault]
        if result.reason != expected:
            return f"{where}: the reason is {result.reason!r} instead of {expected!r}: {_path(result)}"
        if rung not in ("escalated", "deterministic") and result.output != {"answer": 42}:
            return f"{where}: {result.output!r}"
        return ""

    matrix = cases()
    told = [text for text in await asyncio.gather(*(one(*case) for case in matrix)) if text]
    print(f"{len(matrix)} cases, 0 exceptions, latest answer {max(overruns_s) * 1000:+.1f} ms from the deadline")
    assert not told, "\n".join(told)
    assert max(overruns_s) < LATE_S


def _path(result: Result) -> list[tuple[str, str, str]]:
    return [(attempt.rung, attempt.reason, attempt.detail) for attempt in result.attempts]


async def test_a_deadline_that_is_short_holds_on_every_rung(servers: Servers) -> None:
    """All hang, the function and the queue of escalations too."""
    overruns_s = []

    class Hangs:
        async def put(self, escalation: Any) -> None:
            await asyncio.sleep(3600)

    async def forever(asked: ModelRequest) -> Any:
        await asyncio.sleep(3600)

    async def one(guard: Guard, deadline_s: float) -> None:
        guard._escalations, guard._functions = Hangs(), {"t": forever}
        began_s = time.monotonic()
        result = await guard.call(request(deadline_s=deadline_s))
        overruns_s.append(time.monotonic() - began_s - deadline_s)
        assert (result.rung, result.escalation) == ("escalated", "pending")
        for put in guard._puts:
            put.cancel()

    matrix = 3 * [(fault, deadline_s) for fault in sorted(SILENT) for deadline_s in (0.1, 0.5, 2.0)]
    guards = [(servers.guard(fault, fault, fault), deadline_s) for fault, deadline_s in matrix]
    await asyncio.gather(*(one(*case) for case in guards))
    print(f"{len(overruns_s)} calls, latest answer {max(overruns_s) * 1000:+.1f} ms from the deadline")
    assert max(overruns_s) < LATE_S


async def test_what_goes_over_the_wire(servers: Servers) -> None:
    endpoint = servers.endpoint("primary", "valid").model_copy(
        update={
            "api_key": Endpoint.model_validate(
                {"name": "x", "url": "http://h/v1", "model": "m", "api_key": "sk-1"}
            ).api_key
        }
    )
    answer = await servers.client.send(request(parameters={"temperature": 0}), endpoint, time.monotonic() + 5)
    assert answer.status == 200
    ((script, body),) = [item for item in servers.plain.bodies.items() if item[0][0] == "valid"]
    assert body["model"] == "gpt-4o" and body["temperature"] == 0 and body["stream"] is False
    assert body["response_format"]["json_schema"]["name"] == "answer"
    assert body["tools"][0]["function"]["name"] == "weather"
    head = servers.plain.headers[script].lower()
    assert "authorization: bearer sk-1" in head
    assert "accept-encoding: identity" in head
    assert head.startswith("post /valid/1/v1/chat/completions ")


async def test_a_redirect_is_not_followed_and_takes_no_key_elsewhere(servers: Servers) -> None:
    result = await servers.guard("redirect", "redirect", "redirect").call(request())
    assert result.rung == "deterministic"
    assert not any(key == "elsewhere" for _, key in servers.plain.asked)


async def test_a_gigabyte_is_not_read(servers: Servers) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for fault in ("gigabyte", "gigabyte_told", "compressed"):
        result = await servers.guard(fault, fault, fault).call(request())
        assert result.rung == "deterministic"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "kilobytes, at its highest"


async def test_tls_of_a_known_authority_works_and_of_an_unknown_one_does_not(servers: Servers, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    certificate, key = authority.issue("server", "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with FaultServer(tls=context) as server:
        for file, failure in ((str(authority.certificate), None), (None, "tls"), (str(tmp_path / "none.pem"), "tls")):
            endpoint = Endpoint(name="x", url=server.url("valid"), model="m", certificate_authority=file)
            answer = await servers.client.send(request(), endpoint, time.monotonic() + 5)
            assert answer.failure == failure, answer.detail


async def test_three_failures_open_the_breaker_and_one_of_two_hundred_probes(servers: Servers) -> None:
    """Real time and real HTTP: the breaker is open for a moment, then all come at once."""
    primary = servers.endpoint("primary", "reset,reset,reset,slow").model_copy(update={"timeout_s": 10})
    local = servers.endpoint("local", "valid")
    config = GuardConfig(
        endpoints=(primary, local),
        routes={"*": Route(primary="primary", local=("local",), retries_max=0)},
        breaker=BreakerConfig(open_s=0.3, jitter=0),
    )
    guard = Guard(config, servers.client, MemoryEscalations())
    asked = ("reset,reset,reset,slow", primary.url.split("/")[-2])
    servers.plain.delay_s = 2.0
    for _ in range(3):
        assert (await guard.call(request(deadline_s=20))).reason == "reset"
    assert guard.states()["primary"] == "open"
    assert (await guard.call(request(deadline_s=20))).reason == "breaker_open"
    assert servers.plain.asked[asked] == 3
    await eventually(lambda: guard.states()["primary"] == "half_open")
    results = await asyncio.gather(*(guard.call(request(deadline_s=20)) for _ in range(200)))
    assert servers.plain.asked[asked] == 4
    assert sorted(result.rung for result in results) == 199 * ["local"] + ["primary"]
    assert guard.states()["primary"] == "closed"


async def test_a_caller_that_goes_away_is_neutral_over_http(servers: Servers) -> None:
    guard = servers.guard("hang", "valid", "valid")
    for _ in range(5):
        task = asyncio.create_task(guard.call(request()))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert guard.states()["primary"] == "closed"


async def test_a_recording_that_is_missing_is_no_fault_of_a_model(servers: Servers) -> None:
    class Missing:
        async def send(self, asked: ModelRequest, endpoint: Endpoint, until_s: float) -> Any:
            raise HarnessError("there is no recording")

    guard = servers.guard("valid", "valid", "valid")
    guard._asker._client = Missing()
    with pytest.raises(HarnessError):
        await guard.call(request())


async def test_the_server_of_faults_runs_by_itself() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pipeline.guard.faults", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        async with HttpClient() as client:
            endpoint = Endpoint(name="x", url=url.replace("/valid/", "/error_500,valid/"), model="m")
            found = [(await client.send(request(), endpoint, time.monotonic() + 20)).status for _ in range(3)]
        assert found == [500, 200, 200]
    finally:
        process.terminate()
        await process.wait()
