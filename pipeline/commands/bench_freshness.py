"""`ctxpipe bench freshness`: from the commit in Postgres to the bundle in Redis, or to the text found by search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


@click.command("freshness")
@click.option("--vector", is_flag=True, help="Until a search by vector finds the new text, over HTTP.")
@click.option("--rate", type=click.FloatRange(1, 5_000), help="Changes per second; default 500, with --vector 25.")
@click.option(
    "--changes", type=click.IntRange(100), help="Inserts and updates in all; default 6,000, with --vector 2,000."
)
@click.option("--rows", type=click.IntRange(1_000, 336_776), default=20_000, show_default=True, help="Flights before.")
@click.option("--warm-up", "warm_up_s", type=click.FloatRange(0, 600), default=20.0, show_default=True,
              help="Seconds of the same changes before any is timed: a new broker is slow.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON object as the last line.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path(".ctxpipe/bench-freshness"))
def command(
    vector: bool,
    rate: float | None,
    changes: int | None,
    rows: int,
    warm_up_s: float,
    as_json: bool,
    directory: Path,
) -> None:
    """One connector and one worker on the flight context; each update of a flight is timed until a reader sees it.

    With --vector, on the aircraft context, a space of the engine `hash`, and `ctxpipe serve`: each new model of a plane
    is timed, from Postgres' own time of the commit, until the answer of a search over HTTP that has its text as the
    best hit. The engine's own time is in it, and told beside it: another engine takes longer. So is the time from one
    search to the next. `stages_ms` tells the times between the records in Kafka.
    """
    import asyncio
    import json

    if vector:
        from pipeline.commands._bench_found import measure_found

        tell: Callable[[str], None] = lambda line: click.echo(line, err=True)  # noqa: E731
        measuring = measure_found(rate or 25.0, changes or 2_000, rows, warm_up_s, directory, tell)
    else:
        measuring = _measure(rate or 500.0, changes or 6_000, rows, warm_up_s, directory)
    result = asyncio.run(measuring)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:>20}  {value}")


async def _measure(rate: float, changes: int, rows: int, warm_up_s: float, directory: Path) -> dict[str, Any]:
    from deploy.demo.backfill import wait_until_backfilled
    from deploy.demo.data import TABLES
    from deploy.demo.harness import Harness
    from deploy.demo.replay import departures, replay

    harness = Harness(directory)
    try:
        harness.up(say=lambda line: click.echo(line, err=True))
        await harness.create_tables()
        for table in TABLES:
            await harness.load(table, rows if table.name == "flights" else None)
        harness.write_config(("flight",))
        roles = [harness.role("connect", "nyc").start(), harness.role("worker", "flight").start()]
        await wait_until_backfilled(harness, ("flight",), rows, roles)
        flights = departures(rows, min(rows, round(rate * warm_up_s + changes) // 2))
        warm, timed = flights[: -changes // 2], flights[-changes // 2 :]
        if warm:
            await replay(harness.dsn, warm, rate, lambda key, marker, time_ns: None)
        return {**await _replay(harness, rate, timed), "warm_up_s": warm_up_s}
    finally:
        harness.close()


async def _replay(harness: Any, rate: float, flights: list[dict[str, Any]]) -> dict[str, Any]:
    import asyncio
    import time

    from deploy.demo.freshness import FreshnessWatcher, percentile
    from deploy.demo.replay import replay

    watcher = FreshnessWatcher(harness.redis_settings("flight"))
    seen: list[float] = []
    started = time.monotonic()
    task = asyncio.create_task(replay(harness.dsn, flights, rate, watcher.expect))
    deadline = started + 2 * len(flights) / rate + 60
    try:
        while not task.done() or (len(seen) < watcher.expected and time.monotonic() < deadline):
            seen += watcher.collect()
            await asyncio.sleep(0.05)
        done = await task
        elapsed_s = time.monotonic() - started
    finally:
        task.cancel()
        watcher.close()
    timed = [value for value in seen if value >= 0]
    return {
        "p50_ms": round(percentile(timed, 0.5), 2),
        "p90_ms": round(percentile(timed, 0.9), 2),
        "p99_ms": round(percentile(timed, 0.99), 2),
        "slowest_ms": round(max(timed, default=0.0), 2),
        "timed": len(timed),
        "not_seen": watcher.expected - len(timed),
        "changes": done,
        "changes_per_s": round(done / elapsed_s, 1),
    }
