"""`ctxpipe lag --watch`: a live view with sparklines at a terminal, a line per look elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import msgspec

from pipeline.commands._lag_asking import ask, looking
from pipeline.commands._lag_show import Wishes, closing, table, views
from pipeline.core.errors import Retryable
from pipeline.ops.lag.model import Report
from pipeline.ops.lag.words import duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.commands.lag import Options
    from pipeline.core.config import Config
    from schemas.context import ContextSpec

PARTS_EVERY = 5
"""Looks at Kafka for each look at sources and canaries, where this command looks by itself."""


async def watch_lag(config: Config, contexts: Mapping[str, ContextSpec], options: Options, every_s: float) -> None:
    """Until Ctrl-C. What does not answer is shown, and asked again."""
    reports = _asked(config, options, every_s) if options.url or config.collector.url else None
    if reports is None:
        reports = _looked(config, contexts, every_s)
    if options.as_json or not click.get_text_stream("stdout").isatty():
        await _lines(reports, options)
        return
    from rich.live import Live
    from rich.text import Text

    wishes = Wishes(stages=True, partitions=options.partitions, sparklines=True)
    with Live(Text("looking …"), auto_refresh=False, screen=True) as live:
        async for report in reports:
            live.update(_drawn(report, options, wishes), refresh=True)


async def _lines(reports: AsyncIterator[Report | str], options: Options) -> None:
    """For programs and files."""
    async for report in reports:
        if isinstance(report, str):
            click.echo(f"ctxpipe: {report}", err=True)
        elif options.as_json:
            click.echo(msgspec.json.encode(_chosen(report, options)).decode())
        else:
            at = datetime.fromtimestamp(report.at, UTC).strftime("%H:%M:%S")
            for group in _chosen(report, options).groups:
                lag = f"{group.lag_records} records, {duration(group.lag_s)} behind"
                click.echo(f"{at} {group.group} {group.status} {lag} {group.trend}".rstrip())


def _drawn(report: Report | str, options: Options, wishes: Wishes) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    now = datetime.now(UTC).strftime("%H:%M:%S")
    if isinstance(report, str):
        return Text(f"{now}  {report}", style="red")
    shown = _chosen(report, options)
    tables = [table(view) for view in views(shown, wishes)]
    head = Text(f"ctxpipe lag  {now}  seen {duration(max(0.0, time.time() - report.at))} ago", style="bold")
    return Group(head, *tables, *(Text(line, style="dim") for line in closing(shown)))


def _chosen(report: Report, options: Options) -> Report:
    from pipeline.commands.lag import chosen

    return chosen(report, options.groups)


async def _asked(config: Config, options: Options, every_s: float) -> AsyncIterator[Report | str]:
    url = options.url or config.collector.url or ""
    while True:
        try:
            yield await ask(url, config.collector.timeout_s)
        except Retryable as error:
            yield str(error)
        await asyncio.sleep(every_s)


async def _looked(config: Config, contexts: Mapping[str, ContextSpec], every_s: float) -> AsyncIterator[Report | str]:
    looks = 0
    async with looking(config, contexts) as collector:
        while True:
            yield await collector.collect(only_kafka=looks % PARTS_EVERY != 0)
            looks += 1
            await asyncio.sleep(every_s)
