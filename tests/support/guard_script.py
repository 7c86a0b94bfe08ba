"""A model client that follows a script on a clock that only moves when somebody sleeps: what a guard does, exactly."""

from __future__ import annotations

import asyncio
import heapq
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.guard.config import BreakerConfig, BudgetConfig, Endpoint, GuardConfig, Route
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.faults.answers import completion
from pipeline.guard.guard import Function, Guard
from pipeline.guard.output import of_schema
from pipeline.guard.prices import Price, PriceTable
from pipeline.guard.values import ModelRequest, RawAnswer

ANSWER = of_schema(
    "answer",
    {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    },
)
PRICES = PriceTable(
    [
        Price.model_validate(
            {"model": "m", "from": "2020-01-01", "input_per_million": "1000", "output_per_million": "1000"}
        )
    ]
)
VALID = '{"answer": 42}'
BEGAN_US = 1_790_000_000_000_000


class VirtualClock:
    """Time passes where everybody waits: `run` wakes the sleepers in their order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._number = 0

    def now_us(self) -> int:
        return BEGAN_US + int(self.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self._number += 1
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + duration_s, self._number, waiting))
        await waiting

    @property
    def waiting(self) -> int:
        """How many sleep."""
        return len(self._sleepers)

    async def run(self, *tasks: asyncio.Task[Any]) -> None:
        """Until these are done."""
        await self.run_until(lambda: all(task.done() for task in tasks))

    async def run_until(self, true: Callable[[], bool]) -> None:
        while not true():
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers and not true():
                self.now_s, _, waiting = heapq.heappop(self._sleepers)
                if not waiting.done():
                    waiting.set_result(None)


def says(content: str, finish_reason: str = "stop", **message: Any) -> RawAnswer:
    return RawAnswer(status=200, body=completion(content, finish_reason, **message), took_s=0.01)


def fails(kind: Any) -> RawAnswer:
    return RawAnswer(failure=kind, detail="scripted", took_s=0.01)


def answers(status: int, **headers: str) -> RawAnswer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RawAnswer(status=status, headers=named, body=json.dumps({"error": {"message": "no"}}).encode())


class ScriptedClient:
    """Per endpoint the answers in their order, the last for ever; each takes `takes_s` of the clock, and an endpoint in
    `hangs` never answers. `gates` let a test decide when."""

    def __init__(self, clock: VirtualClock, scripts: Mapping[str, list[RawAnswer]], takes_s: float = 0.01) -> None:
        self._clock, self._scripts, self.takes_s = clock, scripts, takes_s
        self.asked: Counter[str] = Counter()
        self.requests: list[ModelRequest] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.cancelled: Counter[str] = Counter()
        self.hangs: set[str] = set()

    async def send(self, request: ModelRequest, endpoint: Endpoint, until_s: float) -> RawAnswer:
        script = self._scripts[endpoint.name]
        answer = script[min(self.asked[endpoint.name], len(script) - 1)]
        self.asked[endpoint.name] += 1
        self.requests.append(request)
        try:
            if endpoint.name in self.gates:
                await self.gates[endpoint.name].wait()
            elif endpoint.name in self.hangs:
                await self._clock.sleep(until_s - self._clock.now_s)
                return fails("timeout")
            else:
                await self._clock.sleep(min(self.takes_s, until_s - self._clock.now_s))
        except asyncio.CancelledError:
            self.cancelled[endpoint.name] += 1
            raise
        return answer


class World:
    """A guard with the endpoints `primary`, `other` and `local`, as far as there are scripts for them."""

    def __init__(
        self,
        functions: Mapping[str, Function] | None = None,
        budget: BudgetConfig | None = None,
        route: Mapping[str, Any] | None = None,
        endpoint: Mapping[str, Any] | None = None,
        **scripts: list[RawAnswer],
    ) -> None:
        self.clock = VirtualClock()
        self.client = ScriptedClient(self.clock, scripts)
        self.escalations = MemoryEscalations()
        made = [
            Endpoint.model_validate({"name": name, "url": "http://h/v1", "model": "m", **(endpoint or {})})
            for name in scripts
        ]
        names = {"others": [n for n in scripts if n.startswith("other")], "local": [n for n in scripts if n == "local"]}
        config = GuardConfig(
            endpoints=tuple(made),
            routes={"*": Route.model_validate({"primary": "primary", **names, **(route or {})})},
            breaker=BreakerConfig(jitter=0),
            budget=budget or BudgetConfig(),
        )
        self.guard = Guard(
            config,
            self.client,
            self.escalations,
            functions,
            prices=PRICES,
            clock=self.clock,
            chance=lambda: 0.5,
        )

    def request(self, **more: Any) -> ModelRequest:
        messages = [{"role": "user", "content": "how many?"}]
        return ModelRequest(**{"task": "t", "messages": messages, "output": ANSWER, "deadline_s": 10.0, **more})

    async def call(self, **more: Any) -> Any:
        task = asyncio.create_task(self.guard.call(self.request(**more)))
        await self.clock.run(task)
        return task.result()
