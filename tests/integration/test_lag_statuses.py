"""Every status by really stopping, freezing and rewinding real consumers, as the collector sees them (must show 1)."""

from __future__ import annotations

import asyncio
import math
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from deploy.local import install
from pipeline.ops.lag.model import OK, REWIND, STALL, STOP, UNKNOWN, WARN
from tests.support.cli import ROOT
from tests.support.lag_world import Consumer, Watch, collecting, commit, numbers_in, partitions_of, writing
from tests.support.streams import make_topic, new_name

pytestmark = [pytest.mark.servers, pytest.mark.timeout(120)]


@pytest.fixture
def java_consumer(kafka_bootstrap: str) -> Iterator[Callable[[str, str], subprocess.Popen[bytes]]]:
    """Kafka's own consumer, which speaks the newer protocol of groups (KIP-848)."""
    started: list[subprocess.Popen[bytes]] = []

    def start(topic: str, group: str) -> subprocess.Popen[bytes]:
        install.ensure(["kafka"])
        modules = subprocess.run([install.java_program(), "--list-modules"], capture_output=True, text=True, check=True)
        if "jdk.compiler" not in modules.stdout:
            pytest.skip("this Java runs no source files; a JDK does")
        java = [install.java_program(), "-Xmx128m", "-XX:+UseSerialGC", "-cp", f"{install.jars('kafka')}/*"]
        command = [*java, str(ROOT / "tests" / "support" / "NewGroupConsumer.java"), kafka_bootstrap, topic, group]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


async def test_a_group_of_the_newer_protocol(
    kafka_bootstrap: str, java_consumer: Callable[[str, str], subprocess.Popen[bytes]]
) -> None:
    topic, group = new_name("orders"), new_name("java")
    await make_topic(kafka_bootstrap, topic, 2)
    async with (
        writing(kafka_bootstrap, topic, 2) as writer,
        collecting(kafka_bootstrap, group) as collector,
        Watch(collector, group).running() as watch,
    ):
        await writer.write(50)
        process = java_consumer(topic, group)
        found = await watch.until(lambda one: one.status == OK and len(partitions_of(one)) == 2, "OK", 60.0)
        assert (found.state, found.members) == ("Stable", 1)
        process.send_signal(signal.SIGSTOP)
        await writer.write(50)
        await watch.until(lambda one: one.status == STALL and one.members == 1, "it is there, and nothing moves")


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
