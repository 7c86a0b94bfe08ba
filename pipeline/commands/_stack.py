"""What the commands up, down and status share: their options and the table of servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from deploy.local.stack import ServerStatus

Command = TypeVar("Command", bound=Callable[..., Any])


def stack_options(function: Command) -> Command:
    """--dir and --json."""
    where = click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where data, logs and state lie (default: .ctxpipe/local of the working directory).",
    )
    return where(click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function))


def say(line: str) -> None:
    """Progress goes to stderr, so that stdout stays readable by programs."""
    click.echo(line, err=True)


def show_servers(servers: Sequence[ServerStatus], *, as_json: bool) -> None:
    """Print the servers as a table for a person or as JSON for a program."""
    if as_json:
        click.echo(json.dumps({"servers": {server.name: server.as_dict() for server in servers}}))
        return
    rows = [("SERVER", "STATE", "ADDRESS", "PID", "LOG")]
    rows += [(server.name, server.state, server.address, str(server.pid or "-"), server.log) for server in servers]
    if not click.get_text_stream("stdout").isatty():
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    colours = {"up": "green", "silent": "yellow", "down": "red"}
    table = Table(*[title.capitalize() for title in rows[0]])
    for name, state, *rest in rows[1:]:
        table.add_row(name, f"[{colours[state]}]{state}[/]", *rest, style=None)
    Console().print(table)
