"""`ctxpipe bench read-your-writes`: each write is looked up at once with its position; no fresh answer may lack it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

HOST = "127.0.0.1"
HEARTBEAT_S = 0.2


@click.command("read-your-writes")
@click.option("--writes", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True)
@click.option("--in-flight", type=click.IntRange(1, 500), default=50, show_default=True, help="Writers side by side.")
@click.option("--rows", type=click.IntRange(1_000, 336_776), default=20_000, show_default=True, help="Flights before.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object as the last line.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path(".ctxpipe/bench-read-your-writes"))
def command(writes: int, in_flight: int, rows: int, as_json: bool, directory: Path) -> None:
    """One connector, one worker and `serve` on the flight context; by key and in batches, over HTTP.

    Each writer updates a flight of its own and looks it up with the position of that write. `wrong_fresh` counts
    answers that are called fresh and do not have it. `control_old`: of lookups without a position, so many were old.

    Exit code 1: an answer was wrong.
    """
    import asyncio
    import json

    result = asyncio.run(_measure(writes, in_flight, rows, directory))
    if as_json:
        click.echo(json.dumps(result))
    else:
        for name, value in result.items():
            click.echo(f"{name:>22}  {value}")
    if result["wrong_fresh"]:
        click.get_current_context().exit(1)


async def _measure(writes: int, in_flight: int, rows: int, directory: Path) -> dict[str, Any]:
    from deploy.demo.backfill import wait_until_backfilled
    from deploy.demo.data import TABLES
    from deploy.demo.harness import Harness
    from deploy.demo.own_writes import Writing
    from deploy.local.processes import choose_port

    harness = Harness(directory)
    try:
        harness.up(say=lambda line: click.echo(line, err=True))
        await harness.create_tables()
        for table in TABLES:
            await harness.load(table, rows if table.name == "flights" else None)
        _beat_often(harness.write_config(("flight",)))
        port = choose_port()
        roles = [
            harness.role("connect", "nyc").start(),
            harness.role("worker", "flight").start(),
            harness.role("serve", "--host", HOST, "--port", str(port)).start(),
        ]
        await wait_until_backfilled(harness, ("flight",), rows, roles)
        update = "UPDATE flights SET dep_delay = $1 WHERE flight_id = $2"
        writing = Writing(harness.dsn, HOST, port, "flight", "nyc", update, ("dep_delay",))
        await _until_listening(port, roles)
        return await _run(writing, writes, in_flight, rows)
    finally:
        harness.close()


def _beat_often(config_path: Path) -> None:
    """What no partition tells by a change of its own, heartbeats tell: their interval is most of the wait."""
    import yaml

    config = yaml.safe_load(config_path.read_text())
    config["sources"]["nyc"]["heartbeat_interval_s"] = HEARTBEAT_S
    config_path.write_text(yaml.safe_dump(config, sort_keys=False))


async def _until_listening(port: int, roles: list[Any]) -> None:
    import asyncio

    from deploy.demo.http_client import HttpConnection

    client = HttpConnection(HOST, port)
    while True:
        for role in roles:
            role.ensure_running()
        try:
            status, _ = await client.ask("/readyz")
            if status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        finally:
            client.close()
        await asyncio.sleep(0.25)


async def _run(writing: Any, writes: int, in_flight: int, rows: int) -> dict[str, Any]:
    import time

    from deploy.demo.freshness import percentile
    from deploy.demo.own_writes import write_and_read

    began_s = time.monotonic()
    seen = await write_and_read(writing, range(1, rows + 1), writes, in_flight)
    return {
        "writes": seen.writes,
        "fresh": seen.statuses["fresh"],
        "wrong_fresh": seen.wrong_fresh,
        "not_fresh": sum(seen.statuses.values()) - seen.statuses["fresh"],
        "errors": len(seen.errors),
        "first_errors": seen.errors[:3],
        "control": seen.control,
        "control_old": seen.control_old,
        "wait_p50_ms": round(percentile(seen.waits_ms, 0.5), 1),
        "wait_p99_ms": round(percentile(seen.waits_ms, 0.99), 1),
        "wait_slowest_ms": round(max(seen.waits_ms, default=0.0), 1),
        "heartbeat_ms": HEARTBEAT_S * 1000,
        "budget_ms": writing.budget_ms,
        "in_flight": in_flight,
        "rows": rows,
        "elapsed_s": round(time.monotonic() - began_s, 1),
    }
