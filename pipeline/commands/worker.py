"""`ctxpipe worker`: the processes that turn changes from Kafka into bundles in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.streams.supervisor import Place
    from schemas.context import ContextSpec


@click.command()
@click.argument("contexts", nargs=-1, metavar="[CONTEXT]...")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 256), help="Per context.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve /metrics on 127.0.0.1: the first process at this port, each other one port on, then four for the "
    "spaces of each context that embeds; 0 takes free ones.",
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 65535),
    help="Serve /livez, /readyz and /startupz of all processes together, and as one page the /metrics of those that "
    "have a --metrics-port; 0 takes a free port.",
)
@click.option(
    "--role",
    type=click.Choice(["all", "bundles", "embedding"]),
    default="all",
    show_default=True,
    help="Only build bundles, or only embed their texts, as on machines of their own.",
)
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(
    contexts: tuple[str, ...],
    processes: int,
    metrics_port: int | None,
    health_port: int | None,
    role: str,
    config_path: str,
) -> None:
    """Run workers for each CONTEXT, by default for all of the configuration.

    A worker that ends is started again. Stop with Ctrl-C or SIGTERM: running batches finish, offsets are committed,
    within `running: drain_s`.
    Kafka, Redis and the topics may come up later than the workers. Sections with `compose: auto` are measured first,
    where their sources answer; what the first worker of a version decides is kept.

    A context with an `embedding` section gets a process for each of its spaces beside them. A changed section starts a
    new space, which takes over when it is complete and its gate holds; `ctxpipe space` shows them.
    """
    import asyncio
    from pathlib import Path

    from pipeline.commands._composition import propose
    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError
    from pipeline.core.logging import configure
    from pipeline.plan import compile_plan
    from pipeline.streams.supervisor import places
    from pipeline.streams.token_counting import token_counting

    config = load(config_path)
    known = load_contexts(config)
    unknown = [name for name in contexts if name not in known]
    if unknown:
        raise ConfigError(
            [f"no context {name!r}; the configuration has: {', '.join(sorted(known))}" for name in unknown]
        )
    chosen = list(contexts) or sorted(known)
    if not chosen:
        raise ConfigError([f"{config_path} names no contexts: add some under 'contexts'"])
    for name in chosen:
        compile_plan(known[name], mask_secret=config.mask_key)
        token_counting(known[name], config.embedding)
    configure(config.running.level)
    proposals = asyncio.run(propose(config, [known[name] for name in chosen])) if role != "embedding" else {}
    path = str(Path(config_path).resolve())
    wanted = places(path, chosen, processes, proposals, metrics_port) if role != "embedding" else []
    if role != "bundles":
        wanted += _keepers(path, [known[name] for name in chosen], metrics_port, len(wanted))
    if not wanted:
        raise ConfigError([f"none of {', '.join(chosen)} embeds anything: give one an `embedding` section"])
    click.get_current_context().exit(_supervise(config, wanted, health_port))


def _supervise(config: Config, wanted: Sequence[Place], health_port: int | None) -> int:
    """Until a signal, or until one of them ended for good; the exit code. SIGHUP goes to all of them."""
    import signal
    import threading

    from pipeline.commands._worker_pages import pages_of
    from pipeline.core.health import Health, serve
    from pipeline.core.reloading import Reloading, hears_hangups
    from pipeline.streams.supervisor import MARGIN_S, Supervisor

    health, stop, hangup = Health("worker"), threading.Event(), threading.Event()
    supervisor = Supervisor(wanted, stop_timeout_s=config.running.drain_s + 2 * MARGIN_S)
    supervisor.watch(health)
    if health_port is not None:
        host = config.running.metrics_host
        port = serve(health_port, health, host, pages_of(lambda: list(supervisor.places)))
        click.echo(f"health at http://{host}:{port}/readyz", err=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if hears_hangups():
        signal.signal(signal.SIGHUP, lambda *_: hangup.set())
    health.started()
    reload = Reloading(config)

    def between() -> None:
        if hangup.is_set():
            hangup.clear()
            reload()
            supervisor.tell_all(signal.SIGHUP)

    return supervisor.run(stop, between, health.stopping)


def _keepers(config_path: str, specs: Sequence[ContextSpec], metrics_port: int | None, ports_taken: int) -> list[Place]:
    """What keeps the spaces of each context that embeds."""
    from pipeline.commands._embedding_keeper import METRICS_PORTS, place_of

    found: list[Place] = []
    for spec in specs:
        if spec.embedding is not None:
            first = metrics_port + ports_taken + METRICS_PORTS * len(found) if metrics_port else metrics_port
            found.append(place_of(config_path, spec.context, first))
    return found
