"""What a guard costs per call: the same request by a bare client and through `Guard.call`, by turns in one run.

`python -m tests.benchmarks.guard_overhead` [--calls N] [--in-flight N] [--rounds N] prints one line of JSON. The server
is a process of its own. Both clients are aiohttp's; the bare one sends, reads and parses, and checks nothing. CPU time
is that of this process, so it does not depend on what else the machine does; wall time does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from pipeline.guard.config import Endpoint, GuardConfig, Route
from pipeline.guard.escalations import MemoryEscalations
from pipeline.guard.guard import Guard
from pipeline.guard.http_client import HttpClient
from pipeline.guard.output import of_schema
from pipeline.guard.values import ModelRequest
from pipeline.guard.wire import PATH, body_of

OUTPUT = of_schema(
    "answer",
    {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    },
)
REQUEST = ModelRequest(
    task="benchmark",
    messages=[
        {"role": "system", "content": "Answer in JSON."},
        {"role": "user", "content": "Which flight is late? " + "context " * 250},
    ],
    output=OUTPUT,
    tenant="acme",
)
AIM_MS = 0.3

Once = Callable[[], Awaitable[None]]


async def measure(calls: int, in_flight: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per call, the median of the rounds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pipeline.guard.faults", "--port", "0", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        endpoint = Endpoint(name="primary", url=url, model="gpt-4o")
        config = GuardConfig(endpoints=(endpoint,), routes={"*": Route(primary="primary")})
        connector = aiohttp.TCPConnector(limit=0)
        async with HttpClient() as client, aiohttp.ClientSession(connector=connector) as session:
            guard = Guard(config, client, MemoryEscalations())
            return await _compare(_bare(session, endpoint), _guarded(guard), calls, in_flight, rounds)
    finally:
        process.terminate()
        await process.wait()


async def _compare(bare: Once, guarded: Once, calls: int, in_flight: int, rounds: int) -> dict[str, Any]:
    for once in (bare, guarded):
        await _round(once, min(calls, 2 * in_flight), in_flight)
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "guarded": []}
    for _ in range(rounds):
        times["bare"].append(await _round(bare, calls, in_flight))
        times["guarded"].append(await _round(guarded, calls, in_flight))
    result: dict[str, Any] = {"calls": calls, "in_flight": in_flight, "rounds": rounds, "aim_ms": AIM_MS}
    for number, kind in enumerate(("wall", "cpu")):
        for name, pairs in times.items():
            result[f"{name}_{kind}_ms"] = round(statistics.median(pair[number] for pair in pairs), 4)
        differences = [two[number] - one[number] for one, two in zip(times["bare"], times["guarded"], strict=True)]
        result[f"overhead_{kind}_ms"] = round(statistics.median(differences), 4)
    return result


async def _round(once: Once, calls: int, in_flight: int) -> tuple[float, float]:
    """Milliseconds per call: of the wall, of the processor."""
    left = calls

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await once()

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return (time.perf_counter() - wall_s) * 1000 / calls, (time.process_time() - cpu_s) * 1000 / calls


def _bare(session: aiohttp.ClientSession, endpoint: Endpoint) -> Once:
    async def once() -> None:
        async with session.post(endpoint.url + PATH, json=body_of(REQUEST, endpoint)) as response:
            answer = await response.json()
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"answer": 42}

    return once


def _guarded(guard: Guard) -> Once:
    async def once() -> None:
        result = await guard.call(REQUEST)
        assert result.rung == "primary" and result.output == {"answer": 42}, result

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(measure(asked.calls, asked.in_flight, asked.rounds))))


if __name__ == "__main__":
    main()
