"""How fast records reach an agent: stock Faust, our transport and bare aiokafka over the same topic, in turns."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import NotLeaderForPartitionError

from pipeline.core.errors import EnvironmentProblem
from pipeline.streams.topics import Topics
from pipeline.streams.transport import RecordBatchSchema

FETCH_BYTES = 2 << 20
POLL_RECORDS = 10_000
ROUND_TIMEOUT_S = 120.0
STOCK_RECORDS_MAX = 15_000


@dataclass(frozen=True, slots=True)
class TransportLoad:
    """What is measured: so many records, each of so many bytes; stock Faust reads only the first of them."""

    records: int = 200_000
    record_bytes: int = 500
    partitions: int = 4
    rounds: int = 3


async def measure_transport(bootstrap: str, load: TransportLoad, told: Callable[[str], None]) -> dict[str, Any]:
    """Rates in records per second, medians over the rounds, and the medians of the ratios within a round."""
    topic = f"ctxpipe.bench.{time.time_ns()}"
    topics = Topics(bootstrap, topic)
    await topics.create(topic, load.partitions, 1, {})
    await topics.stop()
    told(f"writing {load.records:,} records of {load.record_bytes} B")
    await _fill(bootstrap, topic, load)
    stock_records = min(load.records, STOCK_RECORDS_MAX)
    rates: dict[str, list[float]] = {"stock": [], "ours": [], "aiokafka": []}
    for number in range(load.rounds):
        for name, run in (("stock", _stock), ("ours", _ours), ("aiokafka", _bare)):
            wanted = stock_records if name == "stock" else load.records
            rates[name].append(await asyncio.wait_for(run(bootstrap, topic, wanted), ROUND_TIMEOUT_S))
        told(f"round {number + 1}: " + ", ".join(f"{name} {found[-1]:,.0f}/s" for name, found in rates.items()))
    return {
        "ours_vs_stock": round(_ratio(rates["ours"], rates["stock"]), 2),
        "ours_vs_aiokafka": round(_ratio(rates["ours"], rates["aiokafka"]), 2),
        "records_per_s": {name: round(statistics.median(found)) for name, found in rates.items()},
        "rounds": {name: [round(rate) for rate in found] for name, found in rates.items()},
        "records": {"stock": stock_records, "ours": load.records, "aiokafka": load.records},
        "record_bytes": load.record_bytes,
        "partitions": load.partitions,
    }


def _ratio(ours: list[float], others: list[float]) -> float:
    return statistics.median(mine / other for mine, other in zip(ours, others, strict=True))


async def _fill(bootstrap: str, topic: str, load: TransportLoad) -> None:
    value = b"x" * load.record_bytes
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for partition in range(load.partitions):
            left = load.records // load.partitions + (partition < load.records % load.partitions)
            while left:
                batch = producer.create_batch()
                while left and batch.append(key=None, value=value, timestamp=None) is not None:
                    left -= 1
                try:
                    await (await producer.send_batch(batch, topic, partition=partition))
                except NotLeaderForPartitionError as error:
                    raise EnvironmentProblem("Kafka is still choosing leaders; run the benchmark again") from error


def _app(bootstrap: str, scheme: str) -> Any:
    app = faust.App(
        f"ctxpipe.bench.{time.time_ns()}",
        broker=f"{scheme}://{bootstrap.replace(',', ';')}",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES,
        broker_max_poll_records=POLL_RECORDS,
        broker_commit_interval=0.5,
    )
    app._create_directories = lambda: None
    return app


async def _stock(bootstrap: str, topic: str, wanted: int) -> float:
    app = _app(bootstrap, "kafka")
    channel = app.topic(topic, value_type=bytes, value_serializer="raw", key_type=bytes, key_serializer="raw")
    gauge = _Gauge(wanted)

    @app.agent(channel)  # type: ignore[untyped-decorator]
    async def read(stream: Any) -> None:
        async for _ in stream:
            gauge.count(1)

    return await _timed(app, gauge)


async def _ours(bootstrap: str, topic: str, wanted: int) -> float:
    app = _app(bootstrap, "kafkabatch")
    gauge = _Gauge(wanted)

    @app.agent(app.topic(topic, schema=RecordBatchSchema(), acks=False))  # type: ignore[untyped-decorator]
    async def read(stream: Any) -> None:
        async for batch in stream:
            if batch.begin():
                for _ in batch.records:
                    pass
                gauge.count(len(batch.records))
                batch.finish()
                batch.release()

    return await _timed(app, gauge)


async def _bare(bootstrap: str, topic: str, wanted: int) -> float:
    gauge = _Gauge(wanted)
    async with AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=FETCH_BYTES,
        max_poll_records=POLL_RECORDS,
    ) as consumer:
        while not gauge.full.is_set():
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                for _ in records:
                    pass
                gauge.count(len(records))
    return gauge.rate()


async def _timed(app: Any, gauge: _Gauge) -> float:
    try:
        await app.start()
        waiting: Awaitable[Any] = gauge.full.wait()
        await asyncio.wait_for(waiting, ROUND_TIMEOUT_S)
        return gauge.rate()
    finally:
        await app.stop()


class _Gauge:
    """Counts records; the time runs from the first arrival to the last, so that joining a group does not count."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.full = wanted, asyncio.Event()
        self._seen, self._first, self._started, self._ended = 0, 0, 0.0, 0.0

    def count(self, records: int) -> None:
        if not self._seen:
            self._started, self._first = time.perf_counter(), records
        self._seen += records
        if self._seen >= self.wanted and not self.full.is_set():
            self._ended = time.perf_counter()
            self.full.set()

    def rate(self) -> float:
        """Records per second after the first arrival."""
        return (self._seen - self._first) / max(self._ended - self._started, 1e-9)
