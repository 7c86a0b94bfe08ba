"""`ctxpipe connector`: which connectors are installed and what they can do; a package to begin a new one with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from connectors.registry import Installed


@click.group()
def command() -> None:
    """Show the installed connectors, or begin a new one."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_command(as_json: bool) -> None:
    """Show every connector that `sources.<name>.connector` may name, with its abilities.

    Exit code 1: one of them can't be used; the line says why.
    """
    import json

    from connectors.registry import installed

    entries = installed()
    if as_json:
        click.echo(json.dumps({"connectors": [_as_json(entry) for entry in entries]}))
    elif click.get_text_stream("stdout").isatty():
        _table(entries)
    else:
        for entry in entries:
            click.echo(f"{entry.name}: {_summary(entry)} ({entry.origin})\n  abilities: {_abilities(entry)}")
    if any(entry.problem for entry in entries):
        click.get_current_context().exit(1)


@command.command("new")
@click.argument("name")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Where the package goes; default: a folder called like NAME."
)
def new_command(name: str, directory: Path | None) -> None:
    """Write a package for a connector NAME that runs: source, configuration, tests, README, entry point."""
    from connectors.scaffold import write_package

    directory = directory if directory is not None else Path(name)
    for path in write_package(name, directory):
        click.echo(directory / path)
    click.echo(f"It runs as it is: cd {directory} && pytest", err=True)


def _summary(entry: Installed) -> str:
    return entry.plugin.summary if entry.plugin is not None else f"can't be used: {entry.problem}"


def _abilities(entry: Installed) -> str:
    return ", ".join(entry.plugin.abilities() if entry.plugin is not None else []) or "none"


def _as_json(entry: Installed) -> dict[str, Any]:
    plugin = entry.plugin
    return {
        "name": entry.name,
        "summary": plugin.summary if plugin is not None else "",
        "abilities": plugin.abilities() if plugin is not None else [],
        "runs": plugin is not None and plugin.source is not None,
        "origin": entry.origin,
        "problem": entry.problem,
    }


def _table(entries: tuple[Installed, ...]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("connector", "what it brings to Kafka", "abilities", "from")
    for entry in entries:
        summary = escape(_summary(entry))
        shown = f"[red]{summary}[/]" if entry.problem else summary
        table.add_row(entry.name, shown, _abilities(entry), escape(entry.origin))
    Console().print(table)
