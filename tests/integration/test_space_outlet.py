"""What workers of a space write, on a real Kafka and Redis: records too big, requests, marks of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from pipeline.core.errors import Retryable
from pipeline.report import BatchReport, DeadLetter
from pipeline.stores.redis_client import RedisSettings
from pipeline.stores.redis_marks import RedisMarks
from pipeline.stores.redis_store import open_stores
from pipeline.streams.letters import decode_letter
from pipeline.streams.publisher import LOOK_AGAIN, REQUEST, Lanes, Publisher
from pipeline.streams.space_outlet import SpaceOutlet
from schemas.record import Record
from schemas.vectors import decode_text
from tests.support.space_records import text_record, vector_record
from tests.support.streams import make_topic, new_name, read_all

pytestmark = pytest.mark.servers

PARTITIONS = 3
SMALL_BYTES = 20_000
"""Of the topics here."""
PRODUCER_BYTES = 40_000


@dataclass
class Lane:
    kafka: str
    outlet: SpaceOutlet
    requests: str
    letters: str

    async def values(self, topic: str) -> dict[str, bytes | None]:
        """The newest of each key."""
        return {record.key.decode(): record.value for record in await read_all(self.kafka, topic)}


@pytest.fixture
async def lane(kafka_bootstrap: str) -> AsyncIterator[Lane]:
    name = new_name("outlet")
    names = [f"{name}.{kind}" for kind in ("requests", "texts", "vectors", "letters")]
    for topic in names:
        await make_topic(kafka_bootstrap, topic, PARTITIONS, **{"max.message.bytes": str(SMALL_BYTES)})
    requests, texts, vectors, letters = names
    publisher = Publisher(kafka_bootstrap, Lanes(letters, "", 0, requests), max_request_size=PRODUCER_BYTES)
    await publisher.start()
    yield Lane(kafka_bootstrap, SpaceOutlet(publisher, texts, vectors), requests, letters)
    await publisher.stop()


@pytest.mark.parametrize("size", [SMALL_BYTES + 1, PRODUCER_BYTES + 1], ids=["for the topic", "for the producer"])
async def test_what_is_too_big_is_given_back_and_the_rest_is_written(lane: Lane, size: int) -> None:
    texts = {"1": text_record("s", "x" * size), "2": text_record("s", "small"), "ü|\u2028": None}
    sent = await lane.outlet.send_texts(texts)
    refused = sent.refused
    assert list(refused) == ["1"]
    found_at = {record.key.decode(): record.offset for record in await read_all(lane.kafka, lane.outlet.text_topic)}
    assert sent.offsets == found_at
    said = str(refused["1"])
    assert f"which {lane.outlet.text_topic} does not take" in said and "raise the topic's max.message.bytes" in said
    found = await lane.values(lane.outlet.text_topic)
    assert set(found) == {"2", "ü|\u2028"} and found["ü|\u2028"] is None
    assert decode_text(found["2"] or b"", "s").text == "small"
    assert not (await lane.outlet.send_vectors({"1": vector_record("s", "small"), "2": None})).refused
    assert set(await lane.values(lane.outlet.vector_topic)) == {"1", "2"}


async def test_requests_for_one_bundle_keep_to_one_partition(lane: Lane) -> None:
    keys = [str(number) for number in range(50)]
    await lane.outlet.publisher.publish(BatchReport(texts_wanted=dict.fromkeys(keys)))
    await lane.outlet.ask_again(dict.fromkeys(keys, 0))
    places: dict[bytes, set[int]] = {}
    values: dict[bytes, list[bytes]] = {}
    for record in await read_all(lane.kafka, lane.requests):
        places.setdefault(record.key, set()).add(record.partition)
        values.setdefault(record.key, []).append(record.value)
    assert len(places) == 50 and all(len(found) == 1 for found in places.values())
    assert len({number for found in places.values() for number in found}) == PARTITIONS
    assert all(found == [REQUEST, LOOK_AGAIN] for found in values.values()), "never null: compaction would take the key"


async def test_a_letter_of_a_large_text_keeps_its_first_part_and_its_key(lane: Lane) -> None:
    letter = DeadLetter(Record("texts", 1, 7, b"1", b"x" * 500_000), "not allowed", "digest", ["1"])
    await lane.outlet.bury([letter])
    (record,) = await read_all(lane.kafka, lane.letters)
    found = decode_letter(record.value)
    assert (found.bundle_keys, found.truncated, found.value_bytes) == (["1"], True, 500_000)


async def test_marks_of_a_space_are_its_own_and_can_be_forgotten(redis_url: str) -> None:
    stores = await open_stores(RedisSettings(redis_url, "marks", 1, buckets=4))
    partition, other = ("texts", 0), ("texts", 1)
    ours, theirs, workers = RedisMarks(stores.client, "one"), RedisMarks(stores.client, "two"), stores.marks
    for marks in (ours, theirs, workers):
        assert await marks.read_marks([partition]) == {partition: 0}
    await ours.write_marks({partition: 7, other: 3})
    await workers.write_marks({partition: 99})
    assert await ours.read_marks([partition, other]) == {partition: 7, other: 3}
    assert await theirs.read_marks([partition]) == {partition: 0}
    await ours.forget()
    with pytest.raises(Retryable, match="marks were never read"):
        await ours.write_marks({partition: 8})
    assert await ours.read_marks([partition]) == {partition: 0}, "everything is read from its beginning"
    assert await workers.read_marks([partition]) == {partition: 99}
    await stores.close()
