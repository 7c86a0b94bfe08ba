"""The suite's test with everything real: source, publisher and positions on a Kafka, as `ctxpipe connect` puts them."""

from __future__ import annotations

import asyncio
import os
import time

from connectors.assembly import attempts
from connectors.conformance.running import Subject
from connectors.conformance.waiting import eventually
from connectors.publisher import KafkaSettings, read_topic
from connectors.registry import configure_one
from connectors.runtime import Runtime, RuntimeSettings
from connectors.source import SourceRecord


class KafkaTests:
    """Collected where a Kafka can be had: see the option --conformance-kafka."""

    async def test_through_kafka_and_on_after_a_stop(self, subject: Subject, conformance_kafka: str) -> None:
        kafka = KafkaSettings(bootstrap_servers=conformance_kafka, partitions=1)
        name = f"conformance_{os.getpid()}_{time.time_ns() // 1_000_000 % 10**9}"
        configured = configure_one(subject.harness.plugin, name, subject.harness.section())
        topics = configured.topics()

        tasks: list[asyncio.Task[None]] = []

        async def equal() -> bool:
            if tasks[-1].done():
                tasks[-1].result()
            records = [
                SourceRecord(topic, one.key or b"", one.value)
                for topic in topics
                for one in await read_topic(kafka, topic)
            ]
            return subject.fold(records) == await subject.rows()

        for number in range(2):
            await subject.write({1: f"round {number}", 10 + number: "new"})
            runtime = Runtime(attempts(configured, kafka), RuntimeSettings(patient_start=False))
            tasks.append(asyncio.create_task(runtime.run()))
            try:
                assert await eventually(equal, bool, what="Kafka equal to the table", timeout_s=60)
            finally:
                runtime.stop()
                await asyncio.wait_for(tasks[-1], timeout=30)
        assert await equal()
