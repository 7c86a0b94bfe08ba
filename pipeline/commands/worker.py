"""`ctxpipe worker`: the processes that turn changes from Kafka into bundles in Redis."""

from __future__ import annotations

import click


@click.command()
@click.argument("contexts", nargs=-1, metavar="[CONTEXT]...")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 256), help="Per context.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve /metrics on 127.0.0.1: the first process at this port, each other one port on; 0 takes free ones.",
)
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(contexts: tuple[str, ...], processes: int, metrics_port: int | None, config_path: str) -> None:
    """Run workers for each CONTEXT, by default for all of the configuration.

    A worker that ends is started again. Stop with Ctrl-C or SIGTERM: running batches finish, offsets are committed.
    Kafka, Redis and the topics may come up later than the workers. Sections with `compose: auto` are measured first,
    where their sources answer; what the first worker of a version decides is kept.
    """
    import asyncio
    import signal
    import threading
    from pathlib import Path

    from pipeline.commands._composition import propose
    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError
    from pipeline.core.logging import configure
    from pipeline.plan import compile_plan
    from pipeline.streams.supervisor import Supervisor, places

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
    configure()
    proposals = asyncio.run(propose(config, [known[name] for name in chosen]))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    wanted = places(str(Path(config_path).resolve()), chosen, processes, proposals, metrics_port)
    code = Supervisor(wanted).run(stop)
    click.get_current_context().exit(code)
