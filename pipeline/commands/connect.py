"""`ctxpipe connect`: runs the connectors of one or all sources until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from connectors.registry import Configured
    from connectors.runtime import Runtime
    from connectors.source import ShowProgress
    from pipeline.core.config import Config

PROGRESS_INTERVAL_S = 5.0
DELIVERY_SHARE = 0.5
"""Of the time to drain, for what has been read and is on its way to Kafka."""


@click.command()
@click.argument("source", required=False)
@click.option("--all", "every", is_flag=True, help="All sources of the configuration.")
@click.option("--snapshot", "table", metavar="TABLE", help="Ask the running connector to read TABLE again, and return.")
@click.option(
    "--reset", is_flag=True, help="Begin again: new slot, consumers forget all rows, everything is read anew."
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve /metrics, /livez, /readyz and /startupz; 0 takes a free port.",
)
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(
    source: str | None, every: bool, table: str | None, reset: bool, metrics_port: int | None, config_path: str
) -> None:
    """Bring the changes of SOURCE into Kafka until SIGTERM or Ctrl-C.

    The first start prepares what the connector needs in the source (slot and publication of Postgres) and reads all
    rows. Exit code 0: stopped as asked; 3: something has to
    be mended first, and the message says what.
    """
    import asyncio

    from pipeline.commands._sources import configured_sources
    from pipeline.core.config import load

    if bool(source) == every:
        raise click.UsageError("give one source, or --all")
    config = load(config_path)
    names = sorted(config.sources) if source is None else [source]
    parsed = _to_run(configured_sources(config, names), every)
    if table is not None:
        asyncio.run(_request_snapshot(parsed[0], table))
        click.echo(f"{table} will be read again by the running connector of {names[0]}")
        return
    asyncio.run(_run(config, parsed, reset, metrics_port))


def _to_run(sources: list[Configured], every: bool) -> list[Configured]:
    """Without those whose topics others fill. Raises ConfigError when that leaves nothing to run."""
    from pipeline.core.errors import ConfigError

    running = [one for one in sources if one.plugin.source is not None]
    idle = [one.name for one in sources if one.plugin.source is None]
    if idle and not running:
        raise ConfigError([f"source {', '.join(idle)}: nothing has to run, others (Debezium) fill its topics"])
    if every and idle:
        click.echo(f"nothing has to run for {', '.join(idle)}: others fill those topics", err=True)
    return running


async def _request_snapshot(configured: Configured, table: str) -> None:
    from connectors.source import Snapshotting
    from pipeline.core.errors import ConfigError
    from schemas.topics import table_topic

    name, topics = configured.name, configured.topics()
    source = configured.source()
    if not isinstance(source, Snapshotting):
        raise ConfigError([f"source {name}: connector {configured.plugin.name} can't read a table again while it runs"])
    if table_topic(name, table) not in topics:
        captured = ", ".join(topic.removeprefix(f"{name}.") for topic in topics)
        raise ConfigError([f"source {name} does not capture {table!r}; it captures {captured}"])
    try:
        await source.request_snapshot(table)
    finally:
        await source.close()


async def _run(config: Config, configs: list[Configured], reset: bool, metrics_port: int | None) -> None:
    """All sources at once; the first that ends for good ends the others, gracefully."""
    import asyncio
    import os
    import signal

    from connectors.assembly import attempts, store_reset
    from connectors.health import FirstReading, watch_source
    from connectors.reporting import report, report_source
    from connectors.runtime import Runtime, RuntimeSettings
    from connectors.watching import open_watches
    from pipeline.commands._observers import observers
    from pipeline.commands._sources import kafka_settings
    from pipeline.core import health, telemetry
    from pipeline.core import logging as logs
    from pipeline.core.clock import SystemClock
    from pipeline.core.reloading import Reloading, on_hangup
    from pipeline.streams.ending import end_late

    logs.configure(config.running.level)
    traces, kafka = telemetry.configure("connect", os.environ), kafka_settings(config)
    names = [one.name for one in configs]
    told = health.Health("connect")
    if metrics_port is not None:
        host = config.running.metrics_host
        click.echo(f"metrics at http://{host}:{health.serve(metrics_port, told, host)}/metrics", err=True)
    progress = FirstReading(_progress())
    settings = RuntimeSettings(patient_start=False, stop_timeout_s=config.running.drain_s * DELIVERY_SHARE)
    if reset:
        for one in configs:
            await store_reset(one, kafka)
    watched = observers(config, names, traces) if metrics_port is not None or traces is not None else {}
    runtimes = [Runtime(attempts(one, kafka, progress), settings, observer=watched.get(one.name)) for one in configs]

    def stop() -> None:
        told.stopping()
        end_late(config.running.drain_s)
        for runtime in runtimes:
            runtime.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    tasks = []
    for name, runtime in zip(names, runtimes, strict=True):
        watch_source(name, runtime, progress, told)
        with logs.log_fields(source=name):
            tasks.append(asyncio.create_task(runtime.run()))
    told.beats()
    told.started()
    click.echo(f"connecting {', '.join(names)} to Kafka at {kafka.bootstrap_servers}", err=True)
    pairs = zip(names, runtimes, strict=True)
    reports = [asyncio.create_task(report(name, runtime, SystemClock())) for name, runtime in pairs]
    watches = open_watches(configs, kafka) if metrics_port is not None else {}
    reports += [asyncio.create_task(report_source(name, watch, SystemClock())) for name, watch in watches.items()]
    try:
        with on_hangup(Reloading(config)):
            await _until_all_ended(tasks, runtimes)
    finally:
        for task in reports:
            task.cancel()
        await asyncio.to_thread(telemetry.flush)


async def _until_all_ended(tasks: list[Any], runtimes: list[Runtime]) -> None:
    import asyncio

    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for runtime in runtimes:
        runtime.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _progress() -> ShowProgress:
    """A bar per table on a terminal, a log line now and then elsewhere."""
    import sys

    return _bars() if sys.stderr.isatty() else _lines()


def _bars() -> ShowProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    tasks: dict[str, Any] = {}

    def show(table: str, rows: int, estimate: int) -> None:
        if not tasks:
            bars.start()
        if table not in tasks:
            tasks[table] = bars.add_task(f"reading {table}", total=estimate)
        bars.update(tasks[table], completed=rows, total=max(estimate, 1))
        if all(task.finished for task in bars.tasks):
            bars.stop()
            tasks.clear()

    return show


def _lines() -> ShowProgress:
    import logging
    import time

    log = logging.getLogger("ctxpipe.snapshot")
    shown: dict[str, float] = {}

    def show(table: str, rows: int, estimate: int) -> None:
        now = time.monotonic()
        if rows == estimate or now - shown.get(table, 0.0) >= PROGRESS_INTERVAL_S:
            shown[table] = now
            log.info("snapshot of %s: %d of about %d rows", table, rows, estimate)

    return show
