"""The process that the suite kills: runs a source, tells its batches on stdout, acknowledges when stdin says stored."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import Any

import msgspec

from connectors.publisher import KafkaSettings
from connectors.source import Batch, Source, UsingKafka


async def _main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.readline())
    config = _named(order["config"]).model_validate(order["section"])
    source: Source = _named(order["source"])(config)
    if isinstance(source, UsingKafka):
        source.use_kafka(KafkaSettings(bootstrap_servers=order["kafka"], partitions=1))
    await source.open(order["position"])
    while True:
        batch = await source.read()
        sys.stdout.buffer.write(msgspec.json.encode(_told(batch)) + b"\n")
        sys.stdout.buffer.flush()
        if batch.position is not None:
            if not await asyncio.to_thread(sys.stdin.buffer.readline):
                return  # nobody is there any more
            await source.acknowledge(batch.position)


def _told(batch: Batch) -> dict[str, Any]:
    return {"records": [(one.topic, one.key, one.value) for one in batch.records], "position": batch.position}


def _named(place: list[str]) -> Any:
    found: Any = importlib.import_module(place[0])
    for part in place[1].split("."):
        found = getattr(found, part)
    return found


if __name__ == "__main__":
    asyncio.run(_main())
