"""Clients of Kafka end within their time, whatever becomes of the broker, and rest between questions for metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.streams.kafka_clients import rest_between_metadata, stop_consumer, stop_producer


class Part:
    """A client, a sender or a whole consumer: `how` its stop ends."""

    def __init__(self, how: Callable[[], Any] | None = None) -> None:
        self.how, self.stopped = how, 0
        self.client = self._client = self._sender = self

    async def stop(self) -> None:
        self.stopped += 1
        if self.how is not None:
            await self.how()

    close = stop


async def _hang() -> None:
    await asyncio.Event().wait()


async def _cancelled() -> None:
    """As aiokafka, which awaits a fetch that it has cancelled."""
    raise asyncio.CancelledError


async def _fails() -> None:
    raise OSError("the broker is gone")


@pytest.mark.parametrize("how", [None, _hang, _cancelled, _fails])
async def test_a_stop_ends_and_lets_go_of_everything(how: Callable[[], Any] | None) -> None:
    consumer, client = Part(how), Part()
    consumer._client = client
    await stop_consumer(consumer, limit_s=0.05)
    assert (consumer.stopped, client.stopped) == (1, 0 if how is None else 1)
    producer, sender = Part(how), Part()
    producer.client, producer._sender = client, sender
    await stop_producer(producer, limit_s=0.05)
    assert sender.stopped == (0 if how is None else 1)


async def test_a_stop_that_is_cancelled_from_outside_says_so() -> None:
    stopping = asyncio.create_task(stop_consumer(Part(_hang), limit_s=60))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping


async def test_metadata_is_asked_for_now_and_then() -> None:
    class Client:
        asked: list[float] = []  # noqa: RUF012 - one client

        async def _metadata_update(self, cluster: str, topics: str) -> bool:
            self.asked.append(asyncio.get_running_loop().time())
            return (cluster, topics) == ("cluster", "topics")

    client = Client()
    rest_between_metadata(client, every_s=0.05)
    for _ in range(4):
        assert await client._metadata_update("cluster", "topics")
    gaps = [later - sooner for sooner, later in zip(client.asked, client.asked[1:], strict=False)]
    assert min(gaps) > 0.045
