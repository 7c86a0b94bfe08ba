"""A small consumer for tests of lag, as a process of its own so that it can be stopped, frozen and rewound for real.

    python -m tests.support.lag_consumer BOOTSTRAP TOPIC GROUP RATE_FILE LOG_FILE [SESSION_TIMEOUT_MS]

It does so many records/s as RATE_FILE says at each moment (0: it polls and does nothing), and commits after every small
batch. A line of LOG_FILE per commit: microseconds since 1970, partition, committed offset.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition

BATCH_S = 0.05


async def consume(bootstrap: str, topic: str, group: str, rate: Path, log: Path, session_timeout_ms: int) -> None:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=session_timeout_ms,
        heartbeat_interval_ms=300,
        metadata_max_age_ms=1000,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await consumer.start()
    with log.open("a", buffering=1) as lines:
        next_s = time.monotonic()
        while not stop.is_set():
            records_max = int(float(rate.read_text() or 0) * BATCH_S)  # noqa: ASYNC240 - a few bytes of a local file
            if records_max > 0:
                found = await consumer.getmany(timeout_ms=20, max_records=records_max)
                offsets = {partition: records[-1].offset + 1 for partition, records in found.items() if records}
                if offsets:
                    await _commit(consumer, offsets, lines)
            next_s = max(next_s + BATCH_S, time.monotonic() - 0.5)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.001, next_s - time.monotonic()))
    await consumer.stop()


async def _commit(consumer: AIOKafkaConsumer, offsets: dict[TopicPartition, int], lines: object) -> None:
    await consumer.commit(offsets)
    now_us = time.time_ns() // 1000
    for partition, offset in offsets.items():
        print(now_us, partition.partition, offset, file=lines)  # type: ignore[call-overload]


if __name__ == "__main__":
    where, name, of, rate_file, log_file, *rest = sys.argv[1:]
    asyncio.run(consume(where, name, of, Path(rate_file), Path(log_file), int(rest[0]) if rest else 10_000))
