"""Dead letters after the fact: read them, and apply their records, or look at their bundles' texts, after all."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.streams.handler import Stages
from pipeline.streams.letters import Letter, decode_letter, original_record
from pipeline.streams.publisher import LOOK_AGAIN, REQUEST, Lanes, Publisher, key_text
from pipeline.streams.topics import Topics
from schemas.record import Record
from schemas.topics import dead_letter_topic, request_topic, text_topic

READ_TIMEOUT_S = 15.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A dead letter and its number, by which a person names it: its offset in the dead-letter topic."""

    number: int
    letter: Letter


class TextRequests:
    """Asks the embedding spaces of a context version to look at bundles. `embeds`: whether its spec embeds anything.

    `ask` raises EnvironmentProblem when Kafka does not answer.
    """

    def __init__(self, bootstrap_servers: str, context: str, version: int, embeds: bool, **security: Any) -> None:
        self._address, self.embeds, self._security = bootstrap_servers, embeds, security
        self._topic, self._texts = request_topic(context, version), text_topic(context, version, "")
        self._lanes = Lanes(dead_letter_topic(context), "", 0, self._topic)

    def concern(self, letter: Letter) -> bool:
        """Whether a worker of an embedding space wrote the letter."""
        return letter.topic == self._topic or letter.topic.startswith(self._texts)

    async def ask(self, keys: Iterable[str], request: bytes) -> None:
        """Where no worker has made the topic yet, the first one asks for every bundle."""
        topics = Topics(self._address, "", **self._security)
        publisher = Publisher(self._address, self._lanes, **self._security)
        try:
            if self._topic in await topics.existing():
                await publisher.start()
                await publisher.request_texts(keys, request)
        except Retryable as error:
            raise EnvironmentProblem(str(error)) from error
        finally:
            await publisher.stop()
            await topics.stop()


class DeadLetterBox:
    """The dead letters of one context. Every method raises EnvironmentProblem when Kafka does not answer."""

    def __init__(self, bootstrap_servers: str, topic: str, **security: Any) -> None:
        self._address, self._topic, self._security = bootstrap_servers, topic, security

    async def read(self) -> list[Found]:
        """All letters, oldest first; none when no worker has made the topic yet. What is no letter is left out."""
        topics = Topics(self._address, "", **self._security)
        try:
            partitions = (
                await topics.partitions([self._topic]) if self._topic in await topics.existing() else frozenset()
            )
            ends = await topics.end_offsets(partitions) if partitions else {}
        finally:
            await topics.stop()
        found: list[Found] = []
        for (_, partition), end in sorted(ends.items()):
            records = await self._records(self._topic, partition, 0, end)
            for record in records:
                try:
                    found.append(Found(record.offset, decode_letter(record.value or b"")))
                except ValueError:
                    logger.warning("%s@%d is no dead letter of ctxpipe", self._topic, record.offset)
        return found

    async def redrive(self, chosen: Sequence[Found], flow: Stages, texts: TextRequests | None = None) -> list[str]:
        """Applies each record again, in the order of its letters; for those of embedding workers, has the text of the
        bundle looked at again. Returns what could not be, a sentence each.

        Nothing is written to the source's topic: there the record would become the newest of its key, and compaction
        would drop the one that really is. Versions make a repetition harmless.
        """
        refused: list[str] = []
        wanted: dict[str, None] = {}
        again: dict[str, None] = {}
        for found in chosen:
            if texts is not None and texts.concern(found.letter):
                if texts.embeds:
                    again.update(dict.fromkeys(_bundle_keys(found.letter)))
                else:
                    refused.append(f"{found.number}: the context embeds nothing any more; nobody waits for this text")
                continue
            record = await self._original(found.letter)
            if record is None:
                refused.append(f"{found.number}: too big to be kept, and {_place(found.letter)} is gone from Kafka")
                continue
            report = await flow.process([record])
            wanted |= report.texts_wanted
            for chunk in report.fan_out:
                wanted |= (await flow.rebuild(chunk)).texts_wanted
            refused += [f"{found.number}: {letter.reason}" for letter in report.dead_letters]
        if texts is not None and texts.embeds:
            for keys, request in ((wanted, REQUEST), (again, LOOK_AGAIN)):
                if keys:
                    await texts.ask(keys, request)
        return refused

    async def _original(self, letter: Letter) -> Record | None:
        """The record as it was; a truncated one from its own topic, as long as that still has it."""
        if not letter.truncated:
            return original_record(letter)
        records = await self._records(letter.topic, letter.partition, letter.offset, letter.offset + 1)
        if not records or records[0].offset != letter.offset:
            return None
        found = records[0]
        headers = tuple(found.headers)
        return Record(letter.topic, letter.partition, letter.offset, found.key, found.value, 0, headers)

    async def _records(self, topic: str, partition: int, start: int, end: int) -> list[Any]:
        tp, found = TopicPartition(topic, partition), []
        try:
            async with AIOKafkaConsumer(bootstrap_servers=self._address, group_id=None, **self._security) as consumer:
                consumer.assign([tp])
                first = (await consumer.beginning_offsets([tp]))[tp]
                consumer.seek(tp, max(start, first))
                async with asyncio.timeout(READ_TIMEOUT_S):
                    while await consumer.position(tp) < end:
                        for records in (await consumer.getmany(timeout_ms=200)).values():
                            found += [record for record in records if record.offset < end]
        except (KafkaError, TimeoutError) as error:
            raise EnvironmentProblem(f"Kafka at {self._address} does not answer: {error!r}") from error
        return found


def _bundle_keys(letter: Letter) -> list[str]:
    """Of a record of requests or texts, also of a truncated one."""
    if letter.bundle_keys or letter.key is None:
        return letter.bundle_keys
    return [key_text(base64.b64decode(letter.key))]


def _place(letter: Letter) -> str:
    return f"{letter.topic}/{letter.partition}@{letter.offset}"
