"""`ctxpipe status`: what of the local stack runs, and where."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._stack import say, show_servers, stack_options


@click.command("status")
@stack_options
@click.pass_context
def command(ctx: click.Context, directory: Path | None, as_json: bool) -> None:
    """Show each server's state, address, process and log. Exit code 1 when one of them does not answer."""
    from deploy.local.stack import Stack

    servers = Stack(directory).status()
    if not servers:
        say("No local stack was started here. Start one with: ctxpipe up")
    if servers or as_json:
        show_servers(servers, as_json=as_json)
    if not servers or any(server.state != "up" for server in servers):
        ctx.exit(1)
