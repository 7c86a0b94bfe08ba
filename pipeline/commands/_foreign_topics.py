"""What `ctxpipe check` says of topics that an existing Debezium deployment fills: are they there, do they keep what is
needed, and do their records say what the contexts take from them?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from connectors.publisher import KafkaSettings, mapped_errors
from connectors.source import Finding
from pipeline.plan import Plan, TablePlan, compile_plan
from pipeline.rows import decode_batch
from schemas.envelope import decode_record
from schemas.errors import DecodeError
from schemas.event import ChangeEvent
from schemas.mutation import Cell
from schemas.record import Record
from schemas.wire import parse_object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pipeline.core.config import Config
    from pipeline.streams.registry import Registries
    from schemas.context import ContextSpec

SAMPLE_RECORDS = 20
"""From the end of each partition."""
READ_TIMEOUT_S = 10.0
REASONS_TOLD = 3
MAYBE_TIME_MIN = 10**11
"""Milliseconds of 1973; counts and identifiers seldom reach it."""

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)", re.ASCII)
"""With its padding: without, half of all words would be."""


@dataclass
class Topic:
    """One topic as Kafka has it, with records from its end."""

    name: str
    partitions: int
    configs: Mapping[str, str]
    records: list[Record] = field(default_factory=list)


async def check_foreign_topics(
    config: Config, contexts: Iterable[ContextSpec], sources: Sequence[str]
) -> dict[str, list[Finding]]:
    """Source → what is found. Raises Retryable when Kafka or a schema registry is away."""
    from pipeline.commands._sources import kafka_settings
    from pipeline.streams.registry import Registries

    registries = Registries(config)
    plans = [
        compile_plan(spec, mask_secret=config.mask_key, formats=registries.formats)
        for spec in contexts
        if {entity.source for entity in spec.entities.values()} & {*sources}
    ]
    tables = {name: _tables(config, plans, name) for name in sources}
    topics = {topic for wanted in tables.values() for topic in wanted.values()}
    existing, found = await _read(kafka_settings(config), topics)
    findings: dict[str, list[Finding]] = {}
    for name, wanted in tables.items():
        findings[name] = [] if wanted else [Finding("note", "topics", "no context uses a table of it")]
        for table, topic in sorted(wanted.items()):
            if topic not in found:
                findings[name].append(_missing(topic, existing))
                continue
            findings[name] += await _examined(found[topic], table, name, plans, registries)
    return findings


def _tables(config: Config, plans: Iterable[Plan], source: str) -> dict[str, str]:
    """Table → topic, of what is listed and of what the contexts use."""
    used = {table.table for plan in plans for table in plan.tables.values() if table.source == source}
    listed = config.sources.get(source, {}).get("tables") or ()
    return {table: config.topic(source, table) for table in {*used, *listed}}


def _missing(topic: str, existing: Iterable[str]) -> Finding:
    near = get_close_matches(topic, sorted(existing), 1, cutoff=0.8)
    hint = f"There is {near[0]}: mend topic_prefix or the table's name." if near else "Mend topic_prefix, or make it."
    return Finding("unfit", f"topic {topic}", "does not exist", hint)


async def _examined(
    topic: Topic, table: str, source: str, plans: Iterable[Plan], registries: Registries
) -> list[Finding]:
    registry = registries.of(source)
    if registry is not None:
        await registry.load(topic.records)
    form = registries.formats.get(source)
    events, reasons = [], []
    for record in topic.records:
        try:
            events.append(decode_record(record, form=form, table=table))
        except DecodeError as error:
            reasons.append(str(error))
    mutations = any(event is not None and event.mutation is not None for event in events)
    findings = [_kept(topic, mutations), *_undecodable(topic, reasons)]
    if not topic.records:
        findings.append(Finding("note", f"topic {topic.name}", "is empty: nothing shows how it is written"))
    for plan in plans:
        known = plan.topics.get(topic.name)
        if known is not None and not reasons:
            findings += _in_context(plan, known, topic)
    return findings


def _kept(topic: Topic, mutations: bool) -> Finding:
    subject, policy = f"topic {topic.name}", topic.configs.get("cleanup.policy", "")
    alter = f"kafka-configs.sh --alter --topic {topic.name} --add-config "
    held = f"{topic.partitions} partition{'s' if topic.partitions > 1 else ''}"
    if mutations and "compact" in policy:
        message = "is compacted: its records tell parts of rows, and earlier parts would be forgotten"
        return Finding("unfit", subject, message, f"{alter}cleanup.policy=delete,retention.ms=-1")
    days = int(topic.configs.get("retention.ms") or -1) / 86_400_000
    if "delete" in policy and days >= 0:
        message = (
            f"{held}; forgets records after {days:g} days: a new version of a context, or Redis without its memory, "
            "would miss rows that have not changed since"
        )
        policy = "delete,retention.ms=-1" if mutations else "compact"
        mend = f"{alter}cleanup.policy={policy}, or let Debezium read its snapshot again when that happens"
        return Finding("warning", subject, message, mend)
    return Finding("ok", subject, f"{held}; {'compacted' if 'compact' in policy else 'keeps every record'}")


def _undecodable(topic: Topic, reasons: Sequence[str]) -> Iterator[Finding]:
    mend = "Mend the source's section (format, schema_registry) or the deployment; workers would set these aside."
    told = list(dict.fromkeys(reasons))
    for reason in told[:REASONS_TOLD]:
        text = f"{reasons.count(reason)} of its last {len(topic.records)} records can't be read: {reason}"
        yield Finding("unfit", f"topic {topic.name}", text, mend)


def _in_context(plan: Plan, table: TablePlan, topic: Topic) -> Iterator[Finding]:
    """Whether the context's declared types fit the records, and which columns it had better declare."""
    decoded = decode_batch(plan, topic.records)
    reasons = list(dict.fromkeys(letter.reason for letter in decoded.dead_letters))
    subject = f"{plan.spec.context}: {table.table}"
    for reason in reasons[:REASONS_TOLD]:
        yield Finding("unfit", subject, reason, "Mend the entity's types in the context, or the deployment.")
    if topic.records and not reasons:
        yield Finding("ok", subject, f"{len(topic.records)} records at the end of {topic.name} decode")
    yield from _undeclared(plan, table, topic)


def _undeclared(plan: Plan, table: TablePlan, topic: Topic) -> Iterator[Finding]:
    """Without schemas a time is a number and a decimal base64; only the deployment's owner knows."""
    values: dict[str, list[Any]] = {}
    for record in topic.records:
        for column, value in _raw(record, table).items():
            if column in table.columns and column not in table.types and value is not None:
                values.setdefault(column, []).append(value)
    for column, seen in sorted(values.items()):
        advice = _advice(seen)
        if advice is not None:
            message, types = advice
            mend = f"If it is, declare it under 'types' of its entity in {plan.spec.context}: {column}: {types}"
            yield Finding("warning", f"{table.table}.{column}", message, mend)


def _advice(values: Sequence[Any]) -> tuple[str, str] | None:
    if all(value.__class__ is int and abs(value) >= MAYBE_TIME_MIN for value in values):
        return "undeclared, and holds numbers as times have without schemas", "timestamp_ms or timestamp_us"
    # Values in groups of four letters need no padding; one that has it gives the column away.
    texts = all(value.__class__ is str and len(value) % 4 == 0 for value in values)
    if texts and any(_BASE64.fullmatch(value) for value in values):
        return "undeclared, and holds base64, as decimals have without schemas", "decimal(precision,scale), or bytes"
    return None


def _raw(record: Record, table: TablePlan) -> Mapping[str, Any]:
    """The row as the wire has it, empty where a schema stands around it."""
    form = table.format
    try:
        translated = form.translate(record) if form is not None and form.translate is not None else record
        if parse_object(translated.value)[1] is not None:
            return {}
        event = decode_record(record, form=form, table=table.table)
    except DecodeError:
        return {}
    return {} if event is None else _values(event)


def _values(event: ChangeEvent) -> dict[str, Any]:
    if event.mutation is None:
        return event.row or {}
    return {column: cell.value for column, cell in event.mutation.cells.items() if isinstance(cell, Cell)}


async def _read(settings: KafkaSettings, names: Iterable[str]) -> tuple[set[str], dict[str, Topic]]:
    """(all topics of Kafka, those that were asked for with records of their ends)."""
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    async with _admin(settings) as admin:
        existing = set(await admin.list_topics())
        wanted = sorted({*names} & existing)
        described = await admin.describe_topics(wanted) if wanted else []
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted]
        responses = await admin.describe_configs(resources) if resources else []
    configs = {
        name: {entry[0]: entry[1] for entry in entries}
        for response in responses
        for _code, _message, _kind, name, entries in response.resources
    }
    found = {
        item["topic"]: Topic(item["topic"], len(item["partitions"]), configs.get(item["topic"], {}))
        for item in described
    }
    for topic in found.values():
        topic.records = await _ends(settings, topic)
    return existing, found


@asynccontextmanager
async def _admin(settings: KafkaSettings) -> AsyncIterator[Any]:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(**settings.client())
    with mapped_errors(settings.bootstrap_servers):
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()


async def _ends(settings: KafkaSettings, topic: Topic) -> list[Record]:
    import asyncio

    from aiokafka import AIOKafkaConsumer, TopicPartition

    partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
    consumer = AIOKafkaConsumer(**settings.client(), enable_auto_commit=False)
    found: list[Record] = []
    with mapped_errors(settings.bootstrap_servers):
        await consumer.start()
        try:
            consumer.assign(partitions)
            begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
            for one in partitions:
                consumer.seek(one, max(begins[one], ends[one] - SAMPLE_RECORDS))
            async with asyncio.timeout(READ_TIMEOUT_S):
                for one in partitions:
                    while await consumer.position(one) < ends[one]:
                        for records in (await consumer.getmany(one, timeout_ms=500)).values():
                            found += [_record(record) for record in records]
        finally:
            await consumer.stop()
    return found


def _record(record: Any) -> Record:
    headers = tuple(record.headers)
    return Record(
        record.topic, record.partition, record.offset, record.key, record.value, record.timestamp or 0, headers
    )
