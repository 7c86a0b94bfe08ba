"""Dead letters on a real Kafka: read in windows, decided upon, counted, and missed when a topic drops them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from connectors.set_aside import SetAside
from pipeline.core import metrics
from pipeline.core.errors import EnvironmentProblem
from pipeline.report import DeadLetter
from pipeline.streams.decisions import Decision
from pipeline.streams.letter_box import DeadLetterBox
from pipeline.streams.letter_summary import LetterWatch, publish, summaries
from pipeline.streams.letters import encode_letter
from schemas.record import Record
from schemas.topics import dead_letter_topic
from tests.support.streams import make_topic, new_name

pytestmark = pytest.mark.servers

HOUR_MS = 3_600_000


def letter(offset: int, *keys: str, reason: str = "broken") -> bytes:
    record = Record("shop.public.orders", 0, offset, b'{"id":%d}' % offset, b"x" * 300)
    return encode_letter(DeadLetter(record, reason, "digest", list(keys)), 100_000, 5)


async def bury(bootstrap: str, name: str, values: Sequence[bytes], time_ms: int | None = None) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        sent = [await producer.send(dead_letter_topic(name), value, timestamp_ms=time_ms) for value in values]
        await asyncio.gather(*sent)


async def drop(bootstrap: str, name: str, below: int) -> None:
    """As retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(dead_letter_topic(name), 0): RecordsToDelete(before_offset=below)})
    await admin.close()


async def test_windows_decisions_and_what_a_watch_counts(kafka_bootstrap: str) -> None:
    name = new_name("letters")
    async with DeadLetterBox(kafka_bootstrap, name) as box:
        assert await box.extent() is None and await summaries(kafka_bootstrap, [name]) == []
        await make_topic(kafka_bootstrap, dead_letter_topic(name), **{"retention.ms": str(HOUR_MS)})
        aside = SetAside(reason="too large", topic="shop.public.orders", key='{"id":1}', table="public.orders")
        values = [letter(number, str(number % 40)) for number in range(1_000)]
        await bury(kafka_bootstrap, name, [*values, b"junk", msgspec.json.encode(aside), letter(999, "again")])
        extent = await box.extent()
        assert extent is not None and (extent.first, extent.end) == (0, 1_003)
        parts = [[one.number for one in part] async for part in box.newest_first(0, extent.end)]
        assert len(parts[0]) == 199 and len(parts) == 3, "the first window is small"
        assert [number for part in parts for number in part] == [1_002, 1_001, *range(999, -1, -1)]

        watch = LetterWatch(kafka_bootstrap, [name, new_name("nothing")])
        (first,) = await watch.look()
        assert (first.waiting, first.bundles, first.unplaced, first.expired) == (1_001, 41, 1, 0)
        assert first.expiry_s is not None and HOUR_MS / 1000 - 120 < first.expiry_s <= HOUR_MS / 1000
        now_ms = first.oldest_at_ms + HOUR_MS if first.oldest_at_ms else 0
        await box.decide([Decision(outcome="applied", numbers=[(0, 899), (999, 999)], at_ms=now_ms, by="ann")], 1)
        await box.decide([Decision(outcome="failed", numbers=[(900, 900)], at_ms=now_ms, why="still", attempts=1)], 1)
        (second,) = await watch.look()
        assert (second.waiting, second.failed, second.bundles) == (101, 1, 41)
        await drop(kafka_bootstrap, name, 910)
        (third,) = await watch.look()
        assert (third.waiting, third.failed, third.expired) == (91, 0, 10), "900 to 909 went without anybody"
        (again,) = await summaries(kafka_bootstrap, [name])
        ages = {"oldest_age_s": third.oldest_age_s, "expiry_s": third.expiry_s}
        assert msgspec.structs.replace(again, **ages) == third, "who begins now counts the same"
        publish(third)
        publish(third)
        shown = metrics.expose()[0].decode()
        assert f'ctxpipe_dead_letters_waiting{{context="{name}"}} 91.0' in shown
        assert f'ctxpipe_dead_letters_expired_total{{context="{name}"}} 10.0' in shown
        assert f'ctxpipe_dead_letters_expiry_seconds{{context="{name}"}}' in shown
        await watch.close()


async def test_letters_in_several_partitions_have_no_numbers(kafka_bootstrap: str) -> None:
    name = new_name("letters")
    await make_topic(kafka_bootstrap, dead_letter_topic(name), 2)
    async with DeadLetterBox(kafka_bootstrap, name) as box:
        with pytest.raises(EnvironmentProblem, match="2 partitions"):
            await box.extent()
