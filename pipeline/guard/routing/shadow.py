"""Shadow traffic: a share of the requests goes to the candidate too, off their path, and both answers are kept.

The candidate has a breaker, a budget and room of its own. Nothing that it does can delay a caller or fail one: what is
too much is dropped and counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.core import metrics
from pipeline.core.clock import Clock
from pipeline.core.errors import CtxpipeError
from pipeline.core.logging import SparseLog
from pipeline.guard.asking import Answer, Asker, Call
from pipeline.guard.budgets import EVERYBODY
from pipeline.guard.client import ModelClient
from pipeline.guard.config import BudgetConfig, Endpoint, GuardConfig, Route
from pipeline.guard.gates import Gates
from pipeline.guard.prices import PriceTable
from pipeline.guard.routing.config import Candidate
from pipeline.guard.routing.pairs import Pair, Pairs, Score, key_of, side_of
from pipeline.guard.secrets import Secrets
from pipeline.guard.values import Attempt, ModelRequest, RawAnswer, Reason, Result, Tokens, costs_of

SUFFIX = "/shadow"
"""What its name has in metrics, behind the endpoint's own."""
_LOG = logging.getLogger("ctxpipe.routing")
_SPARSE = SparseLog(_LOG)


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """One question that the candidate gets too, with the answer that its caller had."""

    request: ModelRequest
    key: str
    active: Endpoint
    result: Result
    repair_turn: bool


class Shadow:
    """Of one candidate for one task. `offer` returns at once; `close` ends what is on its way."""

    def __init__(
        self,
        candidate: Candidate,
        endpoint: Endpoint,
        guard: GuardConfig,
        client: ModelClient,
        pairs: Pairs,
        score: Score | None,
        *,
        prices: PriceTable,
        clock: Clock,
        chance: Callable[[], float],
        secrets: Secrets,
    ) -> None:
        self.candidate, self._endpoint, self._clock = candidate, endpoint, clock
        self._pairs, self._score, self._secrets = pairs, score, secrets
        self._named = endpoint.model_copy(update={"name": f"{endpoint.name}{SUFFIX}"})
        limits = {} if candidate.cost_per_hour_max is None else {EVERYBODY: candidate.cost_per_hour_max}
        own = GuardConfig(
            endpoints=(self._named,),
            routes={EVERYBODY: Route(primary=self._named.name)},
            breaker=guard.breaker,
            budget=BudgetConfig(tenant_cost_per_hour_max=limits),
        )
        self._client, self._gates = client, Gates(own, prices, clock, chance)
        self._waiting: deque[Copy] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def offer(self, request: ModelRequest, result: Result, active: Endpoint, route: Route) -> None:
        """A copy, where this request is one of the share; must be called in the event loop."""
        key = key_of(request)
        if not chosen(key, self.candidate.share):
            return
        copy = Copy(request, key, active, result, route.repair_turn)
        if len(self._running) < self.candidate.concurrency_max:
            self._begin(copy)
        elif len(self._waiting) < self.candidate.queue_max:
            self._waiting.append(copy)
        else:
            _count(request.task, "dropped")

    async def close(self) -> None:
        self._waiting.clear()
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def idle(self) -> None:
        """Returns when nothing waits and nothing is on its way."""
        while self._running:
            await asyncio.wait(set(self._running))

    def _begin(self, copy: Copy) -> None:
        task = asyncio.create_task(self._run(copy))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and self._waiting:
            self._begin(self._waiting.popleft())

    async def _run(self, copy: Copy) -> None:
        outcome = "failed"
        try:
            result = await self._ask(copy)
            if any(one.asked for one in result.attempts):
                await self._pairs.put(self._pair(copy, result))
                outcome = "paired"
            else:
                outcome = "dropped"
        except (CtxpipeError, OSError) as error:
            _SPARSE.tell("a pair of answers is lost: %s", error)
        except Exception:  # noqa: BLE001 - a scorer is the application's own code, and nobody waits for this answer
            _LOG.exception("a pair of answers of the task %s is lost", copy.request.task)
        finally:
            _count(copy.request.task, outcome)

    async def _ask(self, copy: Copy) -> Result:
        request = replace(copy.request, tenant=None, cost_max=None)
        began_s = self._clock.monotonic_s()
        until_s = began_s + min(self._endpoint.timeout_s, request.deadline_s)
        route = Route(primary=self._named.name, repair_turn=copy.repair_turn)
        call = Call(request, route, began_s, until_s)
        client = _Keeping(self._client)
        found = await Asker(client, self._gates, self._clock).ask(call, self._named, "primary", until_s)
        return self._result(call, found, client.last.body)

    def _result(self, call: Call, found: Answer | Reason, raw: bytes) -> Result:
        attempts = tuple(call.attempts)
        cost, known = costs_of(attempts)
        came = Result(
            output=None,
            rung="escalated",
            reason="",
            attempts=attempts,
            endpoint=self._named.name,
            model=attempts[-1].model,
            raw=raw,
            tokens=_tokens(attempts),
            cost=cost,
            cost_known=known,
            took_s=self._clock.monotonic_s() - call.began_s,
        )
        if not isinstance(found, Answer):
            return replace(came, reason=found)
        judged = found.judgement
        return replace(came, output=judged.checked.value, rung="primary", tool_calls=judged.tool_calls)

    def _pair(self, copy: Copy, result: Result) -> Pair:
        active = alone(copy.result, copy.active.name)
        return Pair(
            key=copy.key,
            task=copy.request.task,
            group=copy.request.tenant or copy.key,
            at_us=self._clock.now_us(),
            share=self.candidate.share,
            active=side_of(active, copy.active, self._scores(copy, active), self._secrets),
            candidate=side_of(result, self._endpoint, self._scores(copy, result), self._secrets),
        )

    def _scores(self, copy: Copy, result: Result) -> Mapping[str, float]:
        """Without a measure of the task's own, an answer that holds is worth 1."""
        if self._score is None:
            return {"score": float(result.answered)}
        scores = {name: float(value) for name, value in self._score(copy.request, result).items()}
        wrong = [name for name, value in scores.items() if not (math.isfinite(value) and 0 <= value <= 1)]
        if wrong:
            raise CtxpipeError(f"the measure of {copy.request.task} gives {', '.join(wrong)} outside of 0 to 1")
        return scores


class _Keeping:
    """Of one copy: what came last, whether it held or not."""

    def __init__(self, client: ModelClient) -> None:
        self._client = client
        self.last = RawAnswer()

    async def send(self, request: ModelRequest, endpoint: Endpoint, until_s: float) -> RawAnswer:
        self.last = await self._client.send(request, endpoint, until_s)
        return self.last


def alone(result: Result, endpoint: str) -> Result:
    """What the endpoint itself answered: no answer, where another rung had to."""
    own = tuple(one for one in result.attempts if one.endpoint == endpoint)
    cost, known = costs_of(own)
    paid = replace(result, attempts=own, endpoint=endpoint, tokens=_tokens(own), cost=cost, cost_known=known)
    if result.endpoint == endpoint:
        return paid
    reason = result.reason or (own[-1].reason if own else "no_route")
    return replace(paid, output=None, rung="escalated", reason=reason, raw=b"", tool_calls=(), repaired="")


def chosen(key: str, share: float) -> bool:
    """The same requests for every process and every run."""
    return int.from_bytes(hashlib.sha256(f"shadow {key}".encode()).digest()[:8], "big") < share * 2**64


def _tokens(attempts: Sequence[Attempt]) -> Tokens:
    asked = [one.tokens for one in attempts if one.asked]
    given, made = [one.input for one in asked], [one.output for one in asked]
    return Tokens(
        None if None in given else sum(one or 0 for one in given),
        None if None in made else sum(one or 0 for one in made),
    )


def _count(task: str, outcome: str) -> None:
    metrics.guard_shadow.labels(task, outcome).inc()
