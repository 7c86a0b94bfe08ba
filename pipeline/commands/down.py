"""`ctxpipe down`: ends what `ctxpipe up` started."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pipeline.commands._stack import say, stack_options


@click.command("down")
@stack_options
def command(directory: Path | None, as_json: bool) -> None:
    """End the servers that `up` started, and nothing else. Data and logs stay (`up --fresh` empties them)."""
    from deploy.local.stack import Stack

    ended = Stack(directory).down(say)
    if as_json:
        click.echo(json.dumps({"ended": ended}))
    else:
        click.echo(f"Ended: {', '.join(ended)}" if ended else "Nothing of the local stack is running.")
