"""What stands before an endpoint: pauses, breakers, room, money. An attempt goes through all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pipeline.core.clock import Clock
from pipeline.guard import measures
from pipeline.guard.breaker import Breaker, Mark, Permit, State
from pipeline.guard.budgets import CostBudgets, InFlight, Reservation
from pipeline.guard.config import Endpoint, GuardConfig
from pipeline.guard.prices import Price, PriceTable
from pipeline.guard.rate_limits import Cooldowns
from pipeline.guard.values import ModelRequest, Reason

OUTPUTS_MAX = 10_000
"""Breakers of outputs that are remembered; the oldest is forgotten first, and begins closed again."""
_ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Of an attempt that may be made. `price` None: unknown."""

    endpoint: Endpoint
    permit: Permit
    reservation: Reservation
    price: Price | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why it may not."""

    reason: Reason
    detail: str


class Gates:
    """Of all calls of one guard. `enter` and `leave` around each attempt, `enter_output` and `leave_output` around the
    attempt and its repair turn."""

    def __init__(self, config: GuardConfig, prices: PriceTable, clock: Clock, chance: Callable[[], float]) -> None:
        self._config, self._prices, self._clock, self._chance = config, prices, clock, chance
        self.cooldowns = Cooldowns(clock.monotonic_s, chance)
        self.costs = CostBudgets(config.budget)
        self._in_flight = InFlight()
        self._endpoints: dict[str, Breaker] = {}
        self._outputs: dict[tuple[str, str], Breaker] = {}

    def enter(
        self, request: ModelRequest, endpoint: Endpoint, left_s: float, cost_left: Decimal | None
    ) -> Ticket | Refusal:
        """`left_s`: what an attempt may take; `cost_left`: what is left of the request's own limit, None: no limit."""
        pause_s = self.cooldowns.left_s(endpoint.name)
        if pause_s > 0:
            return Refusal("rate_limited", f"it asked for a pause, {pause_s:.1f} s of it are left")
        permit = self.breaker(endpoint.name).admit()
        if permit is None:
            return Refusal("breaker_open", "it failed too often, and is being given time")
        taken: Reservation | Refusal
        if self._in_flight.enter(endpoint.name, endpoint.concurrency_max):
            price = self.price(endpoint)
            taken = self._reserve(request, endpoint, price, left_s, cost_left)
            if isinstance(taken, Reservation):
                measures.entered(endpoint.name, 1)
                return Ticket(endpoint, permit, taken, price)
            self._in_flight.leave(endpoint.name)
        else:
            taken = Refusal("too_many", f"{endpoint.concurrency_max} are on their way to it already")
        self.breaker(endpoint.name).neutral(permit)
        return taken

    def leave(self, ticket: Ticket, mark: Mark, cost: Decimal | None) -> None:
        """`cost` None: unknown, so that what was set aside counts as spent."""
        self._in_flight.leave(ticket.endpoint.name)
        measures.entered(ticket.endpoint.name, -1)
        self.breaker(ticket.endpoint.name).settle(ticket.permit, mark)
        self.costs.settle(ticket.reservation, cost)

    def enter_output(self, endpoint: str, output: str) -> Permit | None:
        return self.output_breaker(endpoint, output).admit()

    def leave_output(self, endpoint: str, output: str, permit: Permit, mark: Mark) -> None:
        self.output_breaker(endpoint, output).settle(permit, mark)

    def price(self, endpoint: Endpoint) -> Price | None:
        day = datetime.fromtimestamp(self._clock.now_us() / 1_000_000, UTC).date()
        return self._prices.of(endpoint.price_name, day)

    def breaker(self, endpoint: str) -> Breaker:
        found = self._endpoints.get(endpoint)
        if found is None:
            found = self._endpoints[endpoint] = self._breaker(endpoint, _ENDPOINT)
        return found

    def output_breaker(self, endpoint: str, output: str) -> Breaker:
        key = (endpoint, output)
        found = self._outputs.get(key)
        if found is None:
            if len(self._outputs) >= OUTPUTS_MAX:
                del self._outputs[next(iter(self._outputs))]
            found = self._outputs[key] = self._breaker(endpoint, output)
        return found

    def states(self) -> Mapping[str, State]:
        """Of endpoints by name, of outputs by `endpoint/output`."""
        outputs = {f"{endpoint}/{output}": breaker.state for (endpoint, output), breaker in self._outputs.items()}
        return {**{name: breaker.state for name, breaker in self._endpoints.items()}, **outputs}

    def _breaker(self, endpoint: str, part: str) -> Breaker:
        told = measures.breaker_told(endpoint, part)
        return Breaker(self._config.breaker, self._clock.monotonic_s, self._chance, told)

    def _reserve(
        self,
        request: ModelRequest,
        endpoint: Endpoint,
        price: Price | None,
        left_s: float,
        cost_left: Decimal | None,
    ) -> Reservation | Refusal:
        limited = cost_left is not None or self.costs.limit(request.tenant) is not None
        if not limited:
            return Reservation(None, Decimal(0))
        if price is None:
            return Refusal("cost_unknown", f"the price of {endpoint.price_name} is unknown, and a limit holds")
        most = price.most(_bytes(request.messages, request), request.output_tokens_max, left_s)
        if cost_left is not None and most > cost_left:
            return Refusal("cost_limit", f"it may cost {most:.6f}, of the request's limit {cost_left:.6f} are left")
        taken = self.costs.reserve(request.tenant, most, self._clock.now_us())
        return taken or Refusal("tenant_budget", "it may cost more than is left of the tenant's budget for this hour")


def _bytes(messages: Sequence[Mapping[str, Any]], request: ModelRequest) -> int:
    """About what is sent: only for what is set aside."""
    tools = sum(len(str(tool.parameters)) + len(tool.description) for tool in request.tools)
    schema = 0 if request.output.json_schema is None else len(str(request.output.json_schema))
    return tools + schema + sum(len(str(message).encode(errors="replace")) for message in messages)
