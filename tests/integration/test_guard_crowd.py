"""Two hundred callers with one deadline over real HTTP: everybody has an answer of the right rung, late by nothing that
is the guard's. What a busy machine adds is printed; the promise is measured where the machine is quiet."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pipeline.guard.config import BreakerConfig, Endpoint, GuardConfig, Route
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.faults import FaultServer
from pipeline.guard.guard import Guard
from pipeline.guard.http_client import HttpClient
from pipeline.guard.output import of_schema
from pipeline.guard.values import ModelRequest

CALLERS, DEADLINE_S, LATE_S = 200, 2.0, 2.0
OUTPUT = of_schema("answer", {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]})


@pytest.fixture
async def faults() -> AsyncIterator[FaultServer]:
    async with FaultServer() as made:
        yield made


@pytest.mark.parametrize(
    ("scripts", "function_s", "rungs"),
    [
        (("hang", "drip", "hang_after_headers"), 0.0, {"deterministic"}),
        (("reset", "error_500", "hang"), 0.0, {"deterministic"}),
        (("hang", "hang", "hang"), None, {"escalated"}),
        (("hang", "hang", "hang"), 0.03, {"deterministic", "escalated"}),
    ],
)
async def test_a_crowd_is_answered(
    faults: FaultServer, scripts: tuple[str, str, str], function_s: float | None, rungs: set[str]
) -> None:
    """A function that keeps the loop for 30 ms can't answer two hundred within two seconds: people get the rest."""
    names = ("primary", "other", "local")
    endpoints = tuple(
        Endpoint(name=name, url=faults.url(script, f"crowd-{name}"), model="gpt-4o", timeout_s=60)
        for name, script in zip(names, scripts, strict=True)
    )
    config = GuardConfig(
        endpoints=endpoints,
        routes={"*": Route(primary="primary", others=("other",), local=("local",), retry_delay_s=0.01)},
        breaker=BreakerConfig(failures_max=1000),
    )

    def function(asked: ModelRequest) -> Any:
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < (function_s or 0):
            pass
        return {"answer": 0}

    late_s: list[float] = []
    found: Counter[str] = Counter()
    async with HttpClient() as client:
        guard = Guard(config, client, MemoryEscalations(), {} if function_s is None else {"t": function})
        if function_s:
            for _ in range(20):
                guard._endings.took("t", function_s)

        async def one() -> None:
            messages = [{"role": "user", "content": "how many?"}]
            began_s = time.monotonic()
            result = await guard.call(ModelRequest(task="t", messages=messages, output=OUTPUT, deadline_s=DEADLINE_S))
            late_s.append(time.monotonic() - began_s - DEADLINE_S)
            found[result.rung] += 1

        await asyncio.gather(*(one() for _ in range(CALLERS)))
        assert not guard._endings._booked_us
    told = sorted(late_s)
    print(f"{scripts}: {dict(found)}, half at {told[100] * 1000:+.0f} ms, the last at {told[-1] * 1000:+.0f} ms")
    assert set(found) == rungs and sum(found.values()) == CALLERS
    assert told[-1] < LATE_S
