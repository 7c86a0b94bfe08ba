"""`ctxpipe serve`: the lookup service over HTTP."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.core.config import Config

BACKLOG = 2048


@click.command()
@click.option("--host", help="Address to listen on; default from serve.host in the configuration.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; default from serve.port; 0 takes a free one.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(host: str | None, port: int | None, config_path: str) -> None:
    """Answer lookups of all configured contexts over HTTP."""
    import asyncio

    from pipeline.core.config import load

    config = load(config_path)
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
    import asyncio

    import uvicorn

    from pipeline.commands._contexts import OpenContext, open_context
    from pipeline.core.clock import SystemClock
    from pipeline.core.config import load_contexts
    from pipeline.core.logging import configure
    from pipeline.lookup.http import make_app
    from pipeline.lookup.service import LookupService
    from pipeline.lookup.versions import VersionKeeper

    specs = load_contexts(config)
    configure()

    async def open_version(name: str, version: int) -> OpenContext:
        return await open_context(config, specs[name], version=version)

    opened: dict[str, OpenContext] = {}
    try:
        for name, spec in specs.items():
            opened[name] = await open_context(config, spec)
    except BaseException:
        for context in opened.values():
            await context.close()
        raise
    service = LookupService({name: context.served for name, context in opened.items()}, SystemClock())
    keeper = VersionKeeper(service, opened, open_version)
    host, port = listener.getsockname()[:2]
    names = ", ".join(f"{name} (version {context.spec.version})" for name, context in sorted(opened.items()))
    click.echo(f"serving {names or 'no context'} on http://{host}:{port}/v1/contexts", err=True)
    settings = uvicorn.Config(
        make_app(service), http="httptools", lifespan="off", log_level="warning", access_log=False, server_header=False
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(keeper.run())
            await uvicorn.Server(settings).serve(sockets=[listener])
            keeping.cancel()
    finally:
        await keeper.close()
