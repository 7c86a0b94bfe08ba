"""The benchmark of the guard's overhead, small: it runs; its figure is printed, and only a gross one fails."""

from __future__ import annotations

from tests.benchmarks.guard_overhead import AIM_MS, measure


async def test_overhead_of_a_guarded_call() -> None:
    result = await measure(calls=400, in_flight=100, rounds=3)
    print(result)
    assert result["guarded_cpu_ms"] > 0 < result["bare_cpu_ms"]
    assert result["overhead_cpu_ms"] < 10 * AIM_MS, "ten times what it should be is no noise"
