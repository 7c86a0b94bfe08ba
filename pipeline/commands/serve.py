"""`ctxpipe serve`: the lookup service over HTTP."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.core.config import Config

BACKLOG = 2048
SWITCH_S = 0.0005
"""So long a thread that keeps last known bundles, or an index, may hold up lookups; Python's own 5 ms are a budget."""


@click.command()
@click.option("--host", help="Address to listen on; default from serve.host in the configuration.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; default from serve.port; 0 takes a free one.")
@click.option("--unprotected", is_flag=True, help="Let other machines read everything, without an access section.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(host: str | None, port: int | None, unprotected: bool, config_path: str) -> None:
    """Answer lookups of all configured contexts over HTTP."""
    import asyncio

    from pipeline.commands._access import refuse_unprotected
    from pipeline.core.config import load, load_contexts

    config = load(config_path)
    load_contexts(config)  # mistakes of files are told before anything of the machine is
    refuse_unprotected(config, host or config.serve.host, unprotected)
    listener = listen(host or config.serve.host, config.serve.port if port is None else port)
    with listener:
        try:
            import uvloop
        except ImportError:
            asyncio.run(_serve(config, listener))
        else:
            uvloop.run(_serve(config, listener))


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises EnvironmentProblem when the address is taken or is not ours."""
    from pipeline.core.errors import EnvironmentProblem

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise EnvironmentProblem(
            f"can't listen on {host} port {port}: {error.strerror or error}. Give another with --host or --port, or "
            "end the process that holds it."
        ) from error


async def _serve(config: Config, listener: socket.socket) -> None:
    import os
    from ipaddress import ip_address

    import uvicorn

    from pipeline.commands._access import open_guard, server_options
    from pipeline.commands._draining import run_server
    from pipeline.commands._services import open_services
    from pipeline.core import telemetry
    from pipeline.core.collector import collecting_often
    from pipeline.core.health import Health
    from pipeline.core.logging import configure
    from pipeline.core.reloading import Reloading, on_hangup
    from pipeline.lookup.host_names import OwnNamesOnly
    from pipeline.lookup.http import make_app

    guard, options, health = open_guard(config), server_options(config), Health("serve")
    configure(config.running.level)
    telemetry.configure("serve", os.environ)
    async with open_services(config) as services:
        host, port = listener.getsockname()[:2]
        scheme = "http" if config.serve.tls is None else "https"
        names = ", ".join(f"{spec.context} (version {spec.version})" for spec in services.specs)
        place = f"{scheme}://{host}:{port}"
        click.echo(f"serving {names or 'no context'} on {place}/v1/contexts, a page for people on {place}/", err=True)
        health.check("indexes", services.caught_up)
        app = make_app(services.lookups, services.searches, guard, services.history, services.admission, health)
        if not guard.active and ip_address(host).is_loopback:
            app = OwnNamesOnly(app)
        settings = uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            **options,
        )
        sys.setswitchinterval(SWITCH_S)
        with on_hangup(Reloading(config)), collecting_often():
            await run_server(settings, listener, health, config.running)
    telemetry.flush()
