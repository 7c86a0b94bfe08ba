"""`ctxpipe verify` as typed, beside a real worker: records come through Kafka, rows from Postgres and Cassandra."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from deploy.local.cassandra import CassandraServer
from deploy.local.kafka import KafkaServer
from schemas.record import Record
from schemas.topics import HEARTBEAT_PREFIX
from tests.integration.test_verify_wide_columns import HOURS, T, World, open_world
from tests.support.cli import ctxpipe
from tests.support.eventually import eventually
from tests.support.streams import make_topic

pytestmark = pytest.mark.servers

PARTITIONS = 2
LATER_US = 4_102_444_800_000_000
"""The year 2100."""


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Starts `ctxpipe worker` in the test's folder; ends it after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with (tmp_path / "worker.log").open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": os.getcwd()}
            command = [sys.executable, "-m", "pipeline.cli", "worker"]
            started.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=environment))

    yield start
    for worker in started:
        worker.terminate()
        worker.wait(40)


def write_files(folder: Path, world: World, bootstrap: str) -> None:
    document = world.config.model_dump(mode="json")
    document |= {"kafka": {"bootstrap_servers": bootstrap, "partitions": PARTITIONS}, "contexts": ["*.context.yaml"]}
    (folder / "ctxpipe.yaml").write_text(json.dumps(document))
    for spec in (world.flight, world.reading):
        text = spec.model_dump_json(exclude_none=True, exclude_defaults=True)
        (folder / f"{spec.context}.context.yaml").write_text(text)


def postgres_heartbeat(topic: str) -> Record:
    origin: dict[str, Any] = {"version": "ctxpipe-0.1.0", "connector": "postgresql", "name": "nyc", "db": "d"}
    origin |= {"ts_us": LATER_US, "ts_ms": LATER_US // 1000, "lsn": 1 << 40, "sequence": f'["{1 << 40}","{1 << 40}"]'}
    message = {"prefix": HEARTBEAT_PREFIX, "content": ""}
    value = {"op": "m", "source": origin, "message": message, "ts_ms": 1}
    return Record(topic, 0, 0, b'{"__ctxpipe":"heartbeat"}', json.dumps(value).encode())


async def publish(bootstrap: str, world: World, records: list[Record]) -> None:
    """The records by key, then to every partition that everything has been published."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for record in records:
            partition = zlib.crc32(record.key or b"") % PARTITIONS
            await producer.send_and_wait(record.topic, record.value, record.key, partition)
        beats = [postgres_heartbeat(f"nyc.public.{table}") for table in ("flights", "airports")]
        beats += [table.heartbeat(LATER_US) for table in (world.weather, world.readings)]
        for beat in beats:
            for partition in range(PARTITIONS):
                await producer.send_and_wait(beat.topic, beat.value, beat.key, partition)


async def test_verify_answers_with_exit_codes(
    cassandra_server: CassandraServer,
    redis_url: str,
    postgres_dsn: str,
    make_kafka: Callable[..., KafkaServer],
    tmp_path: Path,
    start_worker: Callable[[], None],
) -> None:
    kafka = make_kafka().address
    async with open_world(cassandra_server, redis_url, postgres_dsn, "scylla", applied=False) as world:
        write_files(tmp_path, world, kafka)
        topics = ["nyc.public.flights", "nyc.public.airports", world.weather.topic, world.readings.topic]
        for topic in topics:
            await make_topic(kafka, topic, PARTITIONS)
        start_worker()
        await publish(kafka, world, await world.fill())

        def serves() -> bool:
            return ctxpipe("get", "reading", "n|2026-01-02|2026-01-02T01:00:00Z", "--json", folder=tmp_path).code == 0

        await eventually(serves, timeout_s=90, what="the worker has caught up")
        for context, verified in (("flight", 4), ("reading", 5)):
            done = ctxpipe("verify", context, "--json", folder=tmp_path)
            assert done.code == 0, done.err
            assert (done.lines()[-1]["verified"], done.lines()[-1]["mismatches"]) == (verified, 0)

        await world.weather.insert({"origin": "EWR", "hour": HOURS[0], "temp": -1.0}, T + 50)
        done = ctxpipe("verify", "flight", "--keys", "1", "--json", folder=tmp_path)
        assert done.code == 1, done.err
        assert "weather.temp" in {item["path"] for item in done.lines()[-1]["differences"]}

        await world.session.execute(f"DROP TABLE {world.readings.name}")
        done = ctxpipe("verify", "flight", "--json", folder=tmp_path)
        (told,) = done.told()
        assert done.code == 3 and f"source ring: there is no table {world.readings.name} at " in told
