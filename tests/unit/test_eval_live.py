"""Asking models for real: what is recorded, what is refused, and that a replay is the run that was recorded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.models import Recordings, guard_of, live, read_recordings, write_recordings
from pipeline.evaluation.models.answers import Asked
from pipeline.evaluation.models.live import Live, LivePlan, Made
from pipeline.evaluation.models.recordings import key_of, line_of
from pipeline.evaluation.models.secrets import Secrets
from pipeline.guard.config import Endpoint
from pipeline.guard.errors import HarnessError
from pipeline.guard.faults import FaultServer
from pipeline.guard.prices import read_prices
from tests.support.guard_script import VirtualClock
from tests.unit.test_eval_models import CONFIG, Suite, case, request

DAY = date(2026, 11, 30)
SECRETS = Secrets({"the key of endpoint large": "very-own-key"})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PAUSE_S", 0.0)


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as made:
        yield made


def plan(large: str, here: str = "http://127.0.0.1:1/v1", **more: Any) -> LivePlan:
    urls = {"large": large, "here": here}
    endpoints = {one.name: one.model_copy(update={"url": urls[one.name], "timeout_s": 5.0}) for one in CONFIG.endpoints}
    given = {"endpoints": endpoints, "secrets": SECRETS, "prices": read_prices(), "kept": Recordings(), **more}
    return LivePlan(**given)


def asked(question: str = "how many?", number: int = 0, endpoint: int = 0) -> Asked:
    body = {"model": "m", "messages": [{"role": "user", "content": question}]}
    chosen: Endpoint = CONFIG.endpoints[endpoint]
    key = key_of(body, chosen.model, chosen.revision)
    return Asked(case="c", task="count", endpoint=chosen, body=body, key=key, number=number, left_s=5)


async def in_thread(work: Any, *arguments: Any) -> Any:
    """The server of faults runs on this loop, and a source blocks."""
    return await asyncio.to_thread(work, *arguments)


async def test_a_replay_is_the_run_that_was_recorded(server: FaultServer, tmp_path: Path) -> None:
    suite = Suite(tmp_path)

    def run(source: Live | None) -> Any:
        """The whole ladder: the primary breaks off by script, the local model is asked for real."""

        async def steps() -> Any:
            clock, told = VirtualClock(), list[Any]()
            guard = guard_of(suite, case(answers={"large": ["hang"]}), clock, told.append, source)
            task = asyncio.create_task(guard.call(request()))
            await clock.run(task)
            return task.result(), told

        return asyncio.run(steps())

    with Live(plan(server.url("error_500"), server.url("slow")), DAY) as source:
        recorded, recorded_steps = await in_thread(run, source)
    assert (recorded.rung, recorded.reason) == ("local", "timeout")
    assert recorded.attempts[-1].took_s >= server.delay_s
    write_recordings(tmp_path / "recordings", source.made)
    replayed, replayed_steps = await in_thread(run, None)
    assert (replayed, replayed_steps) == (recorded, recorded_steps)
    assert server.asked[("slow", "0")] == 1 and server.asked[("error_500", "0")] == 0
    (one,) = read_recordings(tmp_path / "recordings")
    assert (one.on, one.task, one.endpoint, one.model) == ("2026-11-30", "count", "here", "tiny")
    assert one.asked["response_format"]["json_schema"]["name"] == "answer"


async def test_many_cases_that_ask_the_same_ask_once(server: FaultServer) -> None:
    told: list[Made] = []
    with Live(plan(server.url("slow")), DAY, told.append) as source, ThreadPoolExecutor(16) as threads:
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(*(loop.run_in_executor(threads, source, asked()) for _ in range(16)))
    assert server.asked[("slow", "0")] == 1 and len(told) == 1 and len({one.body for one in answers}) == 1
    assert told[0].cost is not None and told[0].cost > 0 and told[0].tokens.input == 12


async def test_draws_are_asked_one_by_one_and_only_missing_ones(server: FaultServer) -> None:
    with Live(plan(server.url("valid"), draws=3), DAY) as source:
        await in_thread(source, asked())
    assert [one.draw for one in source.made] == [0, 1, 2] and server.asked[("valid", "0")] == 3
    kept = Recordings(source.made)
    with Live(plan(server.url("valid"), kept=kept, only_missing=True), DAY) as again:
        await in_thread(again, asked(number=2))
        await in_thread(again, asked("another"))
    assert [one.asked["messages"][0]["content"] for one in again.made] == ["another"]
    assert server.asked[("valid", "0")] == 4 and len(again.used) == 1


@pytest.mark.parametrize("fault", ["error_500", "rate_limited_past", "unauthorized", "close", "html", "cut"])
async def test_an_outage_is_no_recording(server: FaultServer, fault: str) -> None:
    with Live(plan(server.url(fault)), DAY) as source:
        with pytest.raises(HarnessError, match=r"case c: the endpoint large at .* nothing was recorded"):
            await in_thread(source, asked())
        assert server.asked[(fault, "0")] == live.TRIES and source.made == []
    with Live(plan(server.url(fault), failures=True), DAY) as source:
        await in_thread(source, asked())
        assert len(source.made) == 1, "unless that is what is to be recorded"


async def test_what_passes_is_tried_again_and_what_is_the_models_own_is_kept(server: FaultServer) -> None:
    with Live(plan(server.url("error_503,close,valid"), server.url("truncated")), DAY) as source:
        assert (await in_thread(source, asked())).status == 200
        malformed = await in_thread(source, asked(endpoint=1))
    assert len(source.made) == 2 and malformed.status == 200
    with Live(plan(server.url("bad_request")), DAY) as source:
        assert (await in_thread(source, asked())).status == 400
    assert source.calls == 1 and len(source.made) == 1


async def test_an_endpoint_that_is_gone_is_soon_left_alone(server: FaultServer) -> None:
    with Live(plan(server.url("close")), DAY) as source:
        for number in range(10):
            with pytest.raises(HarnessError):
                await in_thread(source, asked(f"question {number}"))
    assert source.calls == live.OUTAGES_MAX * live.TRIES


async def test_no_more_calls_than_were_allowed(server: FaultServer) -> None:
    with Live(plan(server.url("valid"), calls_max=2), DAY) as source:
        for number in range(2):
            await in_thread(source, asked(f"question {number}"))
        with pytest.raises(HarnessError, match="2 calls were made; see --calls-max"):
            await in_thread(source, asked("one more"))
    assert server.asked[("valid", "0")] == 2 and len(source.made) == 2


async def test_a_secret_in_a_question_goes_nowhere(server: FaultServer) -> None:
    with Live(plan(server.url("valid")), DAY) as source, pytest.raises(HarnessError) as raised:
        await in_thread(source, asked("my key is very-own-key"))
    assert "holds the key of endpoint large at /messages/0/content" in str(raised.value)
    assert "very-own-key" not in str(raised.value) and server.asked == {} and source.made == []


async def test_a_secret_in_an_answer_is_starred_and_all_else_stays(server: FaultServer) -> None:
    server.content = 'as you said: very-own-key and "caf\xe9"'
    with Live(plan(server.url("valid"), server.url("unauthorized"), failures=True), DAY) as source:
        answer = await in_thread(source, asked())
    (one,) = source.made
    assert one.masked == ("the key of endpoint large",) and one.answer == answer
    assert b"very-own-key" not in line_of(one) and b"as you said: ************ and" in one.answer.body
    raw = replace(one, answer=replace(one.answer, body=b"\xffvery-own-key\x00"), masked=())
    assert live.masked(raw, SECRETS).answer.body == b"\xff************\x00"


def test_its_thread_ends_with_it() -> None:
    with Live(plan("http://127.0.0.1:1/v1"), DAY):
        assert any(thread.name == "eval-live" for thread in threading.enumerate())
    assert not any(thread.name == "eval-live" for thread in threading.enumerate())
