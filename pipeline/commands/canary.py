"""`ctxpipe canary`: writes a row into each source again and again, and looks whether lookups show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from connectors.canary import CanaryWriter
    from connectors.source import Finding
    from pipeline.commands._canary_role import Teller
    from pipeline.core.canary import CanaryConfig, CanaryPlan
    from pipeline.core.config import Config
    from schemas.context import ContextSpec

COLOURS = {"ok": "green", "note": "cyan", "unfit": "red", "unreachable": "red"}
ANY_KEY = "0"
"""Of each key column: whether there is such a bundle or not, the answer says how old it may be."""


@click.command()
@click.option("--prepare", is_flag=True, help="Make the tables, say what else the sources need, and return.")
@click.option("--json", "as_json", is_flag=True, help="With --prepare: one JSON object.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Serve /metrics, /livez, /readyz, /startupz and /canaries at this port of `running: metrics_host`; 0 takes a "
    "free one.",
)
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(prepare: bool, as_json: bool, metrics_port: int | None, config_path: str) -> None:
    """Write a row into each source of the section `canary`, and tell whether lookups show it in time.

    The row goes the whole way: source, connector, Kafka, worker, Redis, `ctxpipe serve`. An outage of any of them ends
    nothing here; it is told, by the metrics ctxpipe_canary_up and ctxpipe_canary_age_seconds and in the log. Runs until
    SIGTERM or Ctrl-C.

    Exit code 0: stopped as asked, or all is prepared; 1: something has to be mended first, and the message says what;
    3: a source can't be reached.
    """
    import asyncio

    from pipeline.core.config import load, load_contexts
    from pipeline.core.errors import ConfigError

    config = load(config_path)
    if config.canary is None:
        example = "canary: {url: http://127.0.0.1:8080, sources: {NAME: {table: public.ctxpipe_canary}}}"
        raise ConfigError([f"{config_path} has no section canary; write {example}"])
    contexts = load_contexts(config)
    plans, writers = _writers(config, config.canary)
    if prepare:
        findings = asyncio.run(_prepare(writers))
        _show(findings, as_json)
        severities = {finding.severity for _, finding in findings}
        click.get_current_context().exit(3 if "unreachable" in severities else 1 if "unfit" in severities else 0)
    asyncio.run(_run(config, config.canary, plans, writers, contexts, metrics_port))


def _writers(config: Config, canary: CanaryConfig) -> tuple[list[CanaryPlan], dict[str, CanaryWriter]]:
    """By source. Raises ConfigError with all mistakes of all sources."""
    from connectors.canary import writer_of
    from pipeline.commands._sources import configured_sources
    from pipeline.core.canary import canary_plans
    from pipeline.core.errors import ConfigError

    plans = canary_plans(canary, config.sources)
    sources = {source.name: source for source in configured_sources(config, [plan.source for plan in plans])}
    writers: dict[str, CanaryWriter] = {}
    mistakes: list[str] = []
    for plan in plans:
        try:
            writers[plan.source] = writer_of(sources[plan.source], plan.table, plan.login)
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return plans, writers


async def _prepare(writers: Mapping[str, CanaryWriter]) -> list[tuple[str, Finding]]:
    from connectors.source import Finding
    from pipeline.core.errors import CtxpipeError

    found: list[tuple[str, Finding]] = []
    for source, writer in writers.items():
        try:
            found += [(source, finding) for finding in await writer.prepare()]
        except CtxpipeError as error:
            found.append((source, Finding("unreachable", "canary table", str(error))))
        finally:
            await writer.close()
    return found


def _show(findings: Sequence[tuple[str, Finding]], as_json: bool) -> None:
    import json

    import msgspec

    if as_json:
        listed = [{"source": source, **msgspec.to_builtins(finding)} for source, finding in findings]
        click.echo(json.dumps({"findings": listed}))
        return
    for source, finding in findings:
        severity = click.style(f"{finding.severity:<11}", fg=COLOURS.get(finding.severity))
        click.echo(f"{severity} {source}: {finding.subject}: {finding.message}")
        if finding.mend:
            click.echo(f"            mend: {finding.mend}")


async def _run(
    config: Config,
    canary: CanaryConfig,
    plans: Sequence[CanaryPlan],
    writers: Mapping[str, CanaryWriter],
    contexts: Mapping[str, ContextSpec],
    metrics_port: int | None,
) -> None:
    """Until SIGTERM or SIGINT."""
    import asyncio
    import signal
    from contextlib import AsyncExitStack, suppress

    from pipeline.commands._canary_looking import open_client
    from pipeline.commands._canary_role import Setting, SourceCanary, Teller
    from pipeline.core import logging as logs
    from pipeline.core.clock import SystemClock
    from pipeline.core.reloading import Reloading, on_hangup

    logs.configure(config.running.level)
    running = asyncio.current_task()
    assert running is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with suppress(asyncio.CancelledError), on_hangup(Reloading(config)):
        async with AsyncExitStack() as stack:
            clients = {url: open_client(config, canary, url) for url in canary.url}
            for client in clients.values():
                stack.push_async_callback(client.close)
            for writer in writers.values():
                stack.push_async_callback(writer.close)
            slots = await _slots(config, plans)
            canaries = [
                SourceCanary(
                    Setting(
                        plan,
                        writers[plan.source],
                        clients,
                        slots[plan.source],
                        _others(plan, contexts),
                        canary.timeout_s,
                    ),
                    SystemClock(),
                )
                for plan in plans
            ]
            teller = Teller(canaries, SystemClock())
            _serve_health(teller, [plan.source for plan in plans], metrics_port, config.running.metrics_host)
            told = (f"{len(slots[plan.source])} rows in {plan.source} every {plan.every_s:g} s" for plan in plans)
            click.echo(f"canaries: {', '.join(told)}, looked up at {', '.join(clients)}", err=True)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(teller.run())
                for one in canaries:
                    tasks.create_task(one.run())


async def _slots(config: Config, plans: Sequence[CanaryPlan]) -> dict[str, dict[int, int | None]]:
    """By source. Where Kafka does not tell, its topic is as ctxpipe makes them."""
    from connectors.canary import rows_of
    from pipeline.core.debezium import CONNECTOR
    from pipeline.ops.partitions import partition_counts

    topics = {plan.source: config.topic(plan.source, plan.table) for plan in plans}
    counts = await partition_counts(config.kafka.bootstrap_servers, sorted(topics.values()), config.kafka.security)
    ours = {plan.source: config.sources[plan.source].get("connector") != CONNECTOR for plan in plans}
    return {source: rows_of(counts[topic] or config.kafka.partitions, ours[source]) for source, topic in topics.items()}


def _others(plan: CanaryPlan, contexts: Mapping[str, ContextSpec]) -> dict[str, str]:
    """Contexts that show the source, beside the canary's own, with a key for each."""
    if not plan.judges_contexts:
        return {}
    return {
        name: "|".join([ANY_KEY] * len(spec.entities[spec.root].key))
        for name, spec in contexts.items()
        if name != plan.context and any(entity.source == plan.source for entity in spec.entities.values())
    }


def _serve_health(teller: Teller, sources: Sequence[str], metrics_port: int | None, host: str) -> None:
    import json
    from functools import partial

    from pipeline.core.health import Health, serve

    health = Health("canary")
    health.beats()
    for source in sources:
        health.check(f"canary of {source}", partial(teller.reason, source), "note")
    health.started()
    if metrics_port is not None:
        pages = {"/canaries": lambda: (json.dumps({"canaries": teller.as_objects()}).encode(), "application/json")}
        click.echo(f"metrics at http://{host}:{serve(metrics_port, health, host, pages)}/metrics", err=True)
