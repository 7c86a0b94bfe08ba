"""Two processes on one table, with Kafka between them: each row once, and a promise that holds for both."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from connectors.assembly import attempts
from connectors.publisher import KafkaSettings
from connectors.registry import Configured
from connectors.runtime import Runtime, RuntimeSettings
from connectors.scylla.log_statements import Overwrite, Write
from connectors.scylla.plugin import PLUGIN
from deploy.local.cassandra import CassandraServer
from tests.support.eventually import eventually
from tests.support.kafka_records import read_all
from tests.support.scylla import ScyllaTable, now_us, scylla_table

pytestmark = pytest.mark.servers


@asynccontextmanager
async def process(made: ScyllaTable, bootstrap: str, number: int) -> AsyncIterator[asyncio.Task[None]]:
    config = made.configured(shard={"number": number, "of": 2})
    kafka = KafkaSettings(bootstrap_servers=bootstrap, partitions=2)
    runtime = Runtime(attempts(Configured(PLUGIN, config), kafka), RuntimeSettings(), randomness=random.Random(number))
    task = asyncio.create_task(runtime.run())
    try:
        yield task
    finally:
        runtime.stop()
        with suppress(asyncio.CancelledError):
            await task


def put(number: int) -> Write:
    return Write(kind="insert", key={"p": number, "c": 1}, ts=now_us(), edits={"v": Overwrite(f"row {number}")})


async def write(made: ScyllaTable, numbers: range) -> list[Write]:
    """Each stamped as it is written: one that comes later than the confidence window is rightly not read."""
    written = []
    for number in numbers:
        written.append(put(number))
        await made.writer.write(written[-1])
    return written


async def events(made: ScyllaTable, bootstrap: str) -> list[dict[str, Any]]:
    records = await read_all(bootstrap, [made.config.topic("t")])
    return [msgspec.json.decode(record.value) for record in records]


def promised(found: list[dict[str, Any]]) -> int:
    return max((event["source"]["ts_us"] for event in found if event["op"] == "m"), default=0)


async def test_each_row_once_and_the_slowest_decides(cassandra_server: CassandraServer, kafka_bootstrap: str) -> None:
    columns = "p int, c int, v text, PRIMARY KEY (p, c)"
    async with scylla_table(cassandra_server, columns, name=f"shared{now_us()}") as made:
        async with process(made, kafka_bootstrap, 0), process(made, kafka_bootstrap, 1) as second:
            rows = await write(made, range(50))
            await eventually(
                lambda: events(made, kafka_bootstrap),
                lambda found: promised(found) >= rows[-1].ts,
                what="the first process promises everything",
            )
            second.cancel()
            with suppress(asyncio.CancelledError):
                await second
            lonely = await write(made, range(100, 150))
            own = await eventually(
                lambda: events(made, kafka_bootstrap),
                lambda found: any(event["source"]["ts_us"] >= lonely[0].ts for event in found if event["op"] == "i"),
                what="the first reads on",
            )
            assert promised(own) < lonely[0].ts, "it does not speak for the one that is gone"
        async with process(made, kafka_bootstrap, 0), process(made, kafka_bootstrap, 1):
            found = await eventually(
                lambda: events(made, kafka_bootstrap),
                lambda found: promised(found) >= lonely[-1].ts,
                what="both have caught up",
            )
        values = Counter(event["after"]["v"]["value"] for event in found if event["op"] == "i")
        assert set(values) == {write.edits["v"].value for write in [*rows, *lonely]}  # type: ignore[union-attr]
        assert [values[f"row {number}"] for number in range(50)] == [1] * 50
