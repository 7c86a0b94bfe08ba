"""`ctxpipe bench freshness --vector`: from the commit in Postgres to the first search that finds the new text."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from deploy.demo.harness import Harness
    from deploy.demo.renaming import Renaming
    from deploy.demo.search_freshness import Found, Watched
    from deploy.demo.stage_times import StageTimes
    from deploy.local.roles import Role

CONTEXT = "aircraft"
TABLES_READ = 3
HOST = "127.0.0.1"
SPACE_TIMEOUT_S = 120.0
COLLECT_EVERY_S = 0.1
LATE_S = 60.0
ENGINE_TEXTS = 200
STAGES = ("row_in_kafka", "bundle_in_redis", "text_in_kafka", "vector_in_kafka", "found")

Tell = Callable[[str], None]


async def measure_found(
    rate: float, changes: int, rows: int, warm_up_s: float, directory: Path, tell: Tell
) -> dict[str, Any]:
    """One connector, one worker with the space's own process, one `serve`; each change of a plane's text is timed until
    a search by vector over HTTP has it as its best hit. Raises EnvironmentProblem."""
    from deploy.demo.harness import Harness
    from deploy.demo.renaming import renamings

    harness, environment = Harness(directory), _environment()
    try:
        port, space, roles = await _start(harness, rows, tell)
        all_changes = renamings(round(rate * warm_up_s) + changes)
        warm, timed = all_changes[:-changes], all_changes[-changes:]
        if warm:
            tell(f"{len(warm)} changes to warm up")
            await _watched(harness, port, warm, rate, roles)
        tell(f"{len(timed)} changes, timed")
        watched, changing_s = await _watched(harness, port, timed, rate, roles)
        stages = await _stages(harness, space, timed)
        searches = _percentiles(watched.searches_ms)
        return {
            **figures(watched.found, stages),
            "searches": len(watched.searches_ms),
            "searches_unanswered": watched.unanswered,
            "search_p50_ms": searches["p50"],
            "search_p99_ms": searches["p99"],
            "changes": len(timed),
            "changes_per_s": round(len(timed) / changing_s, 1),
            "rows": rows,
            "engine": "hash",
            "engine_p50_ms": await asyncio.to_thread(_engine_ms, timed),
            "engine_included": True,
            "warm_up_s": warm_up_s,
            "environment": environment,
        }
    finally:
        harness.close()


async def _start(harness: Harness, rows: int, tell: Tell) -> tuple[int, str, list[Role]]:
    """The port of `serve`, which answers searches, and the space that it answers from."""
    from deploy.demo.backfill import wait_until_backfilled
    from deploy.demo.data import TABLES
    from deploy.local.processes import choose_port

    harness.up(say=tell)
    await harness.create_tables()
    for table in TABLES:
        await harness.load(table, rows if table.name == "flights" else None)
    harness.write_config((CONTEXT,))
    port = choose_port()
    roles = [
        harness.role("connect", "nyc").start(),
        harness.role("worker", CONTEXT).start(),
        harness.role("serve", "--host", HOST, "--port", str(port)).start(),
    ]
    await wait_until_backfilled(harness, (CONTEXT,), rows, roles, tables={CONTEXT: TABLES_READ})
    tell("all bundles are there; waiting for their vectors")
    return port, await _until_found(port, roles), roles


async def _until_found(port: int, roles: Sequence[Role]) -> str:
    from deploy.demo.search_freshness import Asking

    until_s = time.monotonic() + SPACE_TIMEOUT_S
    while time.monotonic() < until_s:
        for role in roles:
            role.ensure_running()
        asking = Asking(HOST, port, CONTEXT)
        try:
            status, answer = await asyncio.to_thread(asking.ask, {"text": "BOEING", "mode": "vector", "k": 1})
            if status == 200 and answer["hits"] and not answer["index"]["behind_records"]:
                return str(answer["space"])
        except OSError:
            pass  # it does not listen yet
        finally:
            asking.close()
        await asyncio.sleep(0.25)
    ends = "\n".join(f"{role.arguments[0]}: {role.tail()}" for role in roles)
    raise EnvironmentProblem(f"no space of {CONTEXT} answers searches after {SPACE_TIMEOUT_S:g} s. Logs end:\n{ends}")


async def _watched(
    harness: Harness, port: int, changes: Sequence[Renaming], rate: float, roles: Sequence[Role]
) -> tuple[Watched, float]:
    """Each change found or given up on, and for how many seconds there were changes."""
    from deploy.demo.renaming import rename
    from deploy.demo.search_freshness import SearchWatcher, Watched

    watcher = SearchWatcher(HOST, port, CONTEXT)
    watched = Watched([], [])
    task = asyncio.create_task(rename(harness.dsn, changes, rate, watcher.expect))
    until_s = time.monotonic() + len(changes) / rate * 2 + LATE_S
    try:
        while not task.done() or (len(watched.found) < watcher.expected and time.monotonic() < until_s):
            watched.add(watcher.collect())
            for role in roles:
                role.ensure_running()
            await asyncio.sleep(COLLECT_EVERY_S)
        return watched, await task
    finally:
        task.cancel()
        watcher.close()


async def _stages(harness: Harness, space: str, changes: Sequence[Renaming]) -> dict[str, StageTimes]:
    from deploy.demo.stage_times import stage_times
    from pipeline.embedding.hashing import DIMENSION

    assert harness.addresses is not None
    return await stage_times(harness.addresses.kafka, CONTEXT, space, DIMENSION, changes)


def figures(found: Sequence[Found], stages: Mapping[str, StageTimes]) -> dict[str, Any]:
    """Milliseconds from Postgres' own time of the commit until the answer of the search, and where they went. `timed`
    are those that left records in all topics on their way."""
    seen = [one for one in found if one.found_ns is not None]
    timed = [(one, stages[one.marker]) for one in seen if one.marker in stages]
    whole = _percentiles([_ms(1_000 * times.commit_us, one.found_ns) for one, times in timed])
    told = _percentiles([_ms(one.committed_ns, one.found_ns) for one, _ in timed])
    return {
        **{f"{name}_ms": value for name, value in whole.items()},
        "from_the_client_ms": told,
        "stages_ms": _by_stage(timed),
        "between_searches_p50_ms": _percentiles([_ms(one.asked_ns, one.found_ns) for one, _ in timed])["p50"],
        "timed": len(timed),
        "not_found": len(found) - len(seen),
    }


def _by_stage(timed: Sequence[tuple[Found, StageTimes]]) -> dict[str, dict[str, float]]:
    """How long each stage took after the one before it."""
    durations: dict[str, list[float]] = {name: [] for name in STAGES}
    for one, times in timed:
        handed_on_ms = (times.change_ms, times.request_ms, times.text_ms, times.vector_ms)
        ends_ns = [1_000 * times.commit_us, *(1_000_000 * time_ms for time_ms in handed_on_ms), one.found_ns]
        for name, before_ns, end_ns in zip(STAGES, ends_ns[:-1], ends_ns[1:], strict=True):
            durations[name].append(_ms(before_ns, end_ns))
    return {name: _percentiles(values) for name, values in durations.items()}


def _ms(begin_ns: int | None, end_ns: int | None) -> float:
    return max(0.0, ((end_ns or 0) - (begin_ns or 0)) / 1e6)


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    from deploy.demo.freshness import percentile

    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "slowest": 1.0}
    return {name: round(percentile(values, share), 2) for name, share in shares.items()}


def _engine_ms(changes: Sequence[Renaming]) -> float:
    """What the engine needs for one such text, alone; milliseconds, median."""
    from pipeline.embedding.hashing import HashEngine

    engine, taken_s = HashEngine(), []
    for change in changes[:ENGINE_TEXTS]:
        started_s = time.perf_counter()
        engine.embed([change.text])
        taken_s.append(time.perf_counter() - started_s)
    return round(statistics.median(taken_s) * 1000, 2)


def _environment() -> dict[str, Any]:
    import os
    import platform

    load = round(os.getloadavg()[0], 2)
    return {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version(), "load": load}
