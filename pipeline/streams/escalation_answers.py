"""What people answered, for the application that asked: one question's answer, or all of them as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.core.guarding import EscalationsConfig
from pipeline.core.logging import SparseLog
from pipeline.guard.escalation_records import PersonsAnswer, Question, decode
from pipeline.streams.backoff import Backoff
from pipeline.streams.escalation_queue import PARTITION, make_topic
from pipeline.streams.kafka_clients import rest_between_metadata, stop_consumer
from pipeline.streams.kafka_errors import answered, ours
from pipeline.streams.offset_reader import OffsetReader

POLL_MS = 500
PAUSE_S, PAUSE_S_MAX = 0.2, 5.0
TELL_EVERY_S = 60.0

logger = logging.getLogger(__name__)


class Told(NamedTuple):
    """An answer and its place in the log, from which to go on later."""

    number: int
    answer: PersonsAnswer


class Answers:
    """Use it as a context manager, or `stop` it; of one event loop, for any number of tasks.

    The log is read from its beginning once, in the background, when somebody first asks: so an answer that came while
    nobody ran is found, too. While Kafka is away everybody waits. A value is as it was checked when it was given; check
    it once more with `request.output.check_value(answer.value)` to get the request's own type.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        config: EscalationsConfig | None = None,
        clock: Clock | None = None,
        *,
        replication_factor: int = 1,
        **security: Any,
    ) -> None:
        self._address, self._config = bootstrap_servers, config or EscalationsConfig()
        self._settings = {"bootstrap_servers": bootstrap_servers, **security}
        self._security, self._clock, self._replicas = security, clock or SystemClock(), replication_factor
        self._first: dict[str, int] = {}
        """Question → the place of the answer that counts."""
        self._waiting: dict[str, set[asyncio.Future[PersonsAnswer]]] = {}
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Whoever still waits gets CancelledError."""
        task, self._following = self._following, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for futures in self._waiting.values():
            for future in futures:
                future.cancel()

    async def wait(self, question: str, timeout_s: float | None = None) -> PersonsAnswer | None:
        """The answer to the question with this id (`Result.escalation_id`); None: not within `timeout_s`.

        Raises EnvironmentProblem where Kafka refuses us.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._wait(question)
        except TimeoutError:
            return None

    async def follow(self, after: int = -1) -> AsyncGenerator[Told, None]:
        """Each answer that counts and lies behind `after`, as it comes, for ever. Keep `number` where what you did with
        the answer is durable, and go on from there. Raises EnvironmentProblem where Kafka refuses us."""
        answered_before: set[str] = set()
        async with aclosing(self._records()) as records:
            async for number, record in records:
                if isinstance(record, PersonsAnswer) and record.to not in answered_before:
                    answered_before.add(record.to)
                    if number > after:
                        yield Told(number, record)

    async def _wait(self, question: str) -> PersonsAnswer:
        if self._following is None or self._following.done():
            self._first.clear()
            self._following = asyncio.create_task(self._keep_following())
        number = self._first.get(question)
        if number is not None and (found := await self._at(number)) is not None:
            return found
        future: asyncio.Future[PersonsAnswer] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(question, set()).add(future)
        try:
            return await future
        finally:
            futures = self._waiting.get(question, set())
            futures.discard(future)
            if not futures:
                self._waiting.pop(question, None)

    async def _keep_following(self) -> None:
        try:
            async with aclosing(self.follow()) as answers:
                async for number, answer in answers:
                    self._first[answer.to] = number
                    for future in self._waiting.pop(answer.to, set()):
                        if not future.done():
                            future.set_result(answer)
        except EnvironmentProblem as error:
            for futures in self._waiting.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)

    async def _at(self, number: int) -> PersonsAnswer | None:
        """What lies there; None where it is gone."""
        reader, place = OffsetReader(self._address, **self._security), TopicPartition(self._config.topic, PARTITION)
        try:
            async for records in reader.records(place, number, number + 1):
                found = _decoded(records[0].value)
                return found if isinstance(found, PersonsAnswer) else None
            return None
        finally:
            await reader.close()

    async def _records(self) -> AsyncGenerator[tuple[int, Question | PersonsAnswer], None]:
        """From the beginning of the log on, through outages; what is no record of ours is passed over."""
        next_number, pauses = 0, Backoff(PAUSE_S, PAUSE_S_MAX)
        told = SparseLog(logger, TELL_EVERY_S)
        while True:
            try:
                async with aclosing(self._polled(next_number)) as polled:
                    async for number, value in polled:
                        next_number = number + 1
                        pauses.reset()
                        record = _decoded(value)
                        if record is not None:
                            yield number, record
            except Retryable as error:
                told.tell("answers of people: %s; waiting", error)
                await self._clock.sleep(pauses.next_s())

    async def _polled(self, start: int) -> AsyncGenerator[tuple[int, bytes | None], None]:
        await make_topic(self._address, self._config, self._replicas, self._security)
        place = TopicPartition(self._config.topic, PARTITION)
        consumer = AIOKafkaConsumer(
            group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", **self._settings
        )
        rest_between_metadata(consumer._client)
        try:
            await answered(self._address, consumer.start())
            consumer.assign([place])
            consumer.seek(place, start)
            while True:
                try:
                    found = await consumer.getmany(place, timeout_ms=POLL_MS)
                except (KafkaError, OSError) as error:
                    raise ours(self._address, error) from error
                for record in found.get(place, []):
                    yield record.offset, record.value
        finally:
            await stop_consumer(consumer)


def _decoded(value: bytes | None) -> Question | PersonsAnswer | None:
    try:
        return decode(value)
    except ValueError:
        return None
