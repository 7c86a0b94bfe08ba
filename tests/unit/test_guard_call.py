"""A call on its way down the ladder, on a virtual clock: who answers, why, when, and what it leaves behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from pipeline.core import metrics
from pipeline.guard import genai
from pipeline.guard.config import BudgetConfig
from pipeline.guard.errors import HarnessError
from pipeline.guard.escalations import Escalation
from pipeline.guard.output import TEXT, Tool
from pipeline.guard.values import ModelRequest, RawAnswer
from tests.support.guard_script import VALID, World, answers, fails, says

GOOD, DOWN, BAD = says(VALID), fails("reset"), says("no idea")


def rungs(result: Any) -> list[tuple[str, str]]:
    return [(attempt.rung, attempt.reason) for attempt in result.attempts]


async def test_the_primary_answers() -> None:
    world = World(primary=[GOOD])
    result = await world.call()
    assert (result.rung, result.reason, result.output, result.repaired) == ("primary", "", {"answer": 42}, "")
    assert (result.tokens.input, result.tokens.output, result.cost) == (12, 5, Decimal("0.017"))
    assert result.raw == GOOD.body
    assert result.model == "scripted"
    assert result.answered


@pytest.mark.parametrize(
    ("scripts", "rung", "reason", "path"),
    [
        ({"primary": [DOWN, GOOD]}, "retry", "reset", [("primary", "reset"), ("retry", "")]),
        (
            {"primary": [DOWN], "other": [GOOD]},
            "other", "reset", [("primary", "reset"), ("retry", "reset"), ("other", "")],
        ),
        (
            {"primary": [fails("redirect")], "other": [GOOD]},
            "other", "redirect", [("primary", "redirect"), ("other", "")],
        ),
        (
            {"primary": [answers(400)], "other": [answers(503)], "local": [GOOD]},
            "local", "refused", [("primary", "refused"), ("other", "server_error"), ("local", "")],
        ),
        (
            {"primary": [answers(429, retry_after="2")], "other": [GOOD], "local": [GOOD]},
            "local", "rate_limited", [("primary", "rate_limited"), ("local", "")],
        ),
        (
            {"primary": [answers(429)], "other": [GOOD], "local": [fails("unreachable")]},
            "other", "rate_limited", [("primary", "rate_limited"), ("local", "unreachable"), ("other", "")],
        ),
        (
            {"primary": [BAD], "other": [BAD], "local": [GOOD]},
            "local", "invalid_output",
            [("primary", "invalid_output"), ("primary", "invalid_output"), ("other", "invalid_output"), ("local", "")],
        ),
        (
            {"primary": [says("", refusal="no")], "local": [GOOD]},
            "local", "model_refused", [("primary", "model_refused"), ("local", "")],
        ),
        ({"primary": [answers(408), GOOD]}, "retry", "server_error", [("primary", "server_error"), ("retry", "")]),
    ],
)  # fmt: skip
async def test_the_way_down(
    scripts: dict[str, list[RawAnswer]], rung: str, reason: str, path: list[tuple[str, str]]
) -> None:
    result = await World(**scripts).call()
    assert (result.rung, result.reason, rungs(result)) == (rung, reason, path)
    assert result.output == {"answer": 42}


async def test_an_invalid_output_is_mended_by_one_turn_and_no_more() -> None:
    world = World(primary=[BAD, GOOD])
    result = await world.call()
    assert (result.rung, result.reason, result.repaired) == ("primary", "", "turn")
    assert [attempt.repair_turn for attempt in result.attempts] == [False, True]
    turn = world.client.requests[1].messages
    assert [message["role"] for message in turn] == ["user", "assistant", "user"]
    assert turn[1]["content"] == "no idea"
    assert "it is no JSON" in turn[2]["content"]

    world = World(primary=[BAD], other=[BAD], local=[BAD])
    assert (await world.call()).rung == "escalated"
    assert world.client.asked == {"primary": 2, "other": 1, "local": 1}
    world = World(primary=[BAD], route={"repair_turn": False})
    await world.call()
    assert world.client.asked == {"primary": 1}


async def test_a_tool_call_that_is_cut_is_invalid_whatever_its_finish_reason_says() -> None:
    tool = Tool("book", "", {"type": "object", "properties": {"seat": {"type": "string"}}, "required": ["seat"]})

    def asks(arguments: str, name: str = "book", finish: str = "stop") -> RawAnswer:
        call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
        return says("", finish, tool_calls=[call])

    for first, invalid in (
        (asks('{"seat": "1'), "tool_cut"),
        (asks('{"seat": 1}'), "schema"),
        (asks('{"seat": "1A"}', "rob"), "unknown_tool"),
        (asks('{"seat": "1A"}', finish="length"), "cut"),
    ):
        result = await World(primary=[first], local=[asks('{"seat": "2B"}')], route={"repair_turn": False}).call(
            tools=[tool]
        )
        assert (result.rung, result.attempts[0].invalid) == ("local", invalid)
        assert [(call.name, call.arguments) for call in result.tool_calls] == [("book", {"seat": "2B"})]
        assert result.output is None


async def test_three_failures_open_the_breaker_and_nobody_asks() -> None:
    world = World(primary=[DOWN], local=[GOOD], route={"retries_max": 0})
    for _ in range(3):
        await world.call()
    assert world.guard.states() == {
        "primary": "open",
        "primary/answer": "closed",
        "local": "closed",
        "local/answer": "closed",
    }
    result = await world.call()
    assert rungs(result) == [("primary", "breaker_open"), ("local", "")]
    assert (result.reason, result.attempts[0].asked) == ("breaker_open", False)
    assert world.client.asked["primary"] == 3


async def test_invalid_outputs_open_the_breaker_of_one_schema_only() -> None:
    world = World(primary=[BAD], local=[GOOD])
    for _ in range(3):
        await world.call()
    assert world.guard.states()["primary/answer"] == "open"
    assert world.guard.states()["primary"] == "closed"
    assert rungs(await world.call()) == [("primary", "output_breaker_open"), ("local", "")]
    result = await world.call(output=TEXT)
    assert (result.rung, result.output) == ("primary", "no idea")


async def test_exactly_one_of_two_hundred_callers_probes() -> None:
    world = World(primary=[DOWN, DOWN, DOWN, GOOD], local=[GOOD], route={"retries_max": 0})
    for _ in range(3):
        await world.call()
    world.clock.now_s += 10
    gate = world.client.gates["primary"] = asyncio.Event()
    calls = [asyncio.create_task(world.guard.call(world.request())) for _ in range(200)]
    await world.clock.run_until(lambda: sum(not task.done() for task in calls) <= 1)
    assert world.client.asked["primary"] == 4, "three failures and one probe"
    gate.set()
    await world.clock.run(*calls)
    results = [task.result() for task in calls]
    assert sorted(result.rung for result in results) == 199 * ["local"] + ["primary"]
    assert world.guard.states()["primary"] == "closed"
    assert (await world.call()).rung == "primary"


async def test_a_callers_cancel_counts_against_nobody_and_gives_the_probe_back() -> None:
    world = World(primary=[DOWN, DOWN, DOWN, GOOD], local=[GOOD], route={"retries_max": 0})
    gate = asyncio.Event()
    for _ in range(3):
        world.client.gates["primary"] = gate
        for _ in range(5):
            task = asyncio.create_task(world.guard.call(world.request()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert world.guard.states()["primary"] == "closed"
    assert world.client.cancelled["primary"] == 15
    world.client.asked.clear()
    del world.client.gates["primary"]
    for _ in range(3):
        await world.call()
    assert world.guard.states()["primary"] == "open"
    world.clock.now_s += 10
    world.client.gates["primary"] = gate
    task = asyncio.create_task(world.guard.call(world.request()))
    await asyncio.sleep(0.01)
    assert (await world.call()).rung == "local", "somebody else probes"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.guard.states()["primary"] == "half_open"
    gate.set()
    assert (await world.call()).rung == "primary"
    assert world.guard.states()["primary"] == "closed"


async def test_rate_limits_are_no_failures_and_hold_until_they_are_over() -> None:
    world = World(primary=[answers(429, retry_after="20"), GOOD], other=[GOOD], local=[GOOD])
    for _ in range(5):
        assert (await world.call()).rung == "local"
    assert world.client.asked == {"primary": 1, "local": 5}
    assert world.guard.states()["primary"] == "closed"
    world.clock.now_s += 21.1
    assert (await world.call()).rung == "primary"


async def test_rate_limits_open_no_breaker_however_many_come() -> None:
    world = World(primary=[answers(429, retry_after="1")], local=[GOOD])
    for number in range(1, 8):
        assert (await world.call()).rung == "local"
        assert world.client.asked["primary"] == number
        world.clock.now_s += 2
    assert world.guard.states()["primary"] == "closed"


async def test_who_may_not_pay_for_a_probe_leaves_it_to_the_next() -> None:
    world = World(primary=[DOWN, DOWN, DOWN, GOOD], local=[GOOD], route={"retries_max": 0})
    for _ in range(3):
        await world.call()
    world.clock.now_s += 10
    assert rungs(await world.call(cost_max=Decimal("0.001")))[0] == ("primary", "cost_limit")
    assert (await world.call()).rung == "primary"


async def test_a_request_that_is_itself_wrong_opens_nothing() -> None:
    world = World(primary=[answers(400)])
    for _ in range(5):
        await world.call()
    world.client._scripts["primary"][:] = [fails("bad_request")]  # type: ignore[index]
    for _ in range(5):
        await world.call()
    assert world.guard.states()["primary"] == "closed"
    assert world.client.asked["primary"] == 10


async def test_who_hangs_leaves_time_for_those_below_and_the_deadline_holds() -> None:
    world = World(primary=[GOOD], other=[GOOD], local=[GOOD])
    world.client.hangs = {"primary", "other"}
    result = await world.call(deadline_s=4.0)
    assert (result.rung, result.reason) == ("local", "timeout")
    assert result.took_s < 4
    world.client.hangs = {"primary", "other", "local"}
    result = await world.call(deadline_s=4.0)
    assert result.rung == "escalated"
    assert 3 < result.took_s <= 4


async def test_the_function_of_the_application_answers_before_a_person() -> None:
    async def slowly(request: ModelRequest) -> Any:
        return {"answer": len(request.messages)}

    for function in (lambda request: {"answer": 1}, slowly):
        result = await World(functions={"t": function}, primary=[DOWN]).call()
        assert (result.rung, result.reason, result.output, result.cost) == (
            "deterministic",
            "reset",
            {"answer": 1},
            None,
        )


def _raises(request: ModelRequest) -> Any:
    raise ZeroDivisionError


async def _hangs(request: ModelRequest) -> Any:
    await asyncio.sleep(100)


@pytest.mark.parametrize("function", [_raises, _hangs, lambda request: None, lambda request: {"answer": "1"}])
async def test_what_no_function_can_answer_goes_to_a_person_with_everything(function: Any) -> None:
    world = World(functions={"t": function}, primary=[BAD])
    result = await world.call(tenant="acme", data={"order": 5}, request_id="r1", deadline_s=0.5)
    assert (result.rung, result.output, result.answered, result.escalation) == ("escalated", None, False, "recorded")
    (record,) = world.escalations.records
    assert record.id == result.escalation_id
    assert (record.tenant, record.request_id, record.data, record.last_output) == (
        "acme",
        "r1",
        {"order": 5},
        "no idea",
    )
    assert record.json_schema is not None
    assert [attempt.reason for attempt in record.attempts] == ["invalid_output", "invalid_output", "function_failed"]


async def test_an_escalation_that_can_not_be_stored_in_time_is_said_to_be_pending(caplog: Any) -> None:
    world, go = World(primary=[DOWN]), asyncio.Event()

    class Slow:
        async def put(self, escalation: Escalation) -> None:
            await go.wait()
            raise OSError("the queue is away")

    world.guard._escalations = Slow()
    result = await world.call(deadline_s=0.1)
    assert result.escalation == "pending"
    go.set()
    await world.guard.close()
    assert "of the task t could not be stored: the queue is away" in caplog.text


async def test_a_limit_of_cost_holds_for_all_attempts_together() -> None:
    world = World(primary=[BAD])
    result = await world.call(output_tokens_max=100, cost_max=Decimal("0.5"))
    assert result.attempts[0].asked
    world = World(primary=[BAD])
    result = await world.call(output_tokens_max=100, cost_max=Decimal("0.05"))
    assert rungs(result) == [("primary", "cost_limit")]
    assert world.client.asked == {}
    most = Decimal("0.1") + Decimal("0.2")
    world = World(primary=[BAD], other=[GOOD], route={"repair_turn": False})
    result = await world.call(output_tokens_max=100, cost_max=most)
    assert rungs(result) == [("primary", "invalid_output"), ("other", "")]
    assert result.cost == Decimal("0.034") <= most


async def test_what_has_no_price_costs_unknown_and_is_passed_over_where_a_limit_holds() -> None:
    world = World(primary=[GOOD], endpoint={"price": "unheard-of"})
    result = await world.call()
    assert (result.rung, result.cost, result.cost_known) == ("primary", None, 0)
    assert rungs(await world.call(cost_max=Decimal(1000))) == [("primary", "cost_unknown")]
    unknown = metrics.guard_cost_unknown.labels("primary", "t")._value.get()
    assert unknown >= 1


async def test_a_tenant_has_a_budget_by_the_hour() -> None:
    budget = BudgetConfig(tenant_cost_per_hour_max={"acme": Decimal("0.5")})
    world = World(primary=[GOOD], budget=budget)
    seen = []
    for _ in range(30):
        seen.append((await world.call(tenant="acme", output_tokens_max=100)).reason)
    assert seen[0] == "" and seen[-1] == "tenant_budget"
    paid = seen.count("") * Decimal("0.017")
    assert paid <= Decimal("0.5")
    assert (await world.call(tenant="other", output_tokens_max=100)).reason == ""
    world.clock.now_s += 3600
    assert (await world.call(tenant="acme", output_tokens_max=100)).reason == ""


async def test_who_has_too_many_on_their_way_is_passed_over_at_once() -> None:
    world = World(primary=[GOOD], local=[GOOD], endpoint={"concurrency_max": 2})
    calls = [asyncio.create_task(world.guard.call(world.request())) for _ in range(5)]
    await world.clock.run(*calls)
    assert sorted(call.result().rung for call in calls) == ["escalated", "local", "local", "primary", "primary"]
    assert calls[-1].result().reason == "too_many"
    world = World(primary=[GOOD], budget=BudgetConfig(tenant_concurrency_max=1))
    calls = [asyncio.create_task(world.guard.call(world.request(tenant=name))) for name in ("a", "a", "b")]
    await world.clock.run(*calls)
    assert [call.result().reason for call in calls] == ["", "tenant_too_many", ""]


async def test_a_hedge_asks_another_when_the_first_is_slow() -> None:
    world = World(primary=[GOOD], other=[GOOD], route={"hedge_after_s": 1.0})
    result = await world.call()
    assert (result.rung, world.client.asked["other"]) == ("primary", 0)
    world.client.hangs = {"primary"}
    result = await world.call()
    assert (result.rung, result.reason) == ("other", "slow")
    assert 1 < result.took_s < 2
    assert world.client.cancelled == {"primary": 1}
    assert world.guard.states()["primary"] == "closed"
    assert result.cost is None, "what was broken off may be charged"
    world = World(primary=[DOWN], other=[GOOD], route={"hedge_after_s": 1.0, "retries_max": 0})
    assert rungs(await world.call()) == [("primary", "reset"), ("other", "")]


async def test_a_client_that_raises_costs_its_rung_and_a_harness_may_end_all() -> None:
    world = World(primary=[GOOD], local=[GOOD])
    send = world.client.send

    async def raises(request: ModelRequest, endpoint: Any, until_s: float) -> RawAnswer:
        if endpoint.name == "primary":
            raise KeyError("x")
        return await send(request, endpoint, until_s)

    world.client.send = raises  # type: ignore[method-assign]
    assert (await world.call()).rung == "local"

    async def missing(request: ModelRequest, endpoint: Any, until_s: float) -> RawAnswer:
        raise HarnessError("no recording")

    world.client.send = missing  # type: ignore[method-assign]
    with pytest.raises(HarnessError):
        await world.call()


async def test_a_task_without_a_route_is_the_operators_mistake_and_still_answered(caplog: Any) -> None:
    world = World(functions={"t": lambda request: {"answer": 0}}, primary=[GOOD])
    world.guard._config = world.guard._config.model_copy(update={"routes": {"x": world.guard._config.routes["*"]}})
    result = await world.call()
    assert (result.rung, result.reason) == ("deterministic", "no_route")
    assert "no route for the task 't', only for x" in caplog.text


async def test_what_a_call_leaves_in_the_metrics() -> None:
    def value(counter: Any, *labels: str) -> float:
        return float(counter.labels(*labels)._value.get())

    before = value(metrics.guard_answers, "counted", "local", "invalid_output")
    invalid = value(metrics.guard_invalid, "primary", "counted", "not_json")
    cost = value(metrics.guard_cost, "local", "counted")
    await World(primary=[BAD], local=[GOOD]).call(task="counted")
    assert value(metrics.guard_answers, "counted", "local", "invalid_output") == before + 1
    assert value(metrics.guard_invalid, "primary", "counted", "not_json") == invalid + 2
    assert value(metrics.guard_cost, "local", "counted") == pytest.approx(cost + 0.017)
    assert value(metrics.guard_in_flight, "primary") == 0


async def test_spans_have_the_names_of_opentelemetry_and_nothing_of_what_was_said() -> None:
    world = World(primary=[BAD], local=[GOOD], endpoint={"provider": "example"})
    request = world.request(tenant="acme", data={"secret": 1})
    task = asyncio.create_task(world.guard.call(request))
    await world.clock.run(task)
    first, *_, last = task.result().attempts
    endpoint = world.guard._endpoints["local"]
    assert genai.span_name(last) == "chat scripted"
    assert genai.attributes(request, endpoint, last) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "example",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "scripted",
        "gen_ai.request.max_tokens": 1024,
        "gen_ai.output.type": "json",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
        "ctxpipe.guard.rung": "local",
        "ctxpipe.guard.task": "t",
        "ctxpipe.guard.cost": 0.017,
    }
    assert genai.attributes(request, endpoint, first)["error.type"] == "invalid_output"
    assert "ctxpipe.guard.cost" not in genai.attributes(request, endpoint, replace(last, cost=None))


async def test_a_deadline_that_has_passed_is_answered_and_nonsense_is_told() -> None:
    world = World(functions={"t": lambda request: {"answer": 0}}, primary=[GOOD])
    for deadline_s in (0.0, -5.0, 0.001):
        result = await world.call(deadline_s=deadline_s)
        assert (result.rung, result.reason, result.output) == ("deterministic", "no_time", {"answer": 0})
    with pytest.raises(ValueError, match="deadline_s"):
        world.request(deadline_s=float("nan"))
    with pytest.raises(ValueError, match="output_tokens_max"):
        world.request(output_tokens_max=0)
