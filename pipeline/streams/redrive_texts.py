"""Texts that could not be made or embedded: asked for again, and what became of them, as far as somebody waits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.core.clock import Clock, SystemClock
from pipeline.core.errors import EnvironmentProblem, Retryable
from pipeline.stores.spaces import REFUSED, VectorState
from pipeline.streams.letters import Letter
from pipeline.streams.publisher import LOOK_AGAIN, REQUEST, Lanes, Publisher
from pipeline.streams.topics import Topics
from schemas.topics import dead_letter_topic, request_topic, text_topic

PAUSE_S = 0.2


class States(Protocol):
    """What is needed of VectorStateStore."""

    async def read_states(self, space: str, keys: Sequence[str]) -> list[VectorState | None]: ...


class TextRequests:
    """Asks the embedding spaces of a context version to look at bundles. `embeds`: whether its spec embeds anything.
    With `states` and `spaces`, the answers are waited for, `wait_s` at most.

    Methods raise EnvironmentProblem when Kafka does not answer, Retryable when Redis does not.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        context: str,
        version: int,
        embeds: bool,
        *,
        states: States | None = None,
        spaces: Collection[str] = (),
        wait_s: float = 0.0,
        clock: Clock | None = None,
        **security: Any,
    ) -> None:
        self._address, self.embeds, self._security = bootstrap_servers, embeds, security
        self._topic, self._texts = request_topic(context, version), text_topic(context, version, "")
        self._lanes = Lanes(dead_letter_topic(context), "", 0, self._topic)
        self._states, self._spaces, self._wait_s = states, spaces, wait_s
        self._clock = clock or SystemClock()

    def concern(self, letter: Letter) -> bool:
        """Whether a worker of an embedding space wrote the letter."""
        return letter.topic == self._topic or letter.topic.startswith(self._texts)

    async def want(self, keys: Iterable[str]) -> None:
        """The bundles changed: their texts are looked at once."""
        await self.ask(keys, REQUEST)

    async def again(
        self, spaces_by_key: Mapping[str, str | None], waiting: Callable[[int], None] = lambda left: None
    ) -> dict[str, str | None]:
        """Has the texts of these bundles made and embedded once more, in the space that a letter names, None: in all.
        Key → why it failed again, "" where it worked; None where nobody knows yet."""
        offsets = await self.ask(spaces_by_key, LOOK_AGAIN)
        answers: dict[str, str | None] = dict.fromkeys(spaces_by_key)
        ends_s = self._clock.monotonic_s() + self._wait_s
        while self._states is not None and offsets:
            for key in [key for key, answer in answers.items() if answer is None]:
                answers[key] = await self._answer(key, offsets.get(key, 0), spaces_by_key[key])
            left = sum(answer is None for answer in answers.values())
            waiting(left)
            if not left or self._clock.monotonic_s() >= ends_s:
                break
            await self._clock.sleep(PAUSE_S)
        return answers

    def space_of(self, letter: Letter) -> str | None:
        """None where the letter is of a request, which every space looks at."""
        return letter.topic.removeprefix(self._texts) if letter.topic.startswith(self._texts) else None

    async def _answer(self, key: str, offset: int, space: str | None) -> str | None:
        assert self._states is not None
        problems = []
        for name in [space] if space in self._spaces and space is not None else self._spaces:
            state = (await self._states.read_states(name, [key]))[0]
            if state is None or state.asked_at < offset:
                return None
            if state.problem.startswith(REFUSED):
                problems.append(state.problem.removeprefix(REFUSED))
            elif state.text_hash != state.vector_hash:
                return None
        return "; ".join(dict.fromkeys(problems)) if self._spaces else None

    async def ask(self, keys: Iterable[str], request: bytes) -> dict[str, int]:
        """The offset of each request. Where no worker has made the topic yet, the first one asks for every bundle."""
        topics = Topics(self._address, "", **self._security)
        publisher = Publisher(self._address, self._lanes, **self._security)
        try:
            if self._topic not in await topics.existing():
                return {}
            await publisher.start()
            placed = await publisher.put(self._topic, dict.fromkeys(keys, request))
            return {key: offset for key, offset in placed.items() if offset is not None}
        except Retryable as error:
            raise EnvironmentProblem(str(error)) from error
        finally:
            await publisher.stop()
            await topics.stop()
