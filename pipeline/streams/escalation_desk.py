"""Questions for people as they stand in Kafka: read, and answered once, whoever answers at the same time."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.structs import TopicPartition

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import ConfigError
from pipeline.core.guarding import EscalationsConfig
from pipeline.guard.escalation_records import (
    ANSWER_BYTES_MAX,
    Heading,
    PersonsAnswer,
    Question,
    Standing,
    Standings,
    decode,
    decode_heading,
    encode_answer,
)
from pipeline.guard.output import of_schema, of_text
from pipeline.guard.strict_json import InvalidOutput
from pipeline.streams.escalation_queue import PARTITION
from pipeline.streams.kafka_clients import stop_producer
from pipeline.streams.offset_reader import OffsetReader


@dataclass(frozen=True, slots=True)
class Whole:
    """A question, and what was answered, in the order of the log: the first one counts."""

    question: Question
    answers: tuple[PersonsAnswer, ...]


class Taken(Exception):
    """Somebody was first. `answer` is theirs."""

    def __init__(self, answer: PersonsAnswer) -> None:
        super().__init__(f"answered by {answer.by} already")
        self.answer = answer


class EscalationDesk:
    """Use it as a context manager, or `close` it. Not for several tasks at once.

    Every method raises Retryable while Kafka is away, and EnvironmentProblem where it refuses us.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        config: EscalationsConfig | None = None,
        clock: Clock | None = None,
        **security: Any,
    ) -> None:
        self._settings = {"bootstrap_servers": bootstrap_servers, **security}
        self._clock = clock or SystemClock()
        self._reader = OffsetReader(bootstrap_servers, **security)
        self._place = TopicPartition((config or EscalationsConfig()).topic, PARTITION)
        self._standings, self._next = Standings(), 0

    async def __aenter__(self) -> EscalationDesk:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._reader.close()

    async def look(self) -> Standings:
        """All there is now; again and again it reads what is new only."""
        if self._place.topic not in await self._reader.topics.existing():
            self._standings, self._next = Standings(), 0
            return self._standings
        extent = await self._reader.extent(self._place)
        if extent.end < self._next:  # somebody made the topic anew
            self._standings, self._next = Standings(), 0
        async for record in self._records(max(self._next, extent.first), extent.end):
            heading = _heading(record)
            if heading is not None:
                self._standings.add(record.offset, heading)
        self._next = extent.end
        self._standings.drop_below(extent.first)
        return self._standings

    async def whole(self, standing: Standing) -> Whole | None:
        """With what it says; None where the log has it no more."""
        question = None if standing.number is None else await self._record(standing.number)
        if not isinstance(question, Question):
            return None
        answers = [await self._record(number) for number, _ in standing.answers]
        return Whole(question, tuple(one for one in answers if isinstance(one, PersonsAnswer)))

    async def answer(self, question: Question, value: Any, by: str, note: str = "") -> PersonsAnswer:
        """Durable on return, and the one that counts. Raises Taken where somebody was first, also by a moment;
        ConfigError for a value that does not fit the question."""
        checked(question, value)
        first = await self._first(question.id)
        if first is not None:
            raise Taken(first[1])
        answer = PersonsAnswer(to=question.id, value=value, by=by, at_us=self._clock.now_us(), note=note)
        number = await self._write(answer)
        first = await self._first(question.id)
        if first is not None and first[0] != number:
            raise Taken(first[1])
        return answer

    async def _first(self, question: str) -> tuple[int, PersonsAnswer] | None:
        """The answer that counts, with its offset."""
        standing = (await self.look()).by_id.get(question)
        if standing is None or standing.answered is None:
            return None
        number = standing.answered[0]
        found = await self._record(number)
        return (number, found) if isinstance(found, PersonsAnswer) else None

    async def _write(self, answer: PersonsAnswer) -> int:
        """Its offset."""
        key, value = encode_answer(answer, str(uuid.uuid4()))
        writer = AIOKafkaProducer(acks="all", enable_idempotence=True, **self._settings)
        try:
            await self._reader.mapped(writer.start())
            sent = writer.send_and_wait(self._place.topic, value, key=key, partition=PARTITION)
            placed = await self._reader.mapped(sent)
        finally:
            await stop_producer(writer)
        return int(placed.offset)

    async def _record(self, number: int) -> Question | PersonsAnswer | None:
        async for record in self._records(number, number + 1):
            try:
                return decode(record.value)
            except ValueError:
                return None
        return None

    async def _records(self, start: int, end: int) -> AsyncIterator[ConsumerRecord]:
        async for records in self._reader.records(self._place, start, end):
            for record in records:
                yield record


def checked(question: Question, value: Any) -> Any:
    """The value. Raises ConfigError where it is not what the question asks for."""
    schema = question.json_schema
    output = of_text(ANSWER_BYTES_MAX) if schema is None else of_schema(question.output_name, schema, ANSWER_BYTES_MAX)
    try:
        return output.check_value(value)
    except InvalidOutput as error:
        wanted = "a text" if schema is None else f"what the question asks for ({question.output_name})"
        raise ConfigError(
            [f"the answer is not {wanted}: {error.detail}. `ctxpipe escalations show {question.id}` has its schema"]
        ) from None


def _heading(record: ConsumerRecord) -> Heading | None:
    try:
        return decode_heading(record.value)
    except ValueError:
        return None
