"""`ctxpipe bench lookup`: answers per second and their times, beside bare tools and Feast, while bundles change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.commands._bench_lookup_feast import Feast
    from pipeline.commands._bench_lookup_world import World

ROWS, CURVE_ROWS = 100_000, 1_000_000
WARM_UP_S = 2.0
ADDITIONS = 10_000_000


@click.command("lookup")
@click.option("--seconds", type=click.FloatRange(0.2, 3_600), default=10.0, show_default=True, help="Of each load.")
@click.option("--rows", type=click.IntRange(1_000, 10_000_000), help="Bundles; default 100,000, of --curve at most "
              "1,000,000.")  # fmt: skip
@click.option("--keys", type=click.IntRange(100, 10_000_000), help="Ask for so many of them; default: for all.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Of capacities: their median.")
@click.option("--budget-ms", type=click.FloatRange(1, 60_000), help="Measure a declared budget instead.")
@click.option("--curve", is_flag=True, help="Measure 1,000 to 1,000,000 bundles instead.")
@click.option("--without-feast", is_flag=True, help="Don't compare with Feast, which takes an environment of its own.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="A JSON file that "
              "gets the figures too; those of other kinds in it stay.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON object as the last line.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path(".ctxpipe/bench-lookup"))
def command(
    seconds: float,
    rows: int | None,
    keys: int | None,
    rounds: int,
    budget_ms: float | None,
    curve: bool,
    without_feast: bool,
    report: Path | None,
    as_json: bool,
    directory: Path,
) -> None:
    """`ctxpipe serve` on flights in a Redis of its own, which 500 updates a second change. Requests are for keys of
    which few are wanted often (Zipf), and due at random times; they are sent then, answered or not, and their time
    counts from when they were due.

    \b
    http               ctxpipe serve as it is by default
    http_without_near  the same without its near cache
    bare               a bare HTTP server that does one GET by redis-py
    bare_on_our_wire   the same by our own connection to Redis
    feast              Feast's Python feature server, as many values

    In process: our direct lookups, redis-py's GET and our connection's, 64 in flight, and single lookups that the near
    cache answers. Each server has a core for itself; load, Redis and updates have the others.

    --budget-ms: every request declares this budget, at 80% of the capacity, at 150%, and at 80% with Redis frozen for
    5 s. --curve: times and memory for 1,000 to 1,000,000 bundles.
    """
    import asyncio
    import json
    import shutil

    if budget_ms is not None and curve:
        raise click.UsageError("--budget-ms and --curve measure different things; give one of them")
    wanted = rows or (CURVE_ROWS if curve else ROWS)
    if keys is not None and keys > wanted:
        raise click.UsageError(f"--keys {keys:,} are more than there are bundles: --rows {wanted:,}")
    options = {"keys": keys, "seconds": seconds, "warm_up_s": min(WARM_UP_S, seconds), "rounds": rounds}
    try:
        figures = asyncio.run(_measure(directory, wanted, options, budget_ms, curve, without_feast))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    text = json.dumps(figures)
    if report is not None:
        kind = "curve" if curve else "compared" if budget_ms is None else "budget"
        before = json.loads(report.read_text()) if report.exists() else {}
        report.write_text(json.dumps({**before, kind: figures}, indent=2) + "\n")
    if as_json:
        click.echo(text)
    else:
        from pipeline.commands._bench_lookup_show import show

        show(figures)


async def _measure(
    directory: Path, rows: int, options: dict[str, Any], budget_ms: float | None, curve: bool, without_feast: bool
) -> dict[str, Any]:
    """Loads block: nothing else goes on in this process."""
    from pipeline.commands._bench_lookup_world import World

    tell: Callable[[str], None] = lambda line: click.echo(line, err=True)  # noqa: E731
    world = World(directory, tell)
    world.up()
    try:
        if curve:
            from pipeline.commands._bench_lookup_curve import Curve

            found = await Curve(world, rows, options["keys"], options["seconds"], options["warm_up_s"]).run()
        else:
            found = await _on_full_redis(world, rows, options, budget_ms, without_feast)
    finally:
        world.down()
    about = {name: options[name] for name in ("seconds", "warm_up_s", "rounds")}
    return {**found, "rows": rows, "keys": options["keys"] or rows, **about, "environment": _environment(world)}


async def _on_full_redis(
    world: World, rows: int, options: dict[str, Any], budget_ms: float | None, without_feast: bool
) -> dict[str, Any]:
    from deploy.demo.lookup_data import UPDATED_PER_S
    from pipeline.commands._bench_lookup_budget import Budget
    from pipeline.commands._bench_lookup_compare import Compared
    from pipeline.commands._bench_lookup_world import open_filling

    filling = await open_filling(world)
    try:
        loaded_s = await world.fill(filling, rows, bare=budget_ms is None)
        world.tell(f"{rows:,} bundles in {loaded_s:.1f} s")
    finally:
        await filling.stores.close()
    keys, seconds, warm_up_s = options["keys"] or rows, options["seconds"], options["warm_up_s"]
    feast, missing = None, "not asked for"
    if budget_ms is None and not without_feast:
        feast, missing = await _feast(world, keys)
    with world.updating(rows, UPDATED_PER_S) as told:
        if budget_ms is not None:
            found = Budget(world, keys, seconds, warm_up_s, budget_ms).run()
        else:
            found = Compared(world, keys, seconds, warm_up_s, options["rounds"]).run(feast)
            found["feast"] = missing if feast is None else feast.told
    return {**found, "updates": told}


async def _feast(world: World, keys: int) -> tuple[Feast | None, str]:
    """Feast with the most wanted bundles, or why there is none."""
    from deploy.demo.lookup_keys import hot_ids
    from pipeline.commands import _bench_lookup_feast as feast
    from pipeline.core.errors import EnvironmentProblem

    hottest = [str(key) for key in hot_ids(keys)[: feast.KEYS]]
    try:
        bundles = await world.bundles(hottest)
        return feast.open_feast(world, keys, [bundle for bundle in bundles if bundle is not None]), ""
    except EnvironmentProblem as problem:
        world.tell(f"no Feast to compare with: {problem}")
        return None, str(problem)


def _environment(world: World) -> dict[str, Any]:
    import os
    import platform
    import re
    import time
    from importlib import metadata

    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    began_s = time.perf_counter()
    number = 0
    while number < ADDITIONS:
        number += 1
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "cores": {name: getattr(world.cores, name) for name in ("server", "load", "redis", "updates")},
        "ten_million_additions_s": round(time.perf_counter() - began_s, 3),
        "python": platform.python_version(),
        "redis_server": world.redis_version,
        **{name: metadata.version(name) for name in ("redis", "hiredis", "uvicorn", "httptools", "uvloop")},
    }
