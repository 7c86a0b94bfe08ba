"""What stands before an endpoint that embeds: pauses, rate limits and a breaker, one of each per endpoint and process,
whoever asks: the workers of several spaces, searches, a check. Metrics are those of the guard's endpoints.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.core import genai_names as names
from pipeline.core import metrics, telemetry
from pipeline.core.breaker import STATES, Breaker, Mark, Permit, State
from pipeline.core.clock import SystemClock
from pipeline.core.config import EndpointConfig
from pipeline.core.errors import CtxpipeError, Fatal, Poison, Retryable
from pipeline.embedding.engine import Throttled
from pipeline.embedding.rate_limit import RateLimit

RUNG, TASK, PART = "primary", "embedding", "endpoint"
"""Labels, as the guard's metrics have them."""
PROVIDER = "openai"
"""Of whom the API is, whoever offers it."""
PROBED_S = 1.0
"""While somebody else finds out whether the endpoint is well again, one asks again after so long."""


class EndpointGate:
    """For several threads. `take` before a batch, `passing` around each request."""

    def __init__(
        self,
        name: str,
        endpoint: EndpointConfig,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name, self.who, self._price = name, f"endpoint {name}", endpoint.price_per_million_tokens
        self._limit = RateLimit(endpoint.requests_per_minute, endpoint.tokens_per_minute, clock)
        self._clock, self._lock = clock, threading.Lock()
        self._breaker = Breaker(endpoint.breaker, clock, chance, self._told)
        metrics.guard_breaker.labels(name, PART).set(0)

    @property
    def state(self) -> State:
        with self._lock:
            return self._breaker.state

    def take(self, requests: int, tokens: int) -> None:
        """Raises Throttled where so much may not be sent now; nothing is sent then."""
        wait_s = self._limit.take(requests, tokens)
        if wait_s > 0:
            self._count("rate_limited")
            raise Throttled(f"the rate limit of {self.who} is used up for {wait_s:.1f} s", wait_s)

    @contextmanager
    def passing(self, model: str) -> Iterator[Callable[[int | None], None]]:
        """Around one request; what is yielded takes how many tokens the endpoint counted. Raises Throttled where it
        failed too often and is being given time; what the request raises passes, and says how the endpoint is."""
        permit = self._entered()
        began_s, began_us = self._clock(), SystemClock().now_us()
        mark: Mark = "neutral"
        reason, counted = "cancelled", list[int | None]()
        metrics.guard_in_flight.labels(self.name).inc()
        try:
            yield counted.append
            reason, mark = "answered", "success"
            self._paid(counted[-1] if counted else None)
        except CtxpipeError as error:
            reason, mark = judged(error)
            if isinstance(error, Throttled):
                self._limit.pause(error.retry_after_s)
            raise
        finally:
            self._left(permit, mark)
            metrics.guard_in_flight.labels(self.name).dec()
            self._count(reason)
            metrics.guard_attempt_seconds.labels(self.name).observe(self._clock() - began_s)
            _traced(model, began_us, "" if reason == "answered" else reason, counted[-1] if counted else None)

    def _paid(self, tokens: int | None) -> None:
        """None: the endpoint did not count them."""
        if tokens is not None:
            metrics.guard_tokens.labels(self.name, TASK, "input").inc(tokens)
        if tokens is None or self._price is None:
            metrics.guard_cost_unknown.labels(self.name, TASK).inc()
        else:
            metrics.guard_cost.labels(self.name, TASK).inc(tokens * self._price / 1_000_000)

    def _entered(self) -> Permit:
        with self._lock:
            permit = self._breaker.admit()
            wait_s = self._breaker.open_left_s
        if permit is None:
            self._count("breaker_open")
            raise Throttled(f"{self.who} failed too often, and is being given time", wait_s or PROBED_S)
        return permit

    def _left(self, permit: Permit, mark: Mark) -> None:
        with self._lock:
            self._breaker.settle(permit, mark)

    def _count(self, reason: str) -> None:
        metrics.guard_attempts.labels(self.name, RUNG, reason).inc()

    def _told(self, state: State) -> None:
        metrics.guard_breaker.labels(self.name, PART).set(STATES.index(state))
        if state == "open":
            metrics.guard_opened.labels(self.name, PART).inc()


def _traced(model: str, began_us: int, reason: str, tokens: int | None) -> None:
    """The span and metrics of one request, where somebody wants them."""
    calls = telemetry.model_calls()
    if calls is None:
        return
    ended_us = SystemClock().now_us()
    shared: dict[str, str | int | float] = {
        names.OPERATION_NAME: names.EMBEDDINGS,
        names.PROVIDER_NAME: PROVIDER,
        names.REQUEST_MODEL: model,
    }
    if reason:
        shared[names.ERROR_TYPE] = reason
    told = shared if tokens is None else {**shared, names.INPUT_TOKENS: tokens}
    calls.asked(f"{names.EMBEDDINGS} {model}", told, began_us, ended_us, reason)
    calls.measured(names.OPERATION_DURATION, "s", names.DURATION_S, (ended_us - began_us) / 1e6, shared)
    if tokens is not None:
        calls.measured(names.TOKEN_USAGE, "{token}", names.TOKENS, tokens, {**shared, names.TOKEN_TYPE: "input"})


def judged(error: CtxpipeError) -> tuple[str, Mark]:
    """(reason, what it says of the endpoint), by the guard's words. Texts and keys that are refused are the asker's
    own matter; an answer that is none is the endpoint's."""
    if isinstance(error, Throttled):
        return "rate_limited", "neutral"
    if isinstance(error, Refused):
        return "refused", "neutral"
    if isinstance(error, Poison):
        return "refused", "neutral"
    if isinstance(error, TimedOut):
        return "timeout", "failure"
    if isinstance(error, Unreachable):
        return "unreachable", "failure"
    if isinstance(error, Retryable):
        return "server_error", "failure"
    return "not_an_answer", "failure"


class TimedOut(Retryable):
    """It did not answer, or not finish, in time."""


class Unreachable(Retryable):
    """There is no connection, or it broke."""


class Refused(Fatal):
    """It will not take the key, the model, or the address."""


_gates: dict[tuple[str, EndpointConfig], EndpointGate] = {}
_opening = threading.Lock()


def gate_of(name: str, endpoint: EndpointConfig) -> EndpointGate:
    """The same one for all of this process."""
    with _opening:
        found = _gates.get((name, endpoint))
        if found is None:
            found = _gates[name, endpoint] = EndpointGate(name, endpoint)
        return found
