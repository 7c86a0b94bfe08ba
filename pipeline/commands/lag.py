"""`ctxpipe lag`: how far behind everything is, where, why, and whether it catches up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.core.config import Config
    from pipeline.ops.lag.hot_keys import HotKey
    from pipeline.ops.lag.model import Report
    from schemas.context import ContextSpec

TABLE_S, EXPLAIN_S = 3.0, 20.0
"""So long it looks by itself, at most: whether something stands or is only slow takes some time to see."""
WATCH_EVERY_S = 2.0


@dataclass(frozen=True)
class Options:
    """Of one command line."""

    as_json: bool
    watch: bool
    explain: bool
    partitions: bool
    stages: bool
    hot_keys: bool
    groups: tuple[str, ...]
    url: str | None
    for_s: float | None


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object; with --watch one line per look.")
@click.option("--watch", is_flag=True, help="Keep looking: a live view with sparklines. End with Ctrl-C.")
@click.option("--explain", is_flag=True, help="Say in words what is slow, where, why and what usually mends it.")
@click.option("--partitions", is_flag=True, help="A line for each partition, too.")
@click.option("--stages", is_flag=True, help="Times of the stages, from the pages under collector.scrape.")
@click.option("--hot-keys", is_flag=True, help="Read which keys wait on the partitions with most lag.")
@click.option("--group", "groups", multiple=True, metavar="PATTERN", help="Only groups like this; may be repeated.")
@click.option("--url", help="Ask the collector there; default from collector.url in the configuration.")
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(1, 600),
    metavar="SECONDS",
    help=f"Without a collector: look by itself so long, at most. Else {TABLE_S:.0f}, with --explain {EXPLAIN_S:.0f}.",
)
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
@click.pass_context
def command(
    ctx: click.Context,
    as_json: bool,
    watch: bool,
    explain: bool,
    partitions: bool,
    stages: bool,
    hot_keys: bool,
    groups: tuple[str, ...],
    url: str | None,
    for_s: float | None,
    config_path: str,
) -> None:
    """Show how far behind consumer groups, sources, replicas and canaries are, and whether they catch up.

    A running `ctxpipe collector` is asked where collector.url or --url says one; otherwise this command looks at Kafka
    and the sources itself, for some seconds. BEHIND is the age of the last record that was done, by its source's commit
    time; it is never guessed: `unknown` says that nobody can tell.

    STATUS: OK; WARN falls behind; STALL a consumer is there and nothing moves; STOP nobody consumes what waits; REWIND
    offsets went back, or the log did; UNKNOWN nothing was committed yet, or what would tell does not answer.

    Exit code 0: it was told, whatever it is. With --explain 1 where something is wrong that does not mend itself
    (warnings and notes are not), so that a script can ask. 3: neither Kafka nor the collector answers.
    """
    import asyncio
    from contextlib import suppress

    from pipeline.core.config import load, load_contexts

    if watch and (explain or hot_keys):
        raise click.UsageError("--watch shows tables; --explain and --hot-keys go without it")
    config = load(config_path)
    contexts = load_contexts(config)
    options = Options(as_json, watch, explain, partitions, stages, hot_keys, groups, url, for_s)
    if watch:
        from pipeline.commands._lag_watching import watch_lag

        with suppress(KeyboardInterrupt):
            asyncio.run(watch_lag(config, contexts, options, WATCH_EVERY_S))
        return
    report, keys = asyncio.run(_once(config, contexts, options))
    _show(report, keys, options)
    if explain and any(finding.severity == "wrong" for finding in report.findings):
        ctx.exit(1)


async def _once(
    config: Config, contexts: Mapping[str, ContextSpec], options: Options
) -> tuple[Report, list[HotKey] | None]:
    from pipeline.commands._lag_asking import look_for, looking
    from pipeline.core.errors import EnvironmentProblem, Retryable
    from pipeline.ops.lag.hot_keys import hot_keys

    async def by_itself() -> Report:
        for_s = options.for_s or (EXPLAIN_S if options.explain else TABLE_S)
        click.echo(f"looking for up to {for_s:.0f} s …", err=True)
        async with looking(config, contexts) as collector:
            return await look_for(collector, for_s)

    report = chosen(await _asked(config, options, by_itself), options.groups)
    if not options.hot_keys:
        return report, None
    try:
        return report, await hot_keys(config.kafka.bootstrap_servers, report.groups, **config.kafka.security)
    except Retryable as error:
        raise EnvironmentProblem(str(error)) from error


async def _asked(config: Config, options: Options, otherwise: Callable[[], Awaitable[Report]]) -> Report:
    """From the collector; one that the configuration names and that is away is told, and done without."""
    import time

    from pipeline.commands._lag_asking import ask, warn_of_age
    from pipeline.core.errors import EnvironmentProblem, Retryable

    url = options.url or config.collector.url
    if url is None:
        return await otherwise()
    try:
        report = await ask(url, config.collector.timeout_s)
    except Retryable as error:
        if options.url is not None:
            raise EnvironmentProblem(f"{error}. Without --url this command looks by itself.") from error
        click.echo(f"ctxpipe: {error}", err=True)
        return await otherwise()
    warn_of_age(report, time.time())
    return report


def chosen(report: Report, patterns: tuple[str, ...]) -> Report:
    """With these groups only; findings on others are left out, those on what is no group stay."""
    import msgspec

    from pipeline.ops.lag.judging import matches
    from pipeline.ops.lag.names import role_of

    if not patterns:
        return report
    groups = [group for group in report.groups if matches(group.group, patterns)]
    others = {role_of(one.group).words(one.group) for one in report.groups if one not in groups}
    findings = [finding for finding in report.findings if finding.where not in others]
    return msgspec.structs.replace(report, groups=groups, findings=findings)


def _show(report: Report, keys: list[HotKey] | None, options: Options) -> None:
    import msgspec

    from pipeline.commands._lag_show import Wishes, show, show_findings, show_hot_keys

    if options.as_json:
        document = msgspec.to_builtins(report)
        if keys is not None:
            document["hot_keys"] = msgspec.to_builtins(keys)
        click.echo(msgspec.json.encode(document).decode())
        return
    if options.explain:
        show_findings(report)
    else:
        show(report, Wishes(options.stages, options.partitions))
    if keys is not None:
        show_hot_keys(keys)
