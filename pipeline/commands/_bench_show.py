"""How a benchmark tells what it does and what it found: bars and a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

Tick = Callable[[int], None]
"""Called with how much has been done."""


@contextmanager
def step(title: str, total: int) -> Iterator[Tick]:
    """One step of a measurement, on stderr, so that stdout stays readable by programs."""
    began = time.monotonic()
    if sys.stderr.isatty():
        with _bar(title, total) as tick:
            yield tick
    else:
        yield lambda done: None
        click.echo(f"{title}: {total:,} in {time.monotonic() - began:.1f} s", err=True)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total)

        def tick(done: int) -> None:
            bars.update(task, completed=done)

        yield tick


def show_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool) -> None:
    """The first column to the left, figures to the right. `err`: on stderr, beside JSON on stdout."""
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for number, title in enumerate(titles):
            table.add_column(title, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        Console(file=stream).print(table)
        return
    everything = [titles, *rows]
    widths = [max(len(row[column]) for row in everything) for column in range(len(titles))]
    for row in everything:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join([row[0].ljust(widths[0]), *cells]).rstrip(), err=err)
