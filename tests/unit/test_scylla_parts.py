"""The smaller parts of the Scylla source: configuration, sharing, the outbox."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from connectors.registry import configure_one
from connectors.scylla.config import ScyllaConfig
from connectors.scylla.outbox import Item, Outbox
from connectors.scylla.plugin import PLUGIN
from connectors.scylla.sharing import least
from connectors.source import KeepingAll, Topics, UsingKafka
from pipeline.core.errors import ConfigError, Retryable

SECTION = {"connector": "scylla", "hosts": ["db"], "keyspace": "shop", "tables": ["orders"], "password": "hush"}


def test_a_section() -> None:
    config = configure_one(PLUGIN, "events", SECTION).config
    assert isinstance(config, ScyllaConfig) and config.confidence_us == 30_000_000
    assert config.topic("orders") == "events.shop.orders" and "hush" not in repr(config)
    assert PLUGIN.can(Topics) and PLUGIN.can(KeepingAll) and PLUGIN.can(UsingKafka)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tables": ["orders", "orders"]}, "a table is listed twice"),
        ({"tables": ["orders_scylla_cdc_log"]}, "write the table, not its log"),
        ({"tables": ["shop.orders"]}, "without their keyspace"),
        ({"shard": {"number": 2, "of": 2}}, "is not below"),
        ({"confidence": 3}, "unknown key; did you mean"),
    ],
)
def test_mistakes(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configure_one(PLUGIN, "events", {**SECTION, **wrong})


def test_the_least_floor_of_several_positions() -> None:
    def position(until_us: int, snapshot: Any = None) -> dict[str, Any]:
        return {"snapshot": snapshot, "tables": {"t": {"until_us": until_us}}}

    assert least([position(5), position(3)], "t") == 3
    assert least([position(5), None], "t") is None and least([position(5)], "other") is None
    assert least([position(5, {"tables": ["t"]})], "t") is None, "its snapshot goes on"


async def test_the_outbox_keeps_order_and_measure() -> None:
    outbox = Outbox(10)
    for number in range(3):
        await outbox.put(Item([], 6, newest_us=number))
        if number == 1:
            break
    waiting = asyncio.create_task(outbox.put(Item([], 6, newest_us=2, steady=True)))
    await asyncio.sleep(0)
    assert not waiting.done(), "more than ten bytes wait"
    assert [item.newest_us for item in await outbox.take(100)] == [0, 1]
    await waiting
    await outbox.put(Item([], 1, newest_us=3))
    outbox.fail(Retryable("away"))
    assert [item.newest_us for item in await outbox.take(100)] == [2], "up to a steady one"
    assert [item.newest_us for item in await outbox.take(100)] == [3]
    with pytest.raises(Retryable, match="away"):
        await outbox.take(100)
