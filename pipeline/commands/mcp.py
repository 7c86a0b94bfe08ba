"""`ctxpipe mcp`: bundles for models that ask by the Model Context Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.commands.serve import listen

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from pipeline.core.config import Config
    from schemas.context import ContextSpec

HOST = "127.0.0.1"


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Streamable HTTP at 127.0.0.1:PORT/mcp, not stdio.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(port: int | None, config_path: str) -> None:
    """Offer all contexts to a model as tools and resources, over standard input and output.

    Whoever can start it can read every bundle; with --port, whoever reaches the port on this machine, or brings a
    credential where the configuration has a section access.
    """
    import asyncio

    from pipeline.core.config import load
    from pipeline.core.errors import EnvironmentProblem
    from pipeline.core.logging import configure

    config = load(config_path)
    try:
        import mcp  # noqa: F401 - to tell that it is missing before anything is opened
    except ImportError as error:
        raise EnvironmentProblem("this needs one more package: pip install 'ctxpipe[mcp]'") from error
    configure(config.running.level)
    if port is None:
        asyncio.run(_over_standard_input(config))
        return
    with listen(HOST, port) as listener:
        asyncio.run(_over_http(config, listener))


async def _over_standard_input(config: Config) -> None:
    from importlib.metadata import version

    from pipeline.commands._services import open_services
    from pipeline.lookup.mcp_server import make_server

    async with open_services(config) as services:
        counters = _counters(config, services.specs)
        server = make_server(services.lookups, services.searches, version("ctxpipe"), counters=counters)
        await server.run_stdio_async()


async def _over_http(config: Config, listener: socket.socket) -> None:
    """With the credentials, limits and TLS of `serve`."""
    from importlib.metadata import version

    import uvicorn

    from pipeline.commands._access import open_guard, server_options
    from pipeline.commands._draining import run_server
    from pipeline.commands._services import open_services
    from pipeline.core.health import Health
    from pipeline.core.reloading import Reloading, on_hangup
    from pipeline.lookup.http_health import ProbedApplication, Probes
    from pipeline.lookup.mcp_access import GuardedTransport
    from pipeline.lookup.mcp_server import make_server

    guard, options = open_guard(config), server_options(config)
    async with open_services(config) as services:
        counters = _counters(config, services.specs)
        server = make_server(services.lookups, services.searches, version("ctxpipe"), guard=guard, counters=counters)
        # Every message brings its own credential; a session would tie answers to whoever began it.
        transport = GuardedTransport(server.streamable_http_app(stateless_http=True, host=HOST), guard)
        health = Health("mcp")
        health.check("indexes", services.caught_up)
        application = ProbedApplication(transport, Probes(health, services.lookups, guard.active))
        scheme = "http" if config.serve.tls is None else "https"
        click.echo(f"{scheme}://{HOST}:{listener.getsockname()[1]}/mcp", err=True)
        settings = uvicorn.Config(application, log_level="warning", access_log=False, server_header=False, **options)
        with on_hangup(Reloading(config)):
            await run_server(settings, listener, health, config.running)


def _counters(config: Config, specs: Sequence[ContextSpec]) -> dict[str, Callable[[str], int]]:
    """What counts the tokens of each context's texts, where the spec names a tokenizer."""
    from pipeline.streams.token_counting import token_counting

    found = {spec.context: token_counting(spec, config.embedding).count for spec in specs}
    return {context: count for context, count in found.items() if count is not None}
