"""`ctxpipe demo`: real flights become context bundles, from nothing to verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--rows", type=click.IntRange(1_000, 336_776), help="Flights to load; default: all, for --swap 20,000.")
@click.option("--live", type=click.IntRange(1, 20_000), default=1_000, show_default=True, help="Departures to replay.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line; the story on standard error.")
@click.option("--swap", is_flag=True, help="Instead: swap the embedding space of searches, under load.")
@click.option("--clients", type=click.IntRange(1, 1_000), default=200, show_default=True, help="Of --swap: at once.")
@click.option("--keep", is_flag=True, help="Leave servers and roles running, and say how to go on.")
@click.option("--stop", is_flag=True, help="End what an earlier --keep left running, and remove its data.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path(".ctxpipe/demo"), show_default=True)
def command(
    rows: int | None, live: int, swap: bool, clients: int, as_json: bool, keep: bool, stop: bool, directory: Path
) -> None:
    """Load real flights into Postgres, backfill three contexts, replay departures live, look bundles up, search them by
    meaning and verify all.

    With --swap: one changed file starts a better embedding space beside the serving one, which takes over, is taken
    back, and a worse one is refused, while clients look up and search without an error or a mixed answer.

    Exit code 0: every bundle equals what SQL says, and the swap went as it should; 1: not so; 3: a server is missing or
    failed.
    """
    from deploy.demo.keep import end_kept, refuse_if_kept, remember
    from deploy.demo.run import ALL_FLIGHTS, Demo, DemoSettings
    from deploy.demo.swap import SWAP_FLIGHTS, SwapDemo, SwapSettings

    if stop:
        end_kept(directory)
        return
    refuse_if_kept(directory)
    demo: Demo | SwapDemo
    if swap:
        demo = SwapDemo(SwapSettings(directory, rows or SWAP_FLIGHTS, clients, keep, as_json))
    else:
        rows = rows or ALL_FLIGHTS
        demo = Demo(DemoSettings(directory, rows, min(live, rows), keep, as_json), _verify)
    try:
        demo.run()
    finally:
        if keep:
            remember(directory, [role.pid for role in demo.harness.roles])
    if not demo.as_it_should_be:
        click.get_current_context().exit(1)


async def _verify(config_path: Path, context: str, progress: Callable[[str, int], None]) -> Any:
    from pipeline.commands._contexts import spec_named
    from pipeline.commands.verify import verify_context
    from pipeline.core.config import load, load_contexts
    from pipeline.ops.verify import Settings

    config = load(str(config_path))
    spec = spec_named(load_contexts(config), context)
    return await verify_context(config, spec, Settings(wait_s=120.0), progress)
