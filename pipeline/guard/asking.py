"""One rung's question to one endpoint: through the gates, over the wire, judged, mended at most once, written down."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

from pipeline.core.clock import Clock
from pipeline.guard import measures, spans
from pipeline.guard.breaker import Mark
from pipeline.guard.client import ModelClient
from pipeline.guard.config import Endpoint, Route
from pipeline.guard.errors import HarnessError
from pipeline.guard.gates import Gates, Refusal, Ticket
from pipeline.guard.judging import Judgement, cost_of, judge
from pipeline.guard.ladder import ATTEMPT_S_MIN
from pipeline.guard.rate_limits import pause_s
from pipeline.guard.values import NOT_COUNTED, Attempt, ModelRequest, RawAnswer, Reason, Rung

GRACE_S = 0.01
"""What a client may be late before it is ended."""
_NOT_MENDED = frozenset({"tool_cut", "too_large"})
"""Of invalid outputs: a call of a tool is not asked for twice, a flood not made larger."""
_CANCELLED = Judgement("cancelled", "whoever waited for it went away, or had an answer", "neutral")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Call:
    """One call on its way down the ladder."""

    request: ModelRequest
    route: Route
    began_s: float
    ends_s: float
    attempts: list[Attempt] = field(default_factory=list)
    spent: Decimal = Decimal(0)
    """What is known to be spent, and what was set aside where it is not known."""
    repair_used: bool = False
    reason: Reason = ""
    """What kept the primary from answering."""
    last_output: str = ""

    @property
    def cost_left(self) -> Decimal | None:
        return None if self.request.cost_max is None else self.request.cost_max - self.spent


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint said that holds."""

    judgement: Judgement
    raw: RawAnswer
    endpoint: Endpoint
    rung: Rung
    repaired: Literal["", "mechanical", "turn"]


class Asker:
    """Shared by all calls of one guard."""

    def __init__(self, client: ModelClient, gates: Gates, clock: Clock) -> None:
        self._client, self._gates, self._clock = client, gates, clock

    async def ask(self, call: Call, endpoint: Endpoint, rung: Rung, until_s: float) -> Answer | Reason:
        """The answer, or what kept it away; everything stands in `call.attempts`. Raises HarnessError."""
        output = call.request.output.name
        permit = self._gates.enter_output(endpoint.name, output)
        if permit is None:
            detail = f"its outputs for {output} did not hold too often, and it is being given time"
            return self._passed(call, endpoint, rung, Refusal("output_breaker_open", detail))
        mark: Mark = "neutral"
        try:
            judged, raw = await self._once(call, call.request, endpoint, rung, until_s)
            repaired: Literal["", "mechanical", "turn"] = "mechanical" if judged.checked.repaired else ""
            if judged.reason == "invalid_output" and self._may_mend(call, judged):
                call.repair_used = True
                again, raw_again = await self._once(
                    call, _repair(call.request, judged), endpoint, rung, until_s, repair_turn=True
                )
                if again.reason in ("", "invalid_output"):
                    judged, raw, repaired = again, raw_again, "turn"
            mark = _output_mark(judged.reason)
        finally:
            self._gates.leave_output(endpoint.name, output, permit, mark)
        if judged.reason:
            return judged.reason
        return Answer(judged, raw, endpoint, rung, repaired)

    async def _once(
        self,
        call: Call,
        request: ModelRequest,
        endpoint: Endpoint,
        rung: Rung,
        until_s: float,
        *,
        repair_turn: bool = False,
    ) -> tuple[Judgement, RawAnswer]:
        left_s = until_s - self._clock.monotonic_s()
        entered: Ticket | Refusal
        if left_s < ATTEMPT_S_MIN:
            entered = Refusal("no_time", "no time is left to ask it")
        else:
            entered = self._gates.enter(request, endpoint, left_s, call.cost_left)
        if isinstance(entered, Refusal):
            self._passed(call, endpoint, rung, entered)
            return Judgement(entered.reason, entered.detail, "neutral"), RawAnswer()
        raw, judged, cost = RawAnswer(), _CANCELLED, None
        call.spent += entered.reservation.amount
        try:
            raw = await self._send(request, endpoint, until_s)
            judged = judge(raw, request, endpoint)
            cost = cost_of(raw, judged.tokens, entered.price)
            call.spent += (entered.reservation.amount if cost is None else cost) - entered.reservation.amount
        except asyncio.CancelledError:
            self._note(call, endpoint, rung, judged, raw, cost, repair_turn)
            raise
        finally:
            self._gates.leave(entered, judged.endpoint, cost)
        if raw.status == 429:
            now = datetime.fromtimestamp(self._clock.now_us() / 1_000_000, UTC)
            self._gates.cooldowns.pause(endpoint.name, pause_s(raw.headers, now, endpoint))
        self._note(call, endpoint, rung, judged, raw, cost, repair_turn)
        return judged, raw

    async def _send(self, request: ModelRequest, endpoint: Endpoint, until_s: float) -> RawAnswer:
        began_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(until_s - began_s + GRACE_S):
                return await self._client.send(request, endpoint, until_s)
        except TimeoutError:
            took_s = self._clock.monotonic_s() - began_s
            return RawAnswer(failure="timeout", detail="it did not answer in time", took_s=took_s)
        except HarnessError:
            raise
        except Exception as error:  # noqa: BLE001 - a client's own fault costs its rung, not the caller's answer
            _log.exception("the client of %s raised, which it must not", endpoint.name)
            took_s = self._clock.monotonic_s() - began_s
            return RawAnswer(failure="protocol", detail=f"its client failed: {type(error).__name__}", took_s=took_s)

    def _may_mend(self, call: Call, judged: Judgement) -> bool:
        return call.route.repair_turn and not call.repair_used and judged.invalid not in _NOT_MENDED

    def _passed(self, call: Call, endpoint: Endpoint, rung: Rung, refusal: Refusal) -> Reason:
        attempt = Attempt(
            rung=rung,
            endpoint=endpoint.name,
            model=endpoint.model,
            reason=refusal.reason,
            detail=refusal.detail,
            asked=False,
            tokens=NOT_COUNTED,
        )
        call.attempts.append(attempt)
        measures.attempted(call.request, attempt)
        return refusal.reason

    def _note(
        self,
        call: Call,
        endpoint: Endpoint,
        rung: Rung,
        judged: Judgement,
        raw: RawAnswer,
        cost: Decimal | None,
        repair_turn: bool,
    ) -> None:
        if judged.reason and judged.text:
            call.last_output = judged.text
        attempt = Attempt(
            rung=rung,
            endpoint=endpoint.name,
            model=judged.model or endpoint.model,
            reason=judged.reason,
            detail=judged.detail,
            status=raw.status,
            took_s=raw.took_s,
            tokens=judged.tokens,
            cost=cost,
            invalid=judged.invalid,
            repair_turn=repair_turn,
        )
        call.attempts.append(attempt)
        measures.attempted(call.request, attempt)
        spans.attempted(call.request, endpoint, attempt, self._clock.now_us())


def _output_mark(reason: Reason) -> Mark:
    return "success" if reason == "" else "failure" if reason == "invalid_output" else "neutral"


def _repair(request: ModelRequest, judged: Judgement) -> ModelRequest:
    """The same question, with what was wrong about the answer."""
    wanted = "the JSON value alone" if request.output.kind == "json" else "the whole answer"
    told = f"Your answer can't be used: {judged.detail}. Answer again, with {wanted} and nothing else."
    turn = [{"role": "assistant", "content": judged.text}, {"role": "user", "content": told}]
    return replace(request, messages=[*request.messages, *turn])
