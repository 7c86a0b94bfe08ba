"""Names of workers in their group, on a real broker: who comes back gets its own, and nobody else stands still."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from pipeline.stores.memory import MemoryMarks
from pipeline.streams.app import ContextApp
from pipeline.streams.membership import NameTaken
from tests.support.eventually import eventually
from tests.support.streams import NotingFlow, make_app, make_topic, new_name, produce, running

pytestmark = pytest.mark.servers

PARTITIONS, RECORDS = 4, 40
SETTINGS = {"session_timeout_s": 20.0}


def parts(app: ContextApp) -> set[int]:
    return {tp.partition for tp in app.consumer.assignment() if tp.topic.startswith("t_")}


@pytest.mark.parametrize("named", [True, False])
async def test_a_worker_that_comes_back_within_its_session_rebalances_nobody(kafka_bootstrap: str, named: bool) -> None:
    context, topic = new_name("names"), new_name("t")
    await make_topic(kafka_bootstrap, topic, PARTITIONS)
    flows = [NotingFlow() for _ in range(3)]
    marks = MemoryMarks()

    def worker(number: int, name: str) -> ContextApp:
        member = name if named else None
        return make_app(kafka_bootstrap, context, [topic], flows[number], marks, member=member, **SETTINGS)

    def handled() -> int:
        return sum(len(set(flow.seen)) for flow in flows)

    async with AsyncExitStack() as stack, running(worker(0, "pod-0-1")) as stays:
        leaves = await stack.enter_async_context(running(worker(1, "pod-1-1")))
        await eventually(lambda: (parts(stays) | parts(leaves), len(parts(leaves))) == ({0, 1, 2, 3}, 2), timeout_s=60)
        await eventually(lambda: not stays.rebalancing and stays.consumer.placed and leaves.consumer.placed)
        await produce(kafka_bootstrap, topic, RECORDS, PARTITIONS)
        await eventually(lambda: handled() == RECORDS)
        shared, mine, rebalances = parts(leaves), parts(stays), stays.rebalancing_count
        await stack.aclose()
        await produce(kafka_bootstrap, topic, RECORDS, PARTITIONS)
        async with running(worker(2, "pod-1-1")) as returned:
            await eventually(lambda: handled() == 2 * RECORDS, timeout_s=60)
            if named:
                assert parts(returned) == shared and parts(stays) == mine
                assert stays.rebalancing_count == rebalances, "who stayed went on as if nothing had been"
            else:
                await eventually(lambda: stays.rebalancing_count > rebalances)
            assert stays.ended == returned.ended == []


async def test_two_with_one_name_are_told_apart(kafka_bootstrap: str) -> None:
    context, topic = new_name("twins"), new_name("t")
    await make_topic(kafka_bootstrap, topic, 2)
    await produce(kafka_bootstrap, topic, 10, 2)
    flow, other = NotingFlow(), NotingFlow()
    first = make_app(kafka_bootstrap, context, [topic], flow, MemoryMarks(), member="pod-0-1", session_timeout_s=6.0)
    async with running(first):
        await eventually(lambda: len(flow.seen) == 10, timeout_s=60)
        second = make_app(kafka_bootstrap, context, [topic], other, MemoryMarks(), member="pod-0-1", **SETTINGS)
        async with running(second):
            (error,) = (await eventually(lambda: first.ended, timeout_s=60))[:1]
            assert isinstance(error, NameTaken) and "'pod-0-1'" in str(error) and "group.instance.id" in str(error)
