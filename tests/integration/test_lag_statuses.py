"""Every status by really stopping, freezing and rewinding real consumers, as the collector sees them (must show 1)."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import msgspec
import pytest

from pipeline.ops.lag.model import OK, REWIND, STALL, STOP, UNKNOWN, WARN
from tests.support.lag_world import Consumer, Watch, collecting, commit, numbers_in, partitions_of, writing
from tests.support.streams import make_topic, new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]


async def test_every_status_of_a_real_consumer(kafka_bootstrap: str, tmp_path: Path) -> None:
    topic, group = new_name("orders"), new_name("readers")
    await make_topic(kafka_bootstrap, topic, 1)
    consumer: Consumer | None = None
    async with (
        writing(kafka_bootstrap, topic) as writer,
        collecting(kafka_bootstrap, group, expected={group: (topic,)}) as collector,
        Watch(collector, group).running() as watch,
    ):
        try:
            await writer.write(200)
            found = await watch.until(lambda one: one.lag_records == 200, "what waits for a group that never was")
            assert (found.status, found.state) == (UNKNOWN, "Missing") and found.lag_s is not None

            consumer = Consumer(tmp_path, kafka_bootstrap, topic, group, rate=5_000)
            found = await watch.until(lambda one: one.status == OK and one.members == 1 and not one.lag_records, "OK")
            assert found.lag_s == 0.0 and found.state == "Stable"

            consumer.rate(100)
            load = asyncio.create_task(writer.steadily(400, 12.0))
            found = await watch.until(lambda one: partitions_of(one)[0].status == WARN, "WARN")
            assert "commits advance" in partitions_of(found)[0].reason and found.velocity and found.velocity > 50
            await watch.until(
                lambda one: one.status == STALL and "grew" in one.reason, "a lag that only grows is wrong"
            )
            load.cancel()

            consumer.freeze()
            found = await watch.until(lambda one: partitions_of(one)[0].status == STALL, "STALL")
            assert found.members == 1 and "nothing moved" in partitions_of(found)[0].reason
            consumer.resume()
            consumer.rate(20_000)
            await watch.until(lambda one: one.status == OK and not one.lag_records, "OK again")

            consumer.end()
            await writer.write(100)
            found = await watch.until(lambda one: one.status == STOP, "STOP")
            assert (found.state, found.members, found.lag_records) == ("Empty", 0, 100)
            assert found.lag_s and found.lag_s > 0, "the lag goes on growing when nobody commits"

            await commit(kafka_bootstrap, group, {(topic, 0): 0})
            consumer = Consumer(tmp_path, kafka_bootstrap, topic, group, rate=20)
            found = await watch.until(lambda one: one.status == REWIND and one.members == 1, "REWIND")
            assert "went back" in found.reason
            consumer.rate(50_000)
            found = await watch.until(lambda one: partitions_of(one)[0].status == OK and not one.lag_records, "done")
            assert found.unsettled and found.changes >= 3, "it came, went and came again within minutes"
            assert (found.status, "rebalances" in found.reason) == (WARN, True)
        finally:
            if consumer is not None:
                consumer.end()
        for report in watch.reports:
            assert all(math.isfinite(number) for number in numbers_in(msgspec.to_builtins(report)))
            assert all((one.lag_records or 0) >= 0 for one in watch.groups() for one in partitions_of(one))
