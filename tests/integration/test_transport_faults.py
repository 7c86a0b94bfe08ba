"""Worker processes that come, go and are killed under load: no record is missing, and marks never lie."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.support.eventually import eventually
from tests.support.streams import committed, make_topic, new_name, produce

pytestmark = pytest.mark.servers

PARTITIONS = 6
RECORDS = 14_400


class Workers:
    """Worker processes of one context."""

    def __init__(self, bootstrap: str, redis_url: str, context: str, topic: str, log: Path) -> None:
        self.arguments = [bootstrap, redis_url, context, topic]
        self.log, self.running = log, []

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.stream_worker", *self.arguments]
        with self.log.open("a") as log:
            self.running.append(
                subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, "PYTHONPATH": "."})
            )

    async def end(self, number: int, how: signal.Signals) -> int:
        """Ends the oldest worker and returns its exit code."""
        worker = self.running.pop(number)
        await eventually(lambda: f"worker {worker.pid} is ready" in self.log.read_text(), timeout_s=60)
        worker.send_signal(how)
        return await asyncio.to_thread(worker.wait, 30)


@pytest.fixture
def workers(kafka_bootstrap: str, redis_url: str, tmp_path: Path) -> Iterator[Callable[[str, str], Workers]]:
    made = []

    def make(context: str, topic: str) -> Workers:
        made.append(Workers(kafka_bootstrap, redis_url, context, topic, tmp_path / "workers.log"))
        return made[-1]

    yield make
    for group in made:
        for worker in group.running:
            worker.kill()
            worker.wait()
        print(group.log.read_text()[-6000:])


async def test_no_record_is_missing_after_workers_come_and_go_and_are_killed(
    kafka_bootstrap: str, redis_url: str, workers: Callable[[str, str], Workers]
) -> None:
    context, topic = new_name("faults"), new_name("t")
    await make_topic(kafka_bootstrap, topic, PARTITIONS)
    redis: Redis = Redis.from_url(redis_url)
    group = workers(context, topic)

    def handled(at_least: int) -> Awaitable[int]:
        async def count() -> int:
            return int(await redis.get("handled") or 0)

        return eventually(count, lambda seen: seen >= at_least, what=f"{at_least} handled", timeout_s=60)

    async def load() -> None:
        for _ in range(12):
            await produce(kafka_bootstrap, topic, RECORDS // 12, PARTITIONS)

    group.start()
    loading = asyncio.ensure_future(load())
    await handled(RECORDS // 20)
    group.start()
    group.start()
    await handled(RECORDS // 6)
    assert await group.end(0, signal.SIGKILL) == -signal.SIGKILL
    await handled(RECORDS // 3)
    assert await group.end(0, signal.SIGTERM) == 0
    group.start()
    await handled(RECORDS // 2)
    assert await group.end(0, signal.SIGKILL) == -signal.SIGKILL
    await loading
    await eventually(
        lambda: committed(kafka_bootstrap, context),
        lambda found: (
            [found.get((topic, number)) for number in range(PARTITIONS)] == [RECORDS // PARTITIONS] * PARTITIONS
        ),
        timeout_s=60,
    )
    for number in range(PARTITIONS):
        seen = {int(offset) for offset in await redis.smembers(f"seen:{number}")}
        assert seen == set(range(RECORDS // PARTITIONS)), f"missing in {number}"
    repeated = int(await redis.get("handled")) - RECORDS
    print(f"{RECORDS} records, 0 missing, {repeated} repeated")
    await redis.aclose()
