"""`ctxpipe bench lag`: what the collector itself costs, on a cluster where every partition lags and moves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer
    from aiokafka.structs import TopicPartition

GROUP = "ctxpipe-bench-lag"
TOPICS = 10
RECORD = json.dumps(
    {
        "before": None,
        "after": {"id": 1, "carrier": "UA", "origin": "EWR", "destination": "IAH", "note": "x" * 200},
        "source": {"connector": "postgresql", "name": "shop", "ts_ms": 1_700_000_000_000, "table": "flights"},
        "op": "u",
        "ts_ms": 1_700_000_000_001,
    }
).encode()


@click.command()
@click.option("--partitions", default=1_000, show_default=True, type=click.IntRange(TOPICS, 20_000))
@click.option("--records", default=50, show_default=True, type=click.IntRange(10, 10_000), help="Of each partition.")
@click.option("--samples", default=6, show_default=True, type=click.IntRange(2, 100))
@click.option("--bootstrap-servers", default=None, help="A Kafka that runs; by default a temporary one is started.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line of standard output.")
def command(
    partitions: int, records: int, samples: int, bootstrap_servers: str | None, report: Path | None, as_json: bool
) -> None:
    """Processor time of the collector per sample: all partitions lag, all commits move between two samples, so that
    every record is read anew, every partition has series of its own, and each sample is scraped once."""
    import asyncio
    import logging

    from pipeline.commands.bench_transport import _broker, _environment

    logging.basicConfig(level=logging.CRITICAL)
    with _broker(bootstrap_servers) as address:
        figures = asyncio.run(_measure(address, partitions, records, samples))
    figures["environment"] = _environment()
    if report is not None:
        report.write_text(json.dumps(figures, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"{partitions} partitions: {figures['cpu_s']['median']} s of processor time per sample, ", nl=False)
    click.echo(f"{figures['cpu_s']['greatest']} s at most; {figures['wall_s']['median']} s until it was told")
    click.echo(f"where nothing moves: {figures['idle_cpu_s']} s")


async def _measure(address: str, partitions: int, records: int, samples: int) -> dict[str, Any]:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    names = [f"{GROUP}-{os.getpid()}-{number}" for number in range(TOPICS)]
    each = partitions // TOPICS
    places = [TopicPartition(name, number) for name in names for number in range(each)]
    group = f"{GROUP}-{os.getpid()}"
    await _prepare(address, names, each, records)
    try:
        async with AIOKafkaConsumer(bootstrap_servers=address, group_id=group, enable_auto_commit=False) as consumer:
            consumer.assign(places)
            return await _sampled(address, group, consumer, places, records, samples)
    finally:
        await _remove(address, names)


async def _sampled(
    address: str,
    group: str,
    consumer: AIOKafkaConsumer,
    places: Sequence[TopicPartition],
    records: int,
    samples: int,
) -> dict[str, Any]:
    import statistics
    import time

    from pipeline.core import metrics
    from pipeline.ops.lag.collector import Collector, Settings
    from pipeline.ops.lag.judging import Judge, Watched
    from pipeline.ops.lag.publishing import LagMetrics
    from pipeline.ops.lag.sampling import Sampler
    from pipeline.ops.lag.windows import Rules

    watched = Watched((group,))
    sampler = Sampler(address, timeout_s=30.0, records_max=len(places))
    collector = Collector(
        sampler, Judge(Rules(), watched), Settings(timeout_s=30.0, has=watched.has), (), LagMetrics(partitions=True)
    )
    cpu_s: list[float] = []
    wall_s: list[float] = []
    try:
        for number in range(samples + 1):
            if number < samples:
                offset = 1 + number * (records - 2) // samples
                await consumer.commit(dict.fromkeys(places, offset))
            began_s, began_cpu_s = time.monotonic(), time.process_time()
            report = await collector.collect()
            metrics.expose()
            cpu_s.append(time.process_time() - began_cpu_s)
            wall_s.append(time.monotonic() - began_s)
    finally:
        await collector.close()
    (found,) = report.groups
    known = sum(one.lag_s is not None for topic in found.topics for one in topic.partitions)
    warm = cpu_s[1:samples]
    return {
        "partitions": len(places),
        "known": known,
        "lag_records": found.lag_records,
        "cpu_s": {"first": round(cpu_s[0], 3), **_shares(warm, statistics.median(warm))},
        "wall_s": _shares(wall_s[1:samples], statistics.median(wall_s[1:samples])),
        "idle_cpu_s": round(cpu_s[-1], 3),
    }


def _shares(values: Sequence[float], median: float) -> dict[str, float]:
    return {"median": round(median, 3), "greatest": round(max(values), 3)}


async def _prepare(address: str, names: Sequence[str], partitions: int, records: int) -> None:
    """Topics whose partitions all have so many records, in batches of ten."""
    import asyncio

    from aiokafka import AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=120_000)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=address, linger_ms=20, request_timeout_ms=120_000) as producer:
        for _ in range(0, records, 10):
            sends = [
                await producer.send(name, RECORD, key=b"1", partition=number)
                for name in names
                for number in range(partitions)
                for _ in range(10)
            ]
            await asyncio.gather(*sends)


async def _remove(address: str, names: Sequence[str]) -> None:
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=address, request_timeout_ms=120_000)
    await admin.start()
    try:
        await admin.delete_topics(list(names))
    finally:
        await admin.close()
