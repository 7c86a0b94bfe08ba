"""`ctxpipe collector`: watches lag, sources, stages and dead letters on a clock of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.core.config import Config
    from pipeline.core.health import Health
    from pipeline.ops.lag.collector import Collector
    from schemas.context import ContextSpec

YOUNG_MAX = 50_000
SILENT_INTERVALS = 5
"""No collection for so many intervals, and the process is not alive."""


@click.command()
@click.option("--host", help="Address to listen on; default from collector.host in the configuration.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; default from collector.port; 0 takes a free one.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(host: str | None, port: int | None, config_path: str) -> None:
    """Watch how far behind everything is, and tell it at /metrics, at /lag as JSON, and to `ctxpipe lag`.

    Consumer groups, ours and those of others, are sampled every collector.interval_s, and so are the sources' servers,
    the metrics pages under collector.scrape, canaries and dead letters. Rights to describe groups and topics and to
    read topics and sources are enough; no group is joined, and asking for /metrics asks no other server. One collector
    is enough for a cluster. Runs until SIGTERM or Ctrl-C.
    """
    import asyncio

    from pipeline.core.config import load, load_contexts

    config = load(config_path)
    asyncio.run(_run(config, load_contexts(config), host or config.collector.host, port))


async def _run(config: Config, contexts: Mapping[str, ContextSpec], host: str, port: int | None) -> None:
    import asyncio
    import signal

    from pipeline.commands._lag_collecting import open_collector
    from pipeline.core import logging as logs
    from pipeline.core.collector import settle
    from pipeline.core.health import Health, serve
    from pipeline.core.reloading import Reloading, on_hangup
    from pipeline.ops.lag.publishing import LagMetrics

    logs.configure(config.running.level)
    stop = asyncio.Event()
    section = config.collector
    async with open_collector(
        config, contexts, interval_s=section.interval_s, shown=LagMetrics(section.partitions)
    ) as collector:
        health = Health("collector")
        health.beats()
        _check(health, collector, section.interval_s)
        pages = {"/lag": lambda: (collector.encoded or b"{}", "application/json")}
        taken = serve(section.port if port is None else port, health, host, pages)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        click.echo(f"collector: /lag and /metrics at http://{host}:{taken}, every {section.interval_s:g} s", err=True)
        settle(YOUNG_MAX)
        with on_hangup(Reloading(config, _reloaded(collector))):
            await collector.run(stop)
        health.stopping()


def _reloaded(collector: Collector) -> Mapping[str, Callable[[Config], None]]:
    """What SIGHUP takes over."""

    def take(new: Config) -> None:
        collector.settle(new.collector.interval_s, new.collector.scrape)

    return {"collector.interval_s": take, "collector.scrape": take}


def _check(health: Health, collector: Collector, interval_s: float) -> None:
    """Started with the first collection, whatever it found; other servers that are away are a note."""
    import time

    began_s = time.monotonic()
    limit_s = max(60.0, SILENT_INTERVALS * interval_s)

    def collects() -> str:
        silent_s = time.monotonic() - (collector.finished_s or began_s)
        return f"no collection has ended for {silent_s:.0f} s" if silent_s > limit_s else ""

    def has_begun() -> str:
        return "" if collector.report is not None else "the first collection has not ended yet"

    def complete() -> str:
        report = collector.report
        parts = [] if report is None else [part for part in report.collector.parts if not part.up]
        return "; ".join(f"{part.part}: {part.problem}" for part in parts)

    health.check("collections", collects, "live")
    health.check("first collection", has_begun, "startup")
    health.check("parts", complete, "note")
    health.started()
