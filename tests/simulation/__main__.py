"""`./run simulate`: any number of seeded worlds, or one again with what differs."""

from __future__ import annotations

import sys
import time

import click
from rich.progress import track

from tests.simulation.run import Simulation


@click.command()
@click.option("--seed", type=int, default=None, help="Run this one world again.")
@click.option("--first", type=int, default=0, show_default=True)
@click.option("--count", type=click.IntRange(1), default=500, show_default=True)
@click.option("--compose", type=click.Choice(["copy", "link"]), default=None, help="Force one composition.")
@click.option("--wide", is_flag=True, help="Wide-column tables, written cell by cell, instead of rows.")
def main(seed: int | None, first: int, count: int, compose: str | None, wide: bool) -> None:
    """Runs the production stages through crashes, zombies, failing stores and a Redis that comes back older."""
    seeds = [seed] if seed is not None else list(range(first, first + count))
    started, failed = time.monotonic(), 0
    for number in track(seeds, "worlds", disable=not sys.stdout.isatty() or len(seeds) == 1):
        wrong = Simulation(number, compose, wide).run()
        if wrong:
            failed += 1
            again = (f" --compose {compose}" if compose else "") + (" --wide" if wide else "")
            click.echo(f"seed {number} differs (./run simulate --seed {number}{again}):")
            for line in wrong[:10]:
                click.echo(f"  {line}")
    click.echo(f"{len(seeds)} worlds, {failed} wrong, {time.monotonic() - started:.1f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
