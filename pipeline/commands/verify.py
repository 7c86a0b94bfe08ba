"""`ctxpipe verify`: does Redis say what the sources say? The composition root of pipeline.ops.verify."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping

    from connectors.readers import Reading
    from pipeline.core.config import Config
    from pipeline.ops.verify import Progress, Settings, Verification
    from schemas.context import ContextSpec

SHOWN_ROWS_MAX = 40


@click.command()
@click.argument("context")
@click.option("--sample", type=click.IntRange(min=1), help="Check so many keys, chosen at random, instead of all.")
@click.option("--keys", multiple=True, metavar="KEY", help="Check this key; may be given several times.")
@click.option("--seed", type=int, help="Makes --sample choose the same keys again.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=60.0, show_default=True, metavar="SECONDS",
              help="How long to wait for changes that are on their way.")  # fmt: skip
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="Of the spec; default: the one that serves.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object as the last line.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(
    context: str,
    sample: int | None,
    keys: tuple[str, ...],
    seed: int | None,
    wait_s: float,
    version: int | None,
    as_json: bool,
    config_path: str,
) -> None:
    """Compute the bundles of CONTEXT from the sources by SQL and CQL and compare them with what lookups answer.

    While a changed spec is built, the version that serves is verified, by the spec that it was built from. Of sources
    that do not tell how far their changes have come (cassandra without heartbeat_table or of several nodes, debezium),
    what differs is compared again and again, and counts when it differs for as long as --wait says.
    Exit code 0: equal; 1: they differ; 3: a side is away, or changes do not arrive.
    """
    import asyncio
    import secrets

    from pipeline.ops.verify import Settings

    chosen = seed if seed is not None else secrets.randbelow(2**31)
    settings = Settings(sample=sample or 0, keys=keys, seed=chosen, wait_s=wait_s)
    quiet = as_json or not sys.stderr.isatty()
    result = asyncio.run(_verify(config_path, context, settings, version, quiet))
    _report(context, result, settings, as_json)
    if result.mismatches or result.unsettled:
        click.get_current_context().exit(1)


async def _verify(config_path: str, context: str, settings: Settings, version: int | None, quiet: bool) -> Verification:
    from pipeline.commands._contexts import spec_named
    from pipeline.core.config import load, load_contexts

    config = load(config_path)
    spec = spec_named(load_contexts(config), context)
    if quiet:
        return await verify_context(config, spec, settings, version=version)
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("waiting for changes on their way", total=None)

        def show(what: str, count: int) -> None:
            bar.update(task, description=what, completed=count)

        return await verify_context(config, spec, settings, show, version)


async def verify_context(
    config: Config,
    spec: ContextSpec,
    settings: Settings,
    progress: Progress = lambda what, count: None,
    version: int | None = None,
) -> Verification:
    """Opens both sides, checks and closes them; also what the demo calls. `version` None: the one that serves.

    Raises as Verifier.run, and ConfigError when the spec was changed and its version was not.
    """
    from contextlib import AsyncExitStack
    from dataclasses import replace

    from pipeline.core.clock import SystemClock
    from pipeline.lookup.opened import open_context
    from pipeline.ops.oracle import Oracle
    from pipeline.ops.verify import Verifier
    from schemas.keys import root_key_texts

    async with AsyncExitStack() as stack:
        answers = await open_context(config, spec, version=version, changes_allowed=False)
        stack.push_async_callback(answers.close)
        _note_version(spec, answers.spec, version)
        readings = readings_of(config, answers.spec, progress)
        readers = {name: reading.reader for name, reading in readings.items()}
        for reader in readers.values():
            stack.push_async_callback(reader.close)
        oracle = await Oracle.create(answers.spec, readers, config.mask_key)
        for hint in oracle.hints:
            click.echo(f"note: {hint}", err=True)
        keys = tuple(root_key_texts(answers.spec, settings.keys))
        beating = {name for name, reading in readings.items() if await reading.has_heartbeats()}
        topics = await _topics(config, answers.spec, beating)
        patience_s = _patience_s(readings, beating, settings.wait_s)
        settings = replace(settings, keys=keys, topics=topics, patience_s=patience_s)
        result = await Verifier(oracle, answers, readers, SystemClock(), settings, progress).run()
        return replace(result, version=answers.spec.version)


def readings_of(config: Config, spec: ContextSpec, progress: Progress) -> dict[str, Reading]:
    """By source. Raises ConfigError with every source that is not there or can't be verified."""
    from connectors.readers import reading_of
    from pipeline.commands._sources import configured_sources
    from pipeline.core.errors import ConfigError

    names = sorted({entity.source for entity in spec.entities.values()})
    mistakes = [
        f"context {spec.context}: no source {name!r} in the configuration"
        for name in names
        if name not in config.sources
    ]
    readings = {}
    for source in configured_sources(config, [name for name in names if name in config.sources]):
        try:
            readings[source.name] = reading_of(source, progress)
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return readings


def _patience_s(readings: Mapping[str, Reading], beating: set[str], wait_s: float) -> float:
    """Without heartbeats nothing tells what has been applied: then what differs may be on its way, as long as waiting
    for it would be allowed."""
    return max(reading.settle_s + (0.0 if name in beating else wait_s) for name, reading in readings.items())


def _note_version(configured: ContextSpec, verified: ContextSpec, asked: int | None) -> None:
    if asked is None and configured.version != verified.version:
        other = f"--version {configured.version} verifies the configured one"
        click.echo(f"note: version {verified.version} serves and is what is verified; {other}", err=True)


async def _topics(config: Config, spec: ContextSpec, sources: set[str]) -> dict[str, dict[str, int]]:
    from pipeline.ops.partitions import partition_counts
    from schemas.topics import table_topic

    topics: dict[str, list[str]] = {}
    for entity in spec.entities.values():
        if entity.source in sources:
            topics.setdefault(entity.source, []).append(table_topic(entity.source, entity.table))
    names = [name for listed in topics.values() for name in listed]
    counts = await partition_counts(config.kafka.bootstrap_servers, sorted(set(names)), config.kafka.security)
    return {source: {name: counts[name] for name in listed} for source, listed in topics.items()}


def _report(context: str, result: Verification, settings: Settings, as_json: bool) -> None:
    import json

    _table(result)
    if result.absent:
        click.echo(f"{result.absent} of the given keys exist on neither side", err=True)
    seed = f" (--seed {settings.seed})" if settings.sample else ""
    if result.mismatches or result.unsettled:
        unsettled = f", {result.unsettled} kept changing" if result.unsettled else ""
        parts = f"{result.missing} missing, {result.extra} without a source row"
        summary = f"{context}: {result.mismatches:,} of {result.verified:,} bundles differ ({parts}){unsettled}{seed}"
    else:
        summary = f"{context}: all {result.verified:,} bundles equal what the sources say{seed}"
    click.echo(click.style(summary, fg="red" if result.mismatches else "green"), err=as_json)
    if as_json:
        click.echo(json.dumps(as_object(context, result)))


def as_object(context: str, result: Verification) -> dict[str, Any]:
    """What `--json` prints; at most SHOWN_ROWS_MAX keys with their differences."""
    return {
        "context": context,
        "version": result.version,
        "verified": result.verified,
        "mismatches": result.mismatches,
        "missing": result.missing,
        "extra": result.extra,
        "unsettled": result.unsettled,
        "unconfirmed": result.unconfirmed,
        "absent": result.absent,
        "differences": [
            {"key": key, "path": item.path, "source": item.source, "redis": item.stored}
            for key, found in result.found[:SHOWN_ROWS_MAX]
            for item in found[:SHOWN_ROWS_MAX]
        ],
    }


def _table(result: Verification) -> None:
    if not result.found:
        return
    from rich.console import Console
    from rich.table import Table

    rows = [(key, item) for key, found in result.found for item in found]
    table = Table("key", "path", "source says", "Redis says", title="Differences")
    for key, item in rows[:SHOWN_ROWS_MAX]:
        table.add_row(*map(_plain, (key, item.path or "(whole bundle)", item.source, item.stored)))
    Console(stderr=True).print(table)
    if len(rows) > SHOWN_ROWS_MAX:
        click.echo(f"and {len(rows) - SHOWN_ROWS_MAX} more differences", err=True)


def _plain(text: str) -> str:
    """Values are data: no markup of rich in them."""
    from rich.markup import escape

    return escape(text)
