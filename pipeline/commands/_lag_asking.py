"""Where `ctxpipe lag` gets a report: from a running collector, or by looking at Kafka itself for some seconds."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING

import click
import msgspec

from pipeline.commands._lag_collecting import open_collector, refused
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.ops.lag.model import OK, WARN, GroupLag, Report

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.ops.lag.collector import Collector
    from schemas.context import ContextSpec

LOOK_EVERY_S = 1.0
LOOKS_MIN = 4
"""Fewer tell no trend."""
ANSWER_BYTES_MAX = 256 * 1024 * 1024
OLD_INTERVALS = 3


async def ask(url: str, timeout_s: float) -> Report:
    """The last report of a running collector. Raises Retryable when it does not answer."""
    return await asyncio.to_thread(_ask, url, timeout_s)


def _ask(url: str, timeout_s: float) -> Report:
    address = f"{url.rstrip('/')}/lag"
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as answer:
            body = answer.read(ANSWER_BYTES_MAX)
    except urllib.error.HTTPError as error:
        raise Retryable(f"{address} answers {error.code}; is a collector there?") from error
    except (OSError, HTTPException, ValueError) as error:
        raise Retryable(f"no collector answers at {address} ({getattr(error, 'reason', None) or error})") from error
    if body.strip() == b"{}":
        raise Retryable(f"the collector at {url} has not ended its first collection yet; ask again in a moment")
    try:
        return msgspec.json.decode(body, type=Report)
    except msgspec.MsgspecError as error:
        raise Retryable(f"{address} gives no report of a collector of this version: {error}") from error


@asynccontextmanager
async def looking(config: Config, contexts: Mapping[str, ContextSpec]) -> AsyncIterator[Collector]:
    """A collector of one's own."""
    async with open_collector(config, contexts, interval_s=LOOK_EVERY_S) as collector:
        yield collector


async def look_for(collector: Collector, for_s: float) -> Report:
    """Looks until the trend can be told, and longer, up to `for_s`, where records wait, nothing moves, and whether that
    is a pause or a stall is not decided yet. Raises EnvironmentProblem where Kafka does not answer."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + for_s
    looks = 0
    while True:
        looks += 1
        report = await collector.collect(only_kafka=True)
        problem = refused(collector)
        if problem is not None:
            raise EnvironmentProblem(str(problem))
        if looks >= LOOKS_MIN and (loop.time() >= until_s or not any(_is_open(group) for group in report.groups)):
            return await collector.collect()
        await asyncio.sleep(LOOK_EVERY_S)


def _is_open(group: GroupLag) -> bool:
    return any(one.unmoved_s > 0 and one.status in (OK, WARN) for topic in group.topics for one in topic.partitions)


def warn_of_age(report: Report, now_s: float) -> None:
    """A collector that hangs shows what was."""
    age_s = now_s - report.at
    if age_s > OLD_INTERVALS * max(1.0, report.collector.interval_s):
        click.echo(f"ctxpipe: the collector's last collection is {age_s:.0f} s old", err=True)
