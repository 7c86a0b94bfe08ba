"""Asking models for real: what is recorded, what is refused, and what of it costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from pipeline.evaluation.models import Recordings, live
from pipeline.evaluation.models.answers import Asked
from pipeline.evaluation.models.gathering import merged
from pipeline.evaluation.models.live import Collecting, Live, LivePlan, Made
from pipeline.evaluation.models.recordings import Recording, key_of, line_of
from pipeline.evaluation.models.secrets import Secrets
from pipeline.guard.config import Endpoint
from pipeline.guard.errors import HarnessError
from pipeline.guard.faults import FaultServer
from pipeline.guard.prices import read_prices
from tests.support.eventually import eventually
from tests.unit.test_eval_models import CONFIG

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
    return LivePlan(**{"endpoints": endpoints, "secrets": SECRETS, "prices": read_prices(), "day": DAY, **more})


def asked(question: str = "how many?", number: int = 0, endpoint: int = 0, case: str = "c") -> Asked:
    body = {"model": "m", "messages": [{"role": "user", "content": question}]}
    chosen: Endpoint = CONFIG.endpoints[endpoint]
    key = key_of(body, chosen.model, chosen.revision)
    return Asked(case=case, task="count", endpoint=chosen, body=body, key=key, number=number, left_s=5)


def questions(recordings: list[Recording]) -> set[str]:
    return {one.asked["messages"][0]["content"] for one in recordings}


async def test_what_many_cases_ask_is_asked_once_and_priced(server: FaultServer) -> None:
    told: list[Made] = []
    made = Live(plan(server.url("valid")), told.append)
    await made.ask([asked(case=f"case{number}") for number in range(16)])
    assert server.asked["valid", "0"] == made.calls == len(told) == 1
    assert told[0].tokens.input == 12 and told[0].cost == made.cost == Decimal("0.00008")
    (one,) = made.recordings()
    assert (one.on, one.task, one.endpoint, one.model) == ("2026-11-30", "count", "large", "gpt-4o")
    await made.ask([asked()])
    assert made.calls == 1, "what it has it asks no more"


async def test_a_model_without_a_price_costs_something_unknown(server: FaultServer) -> None:
    endpoints = {"large": CONFIG.endpoints[0].model_copy(update={"url": server.url("valid"), "price": "nobody-knows"})}
    made = Live(replace(plan(""), endpoints=endpoints))
    await made.ask([asked()])
    assert (made.cost, made.cost_unknown) == (0, 1)


async def test_draws_are_made_together_and_later_ones_come_after_them(server: FaultServer) -> None:
    made = Live(plan(server.url("valid"), draws=3))
    await made.ask([asked()])
    assert [one.draw for one in made.recordings()] == [0, 1, 2] and made.calls == 3
    await made.ask([asked(number=2), asked(number=3)])
    assert [one.draw for one in made.recordings()] == [0, 1, 2, 3] and made.calls == 4


async def test_only_so_many_are_on_their_way(server: FaultServer) -> None:
    made = Live(plan(server.url("slow"), at_once=2))
    asking = asyncio.create_task(made.ask([asked(f"question {number}") for number in range(6)]))
    await asyncio.sleep(server.delay_s / 2)
    assert server.asked["slow", "0"] <= 2
    await asking
    assert len(made.recordings()) == 6


@pytest.mark.parametrize("fault", ["error_500", "rate_limited_past", "unauthorized", "close", "html", "cut"])
async def test_an_outage_is_no_recording(server: FaultServer, fault: str) -> None:
    made = Live(plan(server.url(fault)))
    await made.ask([asked()])
    (told,) = made.problems.values()
    assert told.startswith("the endpoint large at") and told.endswith("nothing was recorded")
    assert server.asked[fault, "0"] == live.TRIES and made.recordings() == []
    made = Live(plan(server.url(fault), failures=True))
    await made.ask([asked()])
    assert len(made.recordings()) == 1 and not made.problems, "unless that is what is to be recorded"


async def test_what_passes_is_tried_again_and_what_is_the_models_own_is_kept(server: FaultServer) -> None:
    made = Live(plan(server.url("error_503,close,valid"), server.url("truncated")))
    await made.ask([asked(), asked(endpoint=1)])
    assert [one.answer.status for one in made.recordings()] == [200, 200]
    refused = Live(plan(server.url("bad_request")))
    await refused.ask([asked()])
    assert [one.answer.status for one in refused.recordings()] == [400] and refused.calls == 1


async def test_an_endpoint_that_is_gone_is_soon_left_alone(server: FaultServer) -> None:
    made = Live(plan(server.url("close"), at_once=1))
    await made.ask([asked(f"question {number}") for number in range(10)])
    assert made.calls == live.OUTAGES_MAX * live.TRIES and len(made.problems) == 10
    assert sum("is not asked any more" in told for told in made.problems.values()) == 10 - live.OUTAGES_MAX


async def test_no_more_calls_than_were_allowed(server: FaultServer) -> None:
    made = Live(plan(server.url("valid"), calls_max=2))
    await made.ask([asked(f"question {number}") for number in range(5)])
    assert server.asked["valid", "0"] == made.calls == len(made.recordings()) == 2
    assert all("2 calls were made" in told for told in made.problems.values()) and len(made.problems) == 3


async def test_a_secret_in_a_question_goes_nowhere(server: FaultServer) -> None:
    made = Live(plan(server.url("valid")))
    await made.ask([asked("my key is very-own-key")])
    (told,) = made.problems.values()
    assert "holds the key of endpoint large at /messages/0/content" in told
    assert "very-own-key" not in told and server.asked == {} and made.recordings() == []


async def test_a_secret_in_an_answer_is_starred_and_all_else_stays(server: FaultServer) -> None:
    server.content = 'as you said: very-own-key and "caf\xe9"'
    made = Live(plan(server.url("valid")))
    await made.ask([asked()])
    (one,) = made.recordings()
    assert one.masked == ("the key of endpoint large",)
    assert b"very-own-key" not in line_of(one) and b"as you said: ************ and" in one.answer.body
    raw = replace(one, answer=replace(one.answer, body=b"\xffvery-own-key\x00"), masked=())
    assert live.masked(raw, SECRETS).answer.body == b"\xff************\x00"


async def test_a_cancel_keeps_what_came(server: FaultServer) -> None:
    made = Live(plan(server.url("valid,hang"), at_once=1))
    asking = asyncio.create_task(made.ask([asked("a"), asked("b")]))
    await eventually(lambda: bool(made.made))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert questions(made.recordings()) == {"a"}


async def test_a_round_notes_one_request_of_each_case_and_asks_none_that_failed(server: FaultServer) -> None:
    made = Live(plan(server.url("valid")))
    await made.ask([asked("a")])
    problem = asked("lost")
    source = Collecting(made.made, Recordings(), {problem.key: "nobody is there"})
    assert source(asked("a")).status == 200
    for question, case in (("b", "one"), ("c", "one"), ("b", "two"), ("lost", "three")):
        with pytest.raises(HarnessError, match="not recorded yet"):
            source(asked(question, case=case))
    assert {case: one.body["messages"][0]["content"] for case, one in source.missing.items()} == {
        "one": "b",
        "two": "b",
    }
    assert source.failed == {"three": "nobody is there"} and len(source.used) == 1
    with pytest.raises(HarnessError):
        source(asked("a", number=1))
    again = Collecting({}, Recordings(made.recordings()), {})
    assert again(asked("a", number=1)).status == 200, "what is kept answers as in a run: its last draw for all others"


async def test_what_is_asked_anew_keeps_no_old_draw(server: FaultServer) -> None:
    before = Live(plan(server.url("valid"), draws=2))
    await before.ask([asked("a"), asked("b")])
    kept = Recordings(before.recordings())
    anew = Live(plan(server.url("prose")))
    await anew.ask([asked("a")])
    found = [(one.asked["messages"][0]["content"], one.draw) for one in merged(kept, anew, only_missing=False)]
    assert sorted(found) == [("a", 0), ("b", 0), ("b", 1)]
    assert len(merged(kept, anew, only_missing=True)) == 4


async def test_answers_may_take_as_long_as_they_did_before(server: FaultServer) -> None:
    made = Live(plan(server.url("slow")))
    await made.ask([asked("a"), asked("b")])
    before = [one for one in made.recordings() if one.asked["messages"][0]["content"] == "a"]
    past = Recordings([replace(one, answer=replace(one.answer, took_s=7.5)) for one in before])
    source = Collecting(made.made, Recordings(), {}, past)
    assert source(asked("a")).took_s == 7.5 and source(asked("a")).body == before[0].answer.body
    assert source(asked("b")).took_s < 5, "what was never asked before takes what it takes"
