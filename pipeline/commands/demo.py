"""`ctxpipe demo`: real flights become context bundles, from nothing to verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option(
    "--rows", type=click.IntRange(1_000, 336_776), default=336_776, show_default=True, help="Flights to load."
)
@click.option("--live", type=click.IntRange(1, 20_000), default=1_000, show_default=True, help="Departures to replay.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line; the story on standard error.")
@click.option("--keep", is_flag=True, help="Leave servers and roles running, and say how to go on.")
@click.option("--stop", is_flag=True, help="End what an earlier --keep left running, and remove its data.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), default=Path(".ctxpipe/demo"), show_default=True)
def command(rows: int, live: int, as_json: bool, keep: bool, stop: bool, directory: Path) -> None:
    """Load real flights into Postgres, backfill two contexts, replay departures live, look bundles up and verify all.

    Exit code 0: every bundle equals what SQL says; 1: some differ; 3: a server is missing or failed.
    """
    from deploy.demo.keep import end_kept, refuse_if_kept, remember
    from deploy.demo.run import Demo, DemoSettings

    if stop:
        end_kept(directory)
        return
    refuse_if_kept(directory)
    demo = Demo(DemoSettings(directory, rows, min(live, rows), keep, as_json), _verify)
    try:
        result = demo.run()
    finally:
        if keep:
            remember(directory, [role.pid for role in demo.harness.roles])
    if result["mismatches"]:
        click.get_current_context().exit(1)


async def _verify(config_path: Path, context: str, progress: Callable[[str, int], None]) -> Any:
    from pipeline.commands._contexts import spec_named
    from pipeline.commands.verify import verify_context
    from pipeline.core.config import load, load_contexts
    from pipeline.ops.verify import Settings

    config = load(str(config_path))
    spec = spec_named(load_contexts(config), context)
    return await verify_context(config, spec, Settings(wait_s=120.0), progress)
