"""Redriving: what becomes of letters, in which order, what is noted, and texts that are looked at again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pytest

from pipeline.affected import affected_by, named
from pipeline.core.errors import Retryable
from pipeline.report import DeadLetter
from pipeline.stores.spaces import VectorState
from pipeline.streams import redrive as redriving
from pipeline.streams.decisions import Decision
from pipeline.streams.letter_choice import Choice
from pipeline.streams.letters import encode_letter
from pipeline.streams.publisher import LOOK_AGAIN, REQUEST, key_bytes
from pipeline.streams.redrive import Redrive, Redriven
from pipeline.streams.redrive_texts import TextRequests
from schemas.record import Record
from schemas.topics import request_topic, text_topic
from tests.unit.test_flow import World
from tests.unit.test_texts_wanted import Embedding

REQUESTS, TEXTS = request_topic("order", 3), text_topic("order", 3, "abc")


class Letters:
    """A box in memory; keeps what is decided."""

    def __init__(self, letters: Iterable[DeadLetter], bytes_max: int = 100_000) -> None:
        self.values = [encode_letter(letter, bytes_max, 1) for letter in letters]
        self.decided: list[Decision] = []

    async def whole(self, numbers: Sequence[int]) -> AsyncIterator[tuple[int, bytes]]:
        for number in sorted(numbers):
            yield number, self.values[number]

    async def record(self, topic: str, partition: int, offset: int) -> Any | None:
        return None

    async def decide(self, decisions: Sequence[Decision], replication_factor: int) -> None:
        self.decided += decisions

    async def redriven(self, world: World, texts: TextRequests | None = None, **choice: Any) -> Redriven:
        chosen = Choice(numbers=list(range(len(self.values))), newest_ms=10**15, **choice)
        return await Redrive(self, world.flow, texts, by="ann").run(chosen)


class Kept(TextRequests):
    """Keeps what is asked for."""

    def __init__(self, embeds: bool = True, **waited: Any) -> None:
        super().__init__("", "order", 3, embeds, **waited)
        self.asked: list[tuple[bytes, list[str]]] = []

    async def ask(self, keys: Iterable[str], request: bytes) -> dict[str, int]:
        self.asked.append((request, list(keys)))
        return dict.fromkeys(keys, 7)


class Known:
    """States of texts: a look at each bundle in turn."""

    def __init__(self, **states: list[VectorState | None]) -> None:
        self.states = states

    async def read_states(self, space: str, keys: Sequence[str]) -> list[VectorState | None]:
        assert space == "abc"
        return [self.states[f"k{key}"].pop(0) for key in keys]


def buried(record: Record, reason: str = "the template fails", *keys: str) -> DeadLetter:
    return DeadLetter(record, reason, "digest", list(keys))


def text(topic: str, *keys: str, offset: int = 0, size: int = 2) -> DeadLetter:
    return buried(Record(topic, 0, offset, key_bytes(keys[0]) if keys else b"1", b"x" * size), "it fails", *keys)


async def test_applied_overtaken_and_failed_are_told_apart_and_noted() -> None:
    world = World()
    orders = [world.order(number, total=str(number)) for number in range(6)]
    newer = [world.order(number, total="9") for number in (1, 4)]
    await world.flow.process(newer)
    broken = Record("shop.public.orders", 0, 99, b"{}", b"not json")
    box = Letters([*map(buried, orders), buried(broken)])
    found = await box.redriven(world, repeats={2: [70]}, attempts={6: 3})
    assert (sorted(found.applied), found.overtaken, list(found.failed)) == ([0, 2, 3, 5], [1, 4], [6])
    assert b'"amount":"9"' in world.answer("4") and b'"amount":"5"' in world.answer("5")
    assert [(one.outcome, one.numbers) for one in box.decided] == [
        ("applied", [(0, 0), (2, 3), (5, 5), (70, 70)]), ("overtaken", [(1, 1), (4, 4)]), ("failed", [(6, 6)])
    ]  # fmt: skip
    failed = box.decided[2]
    assert "JSON" in failed.why and (failed.attempts, failed.by, failed.at_ms) == (4, "ann", 10**15)


async def test_a_row_that_is_deleted_since_stays_deleted() -> None:
    world = World()
    late = world.order(1)
    await world.flow.process([world.record("orders", "d", {"id": 1}, None)])
    assert (await Letters([buried(late)]).redriven(world)).overtaken == [0]


async def test_one_rows_letters_come_in_the_order_of_its_changes() -> None:
    world = World()
    records = [world.order(1, total="1"), world.order(1, note="__debezium_unavailable_value", total="2")]
    incomplete = DeadLetter(records[1], "not sent", "incomplete-row", [])
    found = await Letters([incomplete, buried(records[0])]).redriven(world)
    assert sorted(found.applied) == [0, 1] and b'"amount":"2"' in world.answer("1")


async def test_what_lacks_its_row_is_tried_again_when_the_others_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redriving, "GROUP_RECORDS_MAX", 1)
    world = World()
    first, partial = world.order(1, total="1"), world.order(1, note="__debezium_unavailable_value", total="2")
    alone = world.order(5, note="__debezium_unavailable_value")
    box = Letters([buried(partial), buried(first), buried(alone)])
    found = await box.redriven(world)
    assert sorted(found.applied) == [0, 1] and list(found.failed) == [2] and "no earlier row" in found.failed[2]
    assert [one.outcome for one in box.decided] == ["applied", "applied", "failed"], "no loop"


async def test_groups_are_small_where_letters_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redriving, "GROUP_BYTES_MAX", 1_000)
    world = World()
    box = Letters([buried(world.order(number, secret="x" * 600)) for number in range(7)])
    assert (await box.redriven(world)).applied == list(range(7)) and len(box.decided) > 3


async def test_a_store_that_is_away_is_waited_for_and_what_was_done_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redriving, "GROUP_RECORDS_MAX", 2)
    world, calls = World(), 0
    process = world.flow.process

    async def sometimes(records: Sequence[Record]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 or calls > 4:
            raise Retryable("Redis is away")
        return await process(records)

    monkeypatch.setattr(world.flow, "process", sometimes)
    monkeypatch.setattr(redriving, "PATIENCE_S", 0.5)
    box = Letters([buried(world.order(number)) for number in range(7)])
    with pytest.raises(Retryable, match="away"):
        await box.redriven(world)
    assert [one.numbers for one in box.decided] == [[(0, 1)], [(2, 3)], [(4, 5)]]


async def test_a_text_that_could_not_be_made_or_embedded_is_looked_at_again() -> None:
    texts = Kept()
    found = await Letters([text(REQUESTS, "1"), text(TEXTS, "2", offset=1), text(TEXTS, "1")]).redriven(World(), texts)
    assert texts.asked == [(LOOK_AGAIN, ["1", "2"])] and found.asked == [0, 1, 2], "nobody waited"


async def test_what_becomes_of_texts_is_waited_for() -> None:
    seen, done = VectorState(1, "b", "t", "", asked_at=6), VectorState(1, "b", "t", "t", asked_at=7)
    refused = VectorState(1, "b", "", "", "refused: division by zero", asked_at=8)
    pending = VectorState(1, "b", "t", "", asked_at=7)
    states = Known(k1=[None, seen, pending, done], k2=[seen, refused], k3=[pending] * 99)
    texts = Kept(states=states, spaces=["abc"], wait_s=1.0)
    box = Letters([text(REQUESTS, "1"), text(TEXTS, "2"), text(TEXTS, "3")])
    found = await box.redriven(World(), texts)
    assert (found.applied, found.failed, found.asked) == ([0], {1: "division by zero"}, [2])


async def test_the_key_is_enough_of_a_record_that_was_too_big_to_be_kept() -> None:
    texts = Kept()
    large = DeadLetter(Record(TEXTS, 0, 0, key_bytes("ü|7"), b"x" * 100_000), "it fails", "digest", [])
    found = await Letters([large], bytes_max=20_000).redriven(World(), texts)
    assert found.asked == [0] and texts.asked == [(LOOK_AGAIN, ["ü|7"])]


async def test_what_is_applied_after_all_has_its_text_looked_at() -> None:
    world, texts = Embedding(), Kept()
    box = Letters([buried(Record("shop.public.orders", 0, 9, b"{}", b"not json")), buried(world.order(1))])
    found = await box.redriven(world, texts)
    assert list(found.failed) == [0] and texts.asked == [(REQUEST, ["1"])]


async def test_of_a_context_that_embeds_nothing_any_more_nobody_waits_for_texts() -> None:
    texts = Kept(embeds=False)
    box = Letters([text(TEXTS, "2")])
    found = await box.redriven(World(), texts)
    assert "nobody waits for this text" in found.refused[0] and texts.asked == [] and not box.decided


async def test_texts_of_another_version_are_told_apart() -> None:
    texts = Kept()
    found = await Letters([text(text_topic("order", 2, "abc"), "2")]).redriven(World(), texts)
    assert "ctxpipe.order.v2.texts.abc" in found.refused[0] and texts.asked == []


async def affected(world: World, record: Record) -> tuple[list[str], str, str | None]:
    found = await affected_by(world.plan, world.flow.rows, world.flow.relations, record)
    return found.keys, found.row, found.key


async def test_bundles_are_found_by_what_can_be_read_of_a_record() -> None:
    world = World()
    await world.flow.process([world.order(1), world.order(2), world.item(1, 5, 3)])
    item = world.item(2, 9, 4)
    strange = Record(item.topic, 0, 1, item.key, (item.value or b"").replace(b'"op": "c"', b'"op": "x"'))
    assert await affected(world, strange) == (["2"], "missing", "2|9")
    assert (await affected(world, Record(item.topic, 0, 1, b'{"order_id":1,"line":5}', b"junk")))[0][0] == "1"
    assert await affected(world, Record(item.topic, 0, 1, b"junk", b"junk")) == ([], "unknown", None)
    assert await affected(world, Record("another.topic", 0, 1, b'{"id":1}', b"junk")) == ([], "unknown", None)
    keyless = Record("shop.public.orders", 0, 1, b"null", world.order(2, total="1").value)
    assert (await affected(world, keyless))[0] == ["2"]


async def test_a_row_that_moved_is_wrong_where_it_stands_and_where_it_should() -> None:
    world = World()
    moved = world.record("customers", "u", {"id": 8}, {"id": 8, "name": "Bea"})
    await world.flow.process([world.order(1, customer_id=8)])
    keys, row, _ = await affected(world, moved)
    assert "customer:8" in keys and row == "missing"


async def test_a_newer_row_makes_a_letter_needless() -> None:
    world = World()
    old = world.order(1)
    await world.flow.process([world.order(1)])
    found = await affected_by(world.plan, world.flow.rows, world.flow.relations, old)
    assert found.row == "newer" and named(found, ["1", "7"]) == ["1", "7"]
    newer = world.order(1)
    assert (await affected(world, newer))[1] == "older"
