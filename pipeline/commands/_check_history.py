"""For `ctxpipe check`: what counts tokens, and what the history of a context may cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigError, CtxpipeError, EnvironmentProblem

if TYPE_CHECKING:
    from connectors.source import Finding
    from pipeline.core.config import Config
    from schemas.context import ContextSpec
    from schemas.fan_out import FanOut

DAY_S = 86_400
SAMPLE_KEYS = 200
TIMEOUT_S = 5.0


def check_tokenizer(config: Config, spec: ContextSpec) -> list[Finding]:
    """Nothing where the spec names none."""
    from connectors.source import Finding
    from pipeline.streams.token_counting import token_counting

    name = None if spec.text is None else spec.text.tokenizer
    if name is None:
        return []
    subject = f"context {spec.context}: tokens"
    try:
        token_counting(spec, config.embedding)
    except (ConfigError, EnvironmentProblem) as error:
        return [Finding("unfit", subject, str(error))]
    return [Finding("ok", subject, f"of every section are counted by {name}")]


def tokenizer_digest(config: Config, spec: ContextSpec) -> str | None:
    """As workers keep it beside a version's spec; None where it can't be read, which is told elsewhere."""
    from pipeline.streams.token_counting import token_counting

    try:
        return token_counting(spec, config.embedding).digest
    except (ConfigError, EnvironmentProblem):
        return None


async def check_history(
    config: Config, spec: ContextSpec, fan_outs: Mapping[str, FanOut], kafka: bool, redis: bool
) -> list[Finding]:
    """A note with the changes of the last day and the size of what is stored, as far as `kafka` and `redis` answer;
    nothing where the spec keeps no history."""
    from connectors.source import Finding

    if spec.history is None:
        return []
    writes = await _writes_of_a_day(config, spec, fan_outs) if kafka else None
    size = await _bytes_of_a_bundle(config, spec) if redis else None
    kept_s = spec.history.retention_s
    message = f"former bundles are kept for {kept_s:,} s; {cost(writes, size, kept_s)}"
    if spec.serving.time_to_live_s is not None:
        message += "; bundles with a time to live are stored twice from the start"
    return [Finding("note", f"context {spec.context}: history", message)]


def cost(writes_day: float | None, size: float | None, retention_s: int) -> str:
    """`writes_day`: bundles and fragments that a day writes; `size` of one in bytes. None: not known."""
    if writes_day is None or size is None:
        lacking = "changes per second" if writes_day is None else "bytes per bundle"
        known = "" if size is None else f", at {size:,.0f} bytes each"
        return f"what that costs is unknown ({lacking} could not be measured){known}"
    daily, rate = writes_day * size, writes_day / DAY_S
    held = rate * retention_s * size
    return (
        f"at the {rate:,.3g} writes/s of the last day (at least) and {size:,.0f} bytes each, a day adds "
        f"{_bytes(daily)} and {_bytes(held)} lie there at once"
    )


async def _writes_of_a_day(config: Config, spec: ContextSpec, fan_outs: Mapping[str, FanOut]) -> float | None:
    from pipeline.composition import choose

    topics = {name: config.topic(entity.source, entity.table) for name, entity in spec.entities.items()}
    try:
        changes = await _changes_of_a_day(config, set(topics.values()))
    except CtxpipeError:
        return None
    writes = float(changes[topics[spec.root]])
    for choice in choose(spec, fan_outs).values():
        copied = choice.copied.average if choice.composition == "copy" and choice.copied is not None else 1.0
        writes += changes[topics[choice.section.entity]] * copied
    return writes


async def _changes_of_a_day(config: Config, topics: Iterable[str]) -> dict[str, int]:
    """Topic → records of the last 24 hours; compacted ones count too. Raises Retryable, Fatal."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from connectors.publisher import mapped_errors
    from pipeline.commands._lineage_records import partitions_of
    from pipeline.commands._sources import kafka_settings
    from pipeline.core.clock import SystemClock

    settings, found = kafka_settings(config), {}
    since_ms = SystemClock().now_us() // 1000 - DAY_S * 1000
    for topic in topics:
        places = [TopicPartition(topic, number) for number in range(await partitions_of(settings, topic))]
        found[topic] = 0
        if not places:
            continue
        with mapped_errors(settings.bootstrap_servers):
            consumer = AIOKafkaConsumer(**settings.client(), enable_auto_commit=False)
            await consumer.start()
            try:
                consumer.assign(places)
                ends = await consumer.end_offsets(places)
                starts = await consumer.offsets_for_times(dict.fromkeys(places, since_ms))
            finally:
                await consumer.stop()
        found[topic] = sum(ends[place] - start.offset for place, start in starts.items() if start is not None)
    return found


async def _bytes_of_a_bundle(config: Config, spec: ContextSpec) -> float | None:
    """The mean over some bundles and fragments; None where there are none yet, or Redis does not tell."""
    from pipeline.stores.redis_bundles import RedisBundles
    from pipeline.stores.redis_client import RedisClient
    from pipeline.stores.redis_store import context_settings
    from schemas.bundle import encode_stored

    client = RedisClient(context_settings(config, spec, TIMEOUT_S))
    bundles, keys = RedisBundles(client), []
    try:
        async for key in bundles.scan():
            keys.append(key)
            if len(keys) == SAMPLE_KEYS:
                break
        sizes = [len(encode_stored(stored)) for stored in await bundles.get(keys) if stored is not None]
    except CtxpipeError:
        return None
    finally:
        await client.close()
    return sum(sizes) / len(sizes) if sizes else None


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
