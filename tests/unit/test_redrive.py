"""Dead letters of embedding workers, and the texts of what was applied after all: their bundles are looked at again."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.report import DeadLetter
from pipeline.streams.letters import decode_letter, encode_letter
from pipeline.streams.publisher import LOOK_AGAIN, REQUEST, key_bytes
from pipeline.streams.redrive import DeadLetterBox, Found, TextRequests
from schemas.record import Record
from schemas.topics import request_topic, text_topic
from tests.unit.test_texts_wanted import Embedding

REQUESTS, TEXTS = request_topic("order", 3), text_topic("order", 3, "abc")


class Kept(TextRequests):
    """Keeps what is asked for."""

    def __init__(self, embeds: bool = True) -> None:
        super().__init__("", "order", 3, embeds)
        self.asked: list[tuple[bytes, list[str]]] = []

    async def ask(self, keys: Iterable[str], request: bytes) -> None:
        self.asked.append((request, list(keys)))


def found(topic: str, *keys: str, number: int = 0, key: bytes | None = b"1", size: int = 2) -> Found:
    letter = DeadLetter(Record(topic, 0, number, key, b"x" * size), "the template fails", "digest", list(keys))
    return Found(number, decode_letter(encode_letter(letter, 20_000, 1)))


async def redriven(texts: Kept, *chosen: Found, world: Embedding | None = None) -> list[str]:
    return await DeadLetterBox("", "").redrive(chosen, (world or Embedding()).flow, texts)


async def test_a_text_that_could_not_be_made_or_embedded_is_looked_at_again() -> None:
    texts = Kept()
    chosen = [found(REQUESTS, "1"), found(TEXTS, "2", number=1), found(TEXTS, "1", number=2)]
    assert await redriven(texts, *chosen) == []
    assert texts.asked == [(LOOK_AGAIN, ["1", "2"])]


async def test_the_key_is_enough_of_a_record_that_was_too_big_to_be_kept() -> None:
    texts = Kept()
    large = found(TEXTS, size=100_000, key=key_bytes("ü|7"))
    assert large.letter.truncated
    assert await redriven(texts, large) == [] and texts.asked == [(LOOK_AGAIN, ["ü|7"])]


async def test_what_is_applied_after_all_has_its_text_looked_at() -> None:
    world, texts = Embedding(), Kept()
    partial = world.order(1)
    report = await world.flow.process([Record("shop.public.orders", 0, 9, b"{}", b"not json")])
    letters = [*report.dead_letters, DeadLetter(partial, "it was mended", "digest", ["1"])]
    chosen = [Found(n, decode_letter(encode_letter(letter, 100_000, 1))) for n, letter in enumerate(letters)]
    (refused,) = await redriven(texts, *chosen, world=world)
    assert refused.startswith("0:") and texts.asked == [(REQUEST, ["1"])]


async def test_of_a_context_that_embeds_nothing_any_more_nobody_waits_for_texts() -> None:
    texts = Kept(embeds=False)
    (refused,) = await redriven(texts, found(TEXTS, "2", number=7))
    assert refused == "7: the context embeds nothing any more; nobody waits for this text" and texts.asked == []


async def test_texts_of_another_version_are_told_apart() -> None:
    texts = Kept()
    (refused,) = await redriven(texts, found(text_topic("order", 2, "abc"), "2", number=7))
    assert refused.startswith("7: ") and "ctxpipe.order.v2.texts.abc" in refused and texts.asked == []
