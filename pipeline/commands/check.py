"""`ctxpipe check`: is everything fit, before anything runs? Every finding says how to mend it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from connectors.registry import Configured
    from connectors.source import Finding, Source
    from pipeline.composition import Choice
    from pipeline.core.config import Config
    from schemas.context import ContextSpec
    from schemas.fan_out import FanOut

UNREACHABLE = "unreachable"
COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "unfit": "red", UNREACHABLE: "red"}
PING_TIMEOUT_S = 5.0
MEASURE_TIMEOUT_S = 120.0


@click.command()
@click.argument("source", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--config", "config_path", envvar="CTXPIPE_CONFIG", default="ctxpipe.yaml", show_default=True)
def command(source: str | None, as_json: bool, config_path: str) -> None:
    """Examine sources, grants, slots, topics, Kafka, Redis and contexts; SOURCE: only this one.

    Exit code 0: fit; 1: something is unfit; 3: a server can't be reached.
    """
    import asyncio

    from pipeline.commands._sources import source_section
    from pipeline.core.config import load, load_contexts

    config = load(config_path)
    if source is not None:
        source_section(config, source)
    contexts = load_contexts(config)
    names = [source] if source else sorted(config.sources)
    findings, costs, embeddings = asyncio.run(_check(config, contexts, names))
    _show(findings, costs, embeddings, as_json)
    severities = {finding.severity for finding in findings}
    if UNREACHABLE in severities:
        click.get_current_context().exit(3)
    if "unfit" in severities:
        click.get_current_context().exit(1)


async def _check(
    config: Config, contexts: Mapping[str, ContextSpec], names: list[str]
) -> tuple[list[Finding], list[dict[str, Any]], list[dict[str, Any]]]:
    from pipeline.commands._check_access import check_access
    from pipeline.commands._check_guard import check_guard
    from pipeline.commands._check_history import check_history, check_tokenizer
    from pipeline.commands._check_redis import check_redis
    from pipeline.commands._sources import configured_sources

    sources = configured_sources(config, names)
    checked = {source.name: await _check_source(source, contexts) for source in sources}
    concerned = [spec for spec in contexts.values() if {entity.source for entity in spec.entities.values()} & {*names}]
    asked = all(map(_reached, checked.values()))
    fan_outs = await _measured(config, concerned) if asked else {}
    costs = _costs(concerned, fan_outs) if asked else []
    kafka = await _check_kafka(config, sources)
    for source in sources:
        if _reached(checked[source.name]) and _reached(kafka):
            checked[source.name] += await _check_position(config, source)
    foreign = {source.name for source in sources if source.plugin.source is None}
    if _reached(kafka):
        told = await _check_foreign(config, contexts.values(), foreign)
        checked = {name: [*findings, *told.get(name, [])] for name, findings in checked.items()}
    ours = {*config.sources} - foreign
    declared = [finding for spec in contexts.values() for finding in _check_decimals(spec, ours)]
    redis = [check_redis(config.redis)]
    versions = [await _check_version(config, spec) for spec in concerned] if _reached(redis) else []
    found = [finding for source in sources for finding in checked[source.name]]
    embedded, embeddings = await _check_embeddings(config, concerned, fan_outs, asked and _reached(redis))
    opened = check_access(config, contexts)
    past = [finding for spec in concerned for finding in check_tokenizer(config, spec)]
    for spec in concerned:
        past += await check_history(config, spec, fan_outs.get(spec.context, {}), _reached(kafka), _reached(redis))
    guarded = await check_guard(config.guard)
    return [*found, *declared, *kafka, *redis, *versions, *embedded, *past, *opened, *guarded], costs, embeddings


async def _check_embeddings(
    config: Config, contexts: Iterable[ContextSpec], fan_outs: Mapping[str, Mapping[str, FanOut]], asks: bool
) -> tuple[list[Finding], list[dict[str, Any]]]:
    from pipeline.commands._check_embedding import check_embedding

    findings: list[Finding] = []
    embeddings = []
    for spec in contexts:
        if spec.embedding is not None:
            found, shown = await check_embedding(config, spec, fan_outs.get(spec.context, {}), asks)
            findings += found
            embeddings.append(shown)
    return findings, embeddings


def _check_decimals(spec: ContextSpec, ours: set[str]) -> list[Finding]:
    """Declared decimals that say one thing where Debezium writes numbers as base64 and another where it writes text."""
    from connectors.source import Finding
    from schemas.types import scale_of

    return [
        Finding(
            "note",
            f"context {spec.context}: {entity.table}.{column}",
            f"declared {declared}: read as base64, as Debezium writes it without schemas; under decimal.handling.mode "
            "string it would be text, and 1250 is base64 of another number",
            f"If Debezium writes it as text, declare it under 'types' of entity {name} as decimal.",
        )
        for name, entity in spec.entities.items()
        if entity.source not in ours
        for column, declared in entity.types.items()
        if scale_of(declared) == 0
    ]


def _reached(findings: Iterable[Finding]) -> bool:
    return all(finding.severity != UNREACHABLE for finding in findings)


async def _check_source(configured: Configured, contexts: Mapping[str, ContextSpec]) -> list[Finding]:
    from connectors.source import Finding
    from pipeline.core.errors import EnvironmentProblem, Retryable

    if configured.plugin.source is None:
        message = f"{configured.plugin.name}: its topics are filled by others; nothing has to run"
        return [Finding("ok", f"source {configured.name}", message)]
    source = configured.source()
    try:
        findings = await _check_itself(configured, source)
        findings += await _check_contexts(configured, source, contexts.values())
    except (Retryable, EnvironmentProblem) as error:
        return [Finding(UNREACHABLE, f"source {configured.name}", str(error))]
    finally:
        await source.close()
    return _named(configured, findings)


async def _check_foreign(
    config: Config, contexts: Iterable[ContextSpec], sources: Iterable[str]
) -> dict[str, list[Finding]]:
    """Of sources whose topics others fill: those topics."""
    from connectors.source import Finding
    from pipeline.commands._foreign_topics import check_foreign_topics
    from pipeline.core.errors import EnvironmentProblem, Fatal, Retryable

    names = sorted(sources)
    if not names:
        return {}
    try:
        found = await check_foreign_topics(config, contexts, names)
    except (Retryable, Fatal, EnvironmentProblem) as error:
        return {name: [Finding(UNREACHABLE, f"{name}: topics", str(error))] for name in names}
    return {
        name: [Finding(one.severity, f"{name}: {one.subject}", one.message, one.mend) for one in findings]
        for name, findings in found.items()
    }


async def _check_itself(configured: Configured, source: Source) -> list[Finding]:
    from connectors.source import Checking, Finding

    if isinstance(source, Checking):
        return await source.check()
    message = f"connector {configured.plugin.name} can't be examined before it runs"
    return [Finding("note", "check", message)]


async def _check_position(config: Config, configured: Configured) -> list[Finding]:
    """What `connect` would refuse: the position that Kafka has, and a source that can't go on there."""
    from connectors.positions import stored_position
    from connectors.source import Finding, PositionChecking
    from pipeline.commands._sources import kafka_settings
    from pipeline.core.errors import Fatal, Retryable

    if not configured.plugin.can(PositionChecking):
        return []
    source = configured.source()
    try:
        position = await stored_position(configured.position_name, kafka_settings(config))
        findings = await source.check_position(position) if isinstance(source, PositionChecking) else []
    except (Retryable, Fatal) as error:
        findings = [Finding("unfit", "position", str(error))]
    finally:
        await source.close()
    return _named(configured, findings)


def _named(configured: Configured, findings: Iterable[Finding]) -> list[Finding]:
    from connectors.source import Finding

    return [Finding(f.severity, f"{configured.name}: {f.subject}", f.message, f.mend) for f in findings]


async def _check_version(config: Config, spec: ContextSpec) -> Finding:
    """What `worker` would refuse: a spec that was changed under the number of a version that has state."""
    from connectors.source import Finding
    from pipeline.commands._check_history import tokenizer_digest
    from pipeline.core.errors import ConfigError, EnvironmentProblem, Fatal, Retryable
    from pipeline.stores.redis_client import RedisClient
    from pipeline.stores.redis_store import RedisServing, context_settings

    subject = f"context {spec.context}"
    client = RedisClient(context_settings(config, spec, PING_TIMEOUT_S))
    try:
        known = await RedisServing(client).known(spec, tokenizer_digest(config, spec))
    except (ConfigError, Fatal) as error:
        return Finding("unfit", subject, str(error).removeprefix(f"{subject}: "))
    except (Retryable, EnvironmentProblem) as error:
        return Finding(UNREACHABLE, subject, str(error))
    finally:
        await client.close()
    state = "its state is built from this spec" if known else "no worker has started it yet"
    return Finding("ok", subject, f"version {spec.version}: {state}")


async def _check_contexts(configured: Configured, source: Source, specs: Iterable[ContextSpec]) -> list[Finding]:
    """Every table and column that a context takes from this source exists and is captured, as far as it can tell."""
    from connectors.source import Describing, Finding
    from schemas.context_file import column_uses
    from schemas.topics import table_topic

    findings = []
    topics = configured.topics()
    for spec in specs:
        entities = {name: entity for name, entity in spec.entities.items() if entity.source == configured.name}
        uses = column_uses(spec)
        tables = sorted({entity.table for entity in entities.values()})
        columns = await source.describe(tables) if isinstance(source, Describing) else dict.fromkeys(tables)
        for name, entity in entities.items():
            existing = columns[entity.table]
            if table_topic(configured.name, entity.table) not in topics:
                mend = f"Add it to sources.{configured.name}.tables, or mend the context."
                findings.append(
                    Finding("unfit", entity.table, f"context {spec.context} needs it, it is not captured", mend)
                )
            elif existing is not None:
                findings += [
                    _missing_column(entity.table, column, existing, [f"{spec.context}: {place}" for place in places])
                    for column, places in uses.get(name, {}).items()
                    if column not in existing
                ]
    return findings


def _missing_column(table: str, column: str, existing: list[str], places: list[str]) -> Finding:
    from difflib import get_close_matches

    from connectors.source import Finding

    near = get_close_matches(column, existing, 1)
    hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(existing)}."
    return Finding("unfit", f"{table}.{column}", f"does not exist; used by {'; '.join(places)}", hint)


async def _measured(config: Config, contexts: Iterable[ContextSpec]) -> dict[str, Mapping[str, FanOut]]:
    """Context → section → how many bundles show one of its rows, counted by the source."""
    from pipeline.commands._check_embedding import measured_spec
    from pipeline.commands._composition import measure

    found: dict[str, Mapping[str, FanOut]] = {}
    for spec in contexts:
        found[spec.context], reasons = await measure(config, measured_spec(spec), MEASURE_TIMEOUT_S)
        for reason in reasons:
            click.echo(f"{spec.context}: fan-out can't be measured: {reason}", err=True)
    return found


def _costs(contexts: Iterable[ContextSpec], fan_outs: Mapping[str, Mapping[str, FanOut]]) -> list[dict[str, Any]]:
    """For sections left to `auto`: what copying and linking would cost, and what workers would do."""
    from pipeline.composition import choose

    rows: list[dict[str, Any]] = []
    for spec in contexts:
        choices = choose(spec, fan_outs[spec.context])
        rows += [_cost(spec.context, path, choice) for path, choice in choices.items() if _costs_differ(choice)]
    return rows


def _costs_differ(choice: Choice) -> bool:
    """Inside a link there is nothing to choose."""
    return choice.section.compose == "auto" and choice.inside is None


def _cost(context: str, path: str, choice: Choice) -> dict[str, Any]:
    copied = choice.copied
    return {
        "context": context,
        "section": path,
        "auto": choice.composition,
        "copy_writes_per_change": None if copied is None else round(copied.average, 2),
        "copy_writes_per_change_max": None if copied is None else copied.most,
        "copy_reads_per_lookup": 0,
        "link_writes_per_change": 1,
        "link_reads_per_lookup": 1,
    }


async def _check_kafka(config: Config, sources: list[Configured]) -> list[Finding]:
    from connectors.publisher import check_kafka
    from connectors.source import Finding
    from pipeline.commands._sources import kafka_settings
    from pipeline.core.errors import Fatal, Retryable

    try:
        topics = [topic for one in sources if not one.keeps_all for topic in one.topics()]
        kept = [topic for one in sources if one.keeps_all for topic in one.topics()]
        return await check_kafka(kafka_settings(config), topics, kept)
    except (Retryable, Fatal) as error:
        return [Finding(UNREACHABLE, "Kafka", str(error), "ctxpipe up, or mend kafka.bootstrap_servers")]


def _show(
    findings: list[Finding], costs: list[dict[str, Any]], embeddings: list[dict[str, Any]], as_json: bool
) -> None:
    import json

    if as_json:
        shown = [{"severity": f.severity, "subject": f.subject, "message": f.message, "mend": f.mend} for f in findings]
        fit = not {f.severity for f in findings} & {"unfit", UNREACHABLE}
        click.echo(json.dumps({"fit": fit, "findings": shown, "sections": costs, "embeddings": embeddings}))
        return
    if click.get_text_stream("stdout").isatty():
        _tables(findings, costs)
        _show_embeddings(embeddings)
        return
    for finding in findings:
        click.echo(f"{finding.severity:<11} {finding.subject}: {finding.message}")
        if finding.mend:
            click.echo(f"{'':<11} mend: {finding.mend}")
    for cost in costs:
        click.echo(f"{'section':<11} {_sentence(cost)}")
    _show_embeddings(embeddings)


def _show_embeddings(embeddings: Iterable[Mapping[str, Any]]) -> None:
    from pipeline.commands._check_embedding import sentence

    for shown in embeddings:
        for section in shown["sections"]:
            click.echo(f"{'embedding':<11} {shown['context']}.{sentence(section)}")


def _sentence(cost: Mapping[str, Any]) -> str:
    average, most = cost["copy_writes_per_change"], cost["copy_writes_per_change_max"]
    copied = (
        "its table is empty or was not measured"
        if average is None
        else (f"copied, a change is {average:,} writes on average, {most:,} at worst")
    )
    return (
        f"{cost['context']}.{cost['section']}: auto means {cost['auto']}; {copied}; linked, it is 1 write and a lookup "
        "1 more read"
    )


def _tables(findings: list[Finding], costs: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "what", "finding", "how to mend it")
    for finding in findings:
        colour = COLOURS[finding.severity]
        cells = (escape(finding.subject), escape(finding.message), escape(finding.mend))
        table.add_row(f"[{colour}]{finding.severity}[/]", *cells)
    console = Console()
    console.print(table)
    if costs:
        sections = Table(
            "section",
            "auto",
            "copy: writes per change (most)",
            "link: writes per change",
            "link: reads",
            title="Composition",
        )
        for cost in costs:
            average, most = cost["copy_writes_per_change"], cost["copy_writes_per_change_max"]
            copied = "not measured" if average is None else f"{average:,} ({most:,})"
            sections.add_row(f"{cost['context']}.{cost['section']}", cost["auto"], copied, "1", "+1 per lookup")
        console.print(sections)
