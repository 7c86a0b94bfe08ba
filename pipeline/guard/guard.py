"""`Guard.call`: a question goes down the ladder until something answers, and comes back in time with a label.

primary → retry → other endpoints → local model → the application's own function → a person
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import CtxpipeError
from pipeline.guard import measures, spans
from pipeline.guard.asking import Answer, Asker, Call
from pipeline.guard.breaker import State
from pipeline.guard.budgets import EVERYBODY, InFlight
from pipeline.guard.client import ModelClient
from pipeline.guard.config import Endpoint, GuardConfig, Route
from pipeline.guard.endings import Endings
from pipeline.guard.escalations import Escalation, Escalations
from pipeline.guard.gates import Gates
from pipeline.guard.hedging import hedged
from pipeline.guard.judging import RETRIED
from pipeline.guard.ladder import (
    ESCALATION_SHARE,
    FUNCTION_SHARE,
    Step,
    end_s,
    last_until_s,
    local_first,
    retry_delay_s,
    steps_of,
    until_s,
)
from pipeline.guard.prices import PriceTable, read_prices
from pipeline.guard.strict_json import InvalidOutput
from pipeline.guard.values import Attempt, ModelRequest, Reason, Result, Rung, Tokens, costs_of

Function = Callable[[ModelRequest], Any | Awaitable[Any]]
"""The application's answer without a model: quick, from what is in the request; None: it has none. Its value is checked
as a model's would be."""
FUNCTION = "function"
"""The name that it has among the endpoints of attempts and metrics."""
PUT_S_MAX = 30.0
"""How long an escalation may take to be stored, after the caller has its answer."""
SLOW_S = 0.002
"""A function that takes less is begun however late it is: its answer is worth more than none."""
_LAST_OUTPUT_CHARACTERS_MAX = 20_000
_NO_ROUTE = Route(primary=EVERYBODY)
_log = logging.getLogger(__name__)


class Guard:
    """For one event loop; one per process, because breakers, pauses and budgets are in it. `close` it.

    `functions` by task. `chance` gives 0 ≤ x < 1. Raises ConfigError where it is made, never in `call`.
    """

    def __init__(
        self,
        config: GuardConfig,
        client: ModelClient,
        escalations: Escalations,
        functions: Mapping[str, Function] | None = None,
        *,
        prices: PriceTable | None = None,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._config, self._clock, self._chance = config, clock or SystemClock(), chance
        self._endpoints = {endpoint.name: endpoint for endpoint in config.endpoints}
        self._functions = dict(functions or {})
        self._escalations = escalations
        self._gates = Gates(config, prices or read_prices(), self._clock, chance)
        self._asker = Asker(client, self._gates, self._clock)
        self._tenants, self._endings = InFlight(), Endings()
        self._puts: set[asyncio.Task[None]] = set()

    async def call(self, request: ModelRequest) -> Result:
        """Within `deadline_s`, whatever models do. Raises CancelledError for the caller's own cancel, which counts
        against nobody, and HarnessError for a mistake of a stand-in."""
        return await spans.called(request, self._call)

    async def _call(self, request: ModelRequest) -> Result:
        began_s = self._clock.monotonic_s()
        ends_s = end_s(began_s, request.deadline_s)
        booking = self._endings.book(ends_s, began_s, request.deadline_s, request.task)
        try:
            result = await self._answered(request, began_s, booking.ends_s)
        finally:
            self._endings.release(booking, self._clock.monotonic_s(), began_s + request.deadline_s)
        measures.answered(request, result)
        return result

    async def _answered(self, request: ModelRequest, began_s: float, ends_s: float) -> Result:
        route = self._config.routes.get(request.task) or self._config.routes.get(EVERYBODY)
        call = Call(request, route or _NO_ROUTE, began_s, ends_s)
        if route is None:
            self._tell_of_no_route(call)
        answer = await self._models(call) if route is not None else None
        return self._of_model(call, answer) if answer is not None else await self._without_model(call)

    def with_routes(self, routes: Mapping[str, Route]) -> Guard:
        """A guard whose calls go by other routes, between the same endpoints: breakers, pauses, budgets and escalations
        are the same ones. Calls that are on their way through this one keep its routes. Raises pydantic's
        ValidationError where a route names an endpoint that there is not."""
        other = copy.copy(self)
        config = self._config
        other._config = GuardConfig(
            endpoints=config.endpoints, routes=dict(routes), breaker=config.breaker, budget=config.budget
        )
        return other

    def states(self) -> Mapping[str, State]:
        """Of all breakers: endpoints by name, outputs by `endpoint/output`."""
        return self._gates.states()

    async def close(self) -> None:
        """Waits for escalations that are still being stored."""
        if self._puts:
            await asyncio.wait(set(self._puts))

    def _tell_of_no_route(self, call: Call) -> None:
        call.reason = "no_route"
        known = ", ".join(sorted(self._config.routes))
        _log.error("guard: no route for the task %r, only for %s; add one, or '*'", call.request.task, known)

    async def _models(self, call: Call) -> Answer | None:
        most = self._config.budget.tenant_concurrency_max
        tenant = call.request.tenant or EVERYBODY
        if most is None:
            return await self._down(call)
        if not self._tenants.enter(tenant, most):
            call.reason = "tenant_too_many"
            return None
        try:
            return await self._down(call)
        finally:
            self._tenants.leave(tenant)

    async def _down(self, call: Call) -> Answer | None:
        left = steps_of(call.route, self._endpoints)
        while left:
            step, *left = left
            found = await self._step(call, step, left)
            if isinstance(found, Answer):
                return found
            if found == "rate_limited":
                left = local_first(left)
        return None

    async def _step(self, call: Call, step: Step, later: list[Step]) -> Answer | Reason:
        if step.rung != "primary":
            return await self._ask(call, step.endpoint, step.rung, later)
        found = await self._first(call, step.endpoint, later)
        for number in range(1, call.route.retries_max + 1):
            if isinstance(found, Answer) or found not in RETRIED:
                break
            delay_s = retry_delay_s(call.route, number, self._chance())
            if self._clock.monotonic_s() + delay_s >= call.ends_s:
                break
            await self._clock.sleep(delay_s)
            found = await self._ask(call, step.endpoint, "retry", later)
        return found

    async def _first(self, call: Call, endpoint: Endpoint, later: list[Step]) -> Answer | Reason:
        second = next((step for step in later if step.rung == "other"), None)
        if call.route.hedge_after_s is None or second is None:
            found = await self._ask(call, endpoint, "primary", later)
        else:
            found = await hedged(
                lambda: self._ask(call, endpoint, "primary", later),
                lambda: self._ask(call, second.endpoint, "other", later),
                call.route.hedge_after_s,
                self._clock,
            )
        if not isinstance(found, Answer):
            call.reason = found
        elif found.rung != "primary":
            call.reason = "slow"
        return found

    async def _ask(self, call: Call, endpoint: Endpoint, rung: Rung, later: list[Step]) -> Answer | Reason:
        until = until_s(self._clock.monotonic_s(), call.ends_s, endpoint, later)
        return await self._asker.ask(call, endpoint, rung, until)

    def _of_model(self, call: Call, answer: Answer) -> Result:
        return self._result(
            call,
            answer.judgement.checked.value,
            answer.rung,
            endpoint=answer.endpoint.name,
            model=answer.judgement.model or answer.endpoint.model,
            raw=answer.raw.body,
            tool_calls=answer.judgement.tool_calls,
            repaired=answer.repaired,
        )

    async def _without_model(self, call: Call) -> Result:
        function = self._functions.get(call.request.task) if call.route.deterministic else None
        if function is not None:
            value = await self._of_function(call, function)
            if value is not None:
                return self._result(call, value, "deterministic", endpoint=FUNCTION)
        return await self._escalate(call)

    async def _of_function(self, call: Call, function: Function) -> Any:
        """Its value, checked; None: it has none, and the reason stands among the attempts."""
        began_s = self._clock.monotonic_s()
        reason: Reason = ""
        value, detail = None, ""
        try:
            value = self._quickly(call, function)
            if inspect.isawaitable(value):
                async with asyncio.timeout(self._left_s(call, FUNCTION_SHARE)):
                    value = await value
            if value is None:
                detail = "it has no answer"
            else:
                value = _checked(call.request, value)
        except InvalidOutput as error:
            value, detail = None, f"its answer does not hold: {error.detail}"
        except TimeoutError:
            value, detail = None, "it did not answer in time"
        except Exception as error:  # noqa: BLE001 - the application's own code: what it raises must not cost the answer
            _log.exception("the function for the task %s failed", call.request.task)
            value, detail = None, f"it failed: {type(error).__name__}"
        if value is None:
            reason = "function_failed"
        took_s = self._clock.monotonic_s() - began_s
        attempt = Attempt(
            rung="deterministic", endpoint=FUNCTION, model="", reason=reason, detail=detail, took_s=took_s
        )
        call.attempts.append(attempt)
        measures.attempted(call.request, attempt)
        return value

    def _quickly(self, call: Call, function: Function) -> Any:
        """Raises TimeoutError where the function is known to keep the loop from others whose time is not over yet,
        and could give this caller a late answer only."""
        task, began_s = call.request.task, self._clock.monotonic_s()
        expected_s = self._endings.expected_s(task)
        if expected_s > SLOW_S and began_s + expected_s > call.began_s + call.request.deadline_s:
            raise TimeoutError
        try:
            return function(call.request)
        finally:
            self._endings.took(task, self._clock.monotonic_s() - began_s)

    async def _escalate(self, call: Call) -> Result:
        request = call.request
        record = Escalation(
            id=str(uuid.UUID(int=int(self._chance() * 2**64) << 64 | self._clock.now_us(), version=4)),
            task=request.task,
            tenant=request.tenant,
            request_id=request.request_id,
            at_us=self._clock.now_us(),
            messages=request.messages,
            data=request.data,
            output_name=request.output.name,
            json_schema=request.output.json_schema,
            attempts=tuple(call.attempts),
            last_output=call.last_output[:_LAST_OUTPUT_CHARACTERS_MAX],
        )
        stored = await self._put(record, self._left_s(call, ESCALATION_SHARE))
        return self._result(call, None, "escalated", escalation=stored, escalation_id=record.id)

    async def _put(self, record: Escalation, wait_s: float) -> Literal["recorded", "pending", "failed"]:
        """It goes on when the caller's time is over, or when the caller goes away: a question is not lost by that."""
        task = asyncio.create_task(self._stored(record))
        self._puts.add(task)
        task.add_done_callback(partial(self._put_done, record))
        await asyncio.wait({task}, timeout=wait_s)
        if not task.done():
            return "pending"
        return "failed" if task.cancelled() or task.exception() is not None else "recorded"

    async def _stored(self, record: Escalation) -> None:
        async with asyncio.timeout(PUT_S_MAX):
            await self._escalations.put(record)

    def _put_done(self, record: Escalation, task: asyncio.Task[None]) -> None:
        self._puts.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None or task.cancelled():
            told = error if isinstance(error, CtxpipeError | OSError) else type(error).__name__ if error else "ended"
            measures.lost(record.task)
            _log.error("the escalation %s of the task %s could not be stored: %s", record.id, record.task, told)

    def _left_s(self, call: Call, share: float) -> float:
        deadline_s = call.began_s + call.request.deadline_s
        return max(0.0, last_until_s(call.ends_s, deadline_s, share) - self._clock.monotonic_s())

    def _result(self, call: Call, output: Any, rung: Rung, **more: Any) -> Result:
        asked = [attempt for attempt in call.attempts if attempt.asked]
        cost, known = costs_of(asked)
        return Result(
            output=output,
            rung=rung,
            reason=call.reason,
            attempts=tuple(call.attempts),
            tokens=Tokens(_sum([one.tokens.input for one in asked]), _sum([one.tokens.output for one in asked])),
            cost=cost,
            cost_known=known,
            took_s=self._clock.monotonic_s() - call.began_s,
            **more,
        )


def _checked(request: ModelRequest, value: Any) -> Any:
    return request.output.check_value(value)


def _sum(counts: list[int | None]) -> int | None:
    """None where nothing was counted."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
