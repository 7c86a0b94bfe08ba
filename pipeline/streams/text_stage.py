"""Requests become texts: of each bundle that was asked for, the text of one space, sent on where it is another one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mode import get_logger
from msgspec.structs import replace

from pipeline.core.clock import Clock
from pipeline.core.errors import Poison
from pipeline.embedded_text import EmbeddedText, TextMaker
from pipeline.report import DeadLetter, digest_of
from pipeline.stores.spaces import REFUSED, VectorState, VectorStateStore
from pipeline.stores.store import Fetched
from pipeline.streams.journey import SpaceJourneys
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.outages import persistently
from pipeline.streams.publisher import NO_HEADERS, decode_request, key_text
from pipeline.streams.reporting import SpaceMetrics
from pipeline.streams.space_outlet import Sent
from schemas.headers import Headers
from schemas.record import Record
from schemas.vectors import TextRecord

logger = get_logger(__name__)

INLINE_TEXTS_MAX = 16
"""So few are rendered in the event loop; more go to a thread, so that Kafka and the engine beside them are not kept
waiting."""
LOOKED_AT_ONCE = 100
"""Bundles; few enough for Redis to learn of them soon after Kafka, on a busy machine too."""


class Fetching(Protocol):
    """What the stage needs of RedisBundles."""

    async def fetch(self, keys: Sequence[str]) -> list[Fetched]: ...


class TextOutlet(Protocol):
    """See pipeline.streams.space_outlet. Returns when Kafka has everything."""

    async def send_texts(
        self, texts: Mapping[str, TextRecord | None], headers: Mapping[str, Headers] = NO_HEADERS
    ) -> Sent: ...

    async def ask_again(self, above: Mapping[str, int]) -> None:
        """Key → the counter that the text's record shall have at least; see Request."""

    async def bury(self, letters: Sequence[DeadLetter]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Asked:
    """All requests for one bundle in a batch. `record` stands for them in a dead letter; `offset` is the last one's."""

    record: Record
    again: bool
    above: int
    offset: int
    headers: Headers = ()


@dataclass(slots=True)
class _Round:
    """What one look at some bundles led to."""

    sent: dict[str, TextRecord | None] = field(default_factory=dict)
    states: dict[str, VectorState] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    letters: list[DeadLetter] = field(default_factory=list)
    cut: int = 0


class TextStage:
    """Handles batches of the request topic. `pace` is waited for after so many texts were sent.

    A text is durable in Kafka before Redis knows of it, so that an end in between repeats it and loses nothing. Who
    slept while another worker took the partition may send an older text behind a newer one: Redis refuses what it says
    of it, by the request that it was made for, and whoever reads the text finds that Redis does not know it.
    """

    def __init__(
        self,
        space: str,
        maker: TextMaker,
        bundles: Fetching,
        states: VectorStateStore,
        outlet: TextOutlet,
        clock: Clock,
        shown: SpaceMetrics,
        pace: Callable[[int], Awaitable[None]] | None = None,
        journeys: SpaceJourneys | None = None,
    ) -> None:
        self._space, self._maker = space, maker
        self._journeys = journeys or SpaceJourneys("", space, clock)
        self._bundles, self._states, self._outlet = bundles, states, outlet
        self._clock, self._shown, self._pace = clock, shown, pace

    async def handle(self, batches: Sequence[RecordBatch]) -> None:
        """See pipeline.streams.agents.Handle."""
        passed_on = self._journeys.passed_on
        requests = {key: _asked(records, passed_on(records)) for key, records in by_key(batches).items()}
        keys = list(requests)
        for first in range(0, len(keys), LOOKED_AT_ONCE):
            await self._part(batches, {key: requests[key] for key in keys[first : first + LOOKED_AT_ONCE]})

    async def _part(self, batches: Sequence[RecordBatch], requests: Mapping[str, _Asked]) -> None:
        sent = await persistently(batches, lambda: self._look(requests), self._clock, self._shown.retried)
        if self._pace is not None and sent:
            # Afterwards, in a batch that may end at any time: what was looked at long ago must not be sent.
            pace = self._pace
            for batch in batches:
                batch.in_outage = True
            await persistently(batches, lambda: pace(sent), self._clock, self._shown.retried)
            for batch in batches:
                batch.in_outage = False

    async def _look(self, requests: Mapping[str, _Asked]) -> int:
        """How many texts were sent."""
        keys = list(requests)
        fetched = await self._bundles.fetch(keys)
        states = await self._states.read_states(self._space, keys)
        looks = list(zip(keys, fetched, states, strict=True))
        if len(looks) > INLINE_TEXTS_MAX:
            found = await asyncio.to_thread(self._round, looks, requests)
        else:
            found = self._round(looks, requests)
        await self._carry_out(found, requests)
        self._shown.looked(len(keys), len(found.sent), found.cut)
        return len(found.sent)

    def _round(
        self, looks: Sequence[tuple[str, Fetched, VectorState | None]], requests: Mapping[str, _Asked]
    ) -> _Round:
        found = _Round()
        for key, fetched, state in looks:
            if state is not None:
                found.known[key] = state.text_at
            if fetched.bundle is None or fetched.bundle.deleted:
                self._without_bundle(found, key, fetched, state, requests[key].again)
            else:
                self._of_bundle(found, key, fetched, state, requests[key])
        return found

    def _without_bundle(
        self, found: _Round, key: str, fetched: Fetched, state: VectorState | None, again: bool
    ) -> None:
        counter = fetched.bundle.counter if fetched.bundle is not None else state.counter if state is not None else 0
        if state is None or state.text_hash or again:
            found.sent[key] = None
        # Also where nothing was known: whoever looked before the deletion may come late.
        found.states[key] = VectorState(counter, "", "")

    def _of_bundle(self, found: _Round, key: str, fetched: Fetched, state: VectorState | None, asked: _Asked) -> None:
        bundle, again = fetched.bundle, asked.again
        assert bundle is not None and bundle.meta is not None
        same_bundle = state is not None and state.bundle_hash == bundle.meta.hash
        if state is not None and same_bundle and not again and not self._maker.looks_elsewhere(bundle):
            found.states[key] = _of_counter(state, bundle.counter)
            return
        try:
            made = self._maker.make(fetched)
        except Poison as error:
            self._refuse(found, key, fetched, state, asked.record, error)
            return
        new = state is None or (state.text_hash, state.filters_hash) != (made.text_hash, made.filters_hash)
        if new or again:
            counter = max(bundle.counter, asked.above)
            found.sent[key] = self._record(counter, bundle.meta.hash, made) if made.text else None
            found.cut += bool(made.characters_cut)
        found.states[key] = VectorState(bundle.counter, bundle.meta.hash, made.text_hash, "", "", made.filters_hash)

    def _refuse(
        self, found: _Round, key: str, fetched: Fetched, state: VectorState | None, record: Record, error: Poison
    ) -> None:
        bundle, problem = fetched.bundle, f"{REFUSED}{error}"
        assert bundle is not None and bundle.meta is not None
        known = state is not None and state.problem == problem and state.bundle_hash == bundle.meta.hash
        if state is None or state.text_hash or not known:
            found.sent[key] = None
        if not known:
            found.letters.append(DeadLetter(record, str(error), digest_of(error), [key]))
        found.states[key] = VectorState(bundle.counter, bundle.meta.hash, "", "", problem)

    def _record(self, counter: int, bundle_hash: str, made: EmbeddedText) -> TextRecord:
        return TextRecord(
            space=self._space,
            counter=counter,
            bundle_hash=bundle_hash,
            text_hash=made.text_hash,
            text=made.text,
            filters=made.filters,
            commit_time_us=made.commit_time_us,
            characters_cut=made.characters_cut,
        )

    async def _carry_out(self, found: _Round, requests: Mapping[str, _Asked]) -> None:
        if found.letters:
            for letter in found.letters[:3]:
                logger.warning("no text of %s: %s", ", ".join(letter.bundle_keys), letter.reason)
            await self._outlet.bury(found.letters)
        headers = {key: requests[key].headers for key in found.sent if requests[key].headers}
        sent = await self._outlet.send_texts(found.sent, headers) if found.sent else Sent()
        offsets = sent.offsets
        for key, error in sent.refused.items():
            state = found.states[key]
            await self._outlet.bury([DeadLetter(requests[key].record, str(error), digest_of(error), [key])])
            offsets = offsets | (await self._outlet.send_texts({key: None})).offsets
            found.states[key] = VectorState(state.counter, state.bundle_hash, "", "", f"{REFUSED}{error}")
        states = {
            key: replace(state, asked_at=requests[key].offset, text_at=offsets.get(key, found.known.get(key, -1)))
            for key, state in found.states.items()
        }
        taken = await self._states.write_texts(self._space, states)
        # A newer look was there, or somebody's text lies behind the one that is known here.
        late = {
            key: max(states[key].counter, requests[key].above)
            for key, ours in zip(states, taken, strict=True)
            if not ours
        }
        if late:
            await self._outlet.ask_again(late)


def by_key(batches: Sequence[RecordBatch]) -> dict[str, list[Record]]:
    """Records of bundle keys in the order of their arrival; what has no key or none of ours is left out, for nobody of
    ours writes such a record."""
    found: dict[str, list[Record]] = {}
    for record in (record for batch in batches for record in batch.records if record.key):
        try:
            found.setdefault(key_text(record.key or b""), []).append(record)
        except UnicodeDecodeError:
            logger.warning("%s/%d@%d has a key that is no text", record.topic, record.partition, record.offset)
    return found


def _asked(records: Sequence[Record], headers: Headers) -> _Asked:
    """The newest one that asks for the text even where Redis says that it is in Kafka stands for all, else the
    newest."""
    requests = [decode_request(record.value) for record in records]
    loudest = max(range(len(records)), key=lambda number: (requests[number].again, number))
    above = max(request.above for request in requests)
    return _Asked(records[loudest], requests[loudest].again, above, records[-1].offset, headers)


def _of_counter(state: VectorState, counter: int) -> VectorState:
    return VectorState(counter, state.bundle_hash, state.text_hash, "", state.problem, state.filters_hash)
