"""What really lies last in the vector topic: read back, so that nothing stays there that Redis knows nothing of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mode import get_logger

from pipeline.core.clock import Clock
from pipeline.stores.spaces import CUT, REFUSED, VectorState, VectorStateStore
from pipeline.streams.backoff import Backoff
from pipeline.streams.lanes import RecordBatch
from pipeline.streams.outages import JITTER, persistently
from pipeline.streams.reporting import SpaceMetrics
from pipeline.streams.text_stage import by_key
from schemas.errors import DecodeError
from schemas.record import Record
from schemas.vectors import decode_vectors

logger = get_logger(__name__)

FOLLOWED_WITHIN_S = 1.0
"""A vector whose text is not the wanted one any more is mostly followed by another one soon."""
UNREADABLE = "(unreadable)"


class EchoOutlet(Protocol):
    """See pipeline.streams.space_outlet."""

    async def ask_again(self, above: Mapping[str, int]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Heard:
    """A record of the vector topic; `text_hash` is empty for a deletion."""

    offset: int
    text_hash: str
    counter: int = 0
    problem: str = ""


class VectorEcho:
    """Handles batches of the vector topic.

    A worker that slept while another one took its place, or that was killed before it told Redis, may have written the
    last vector of a bundle, or its deletion; and a Redis that lost its last writes knows less than Kafka has. Redis
    learns here what is there, and where that is not the wanted text's vector, the bundle is looked at once more.
    """

    def __init__(
        self,
        space: str,
        dimension: int,
        states: VectorStateStore,
        outlet: EchoOutlet,
        clock: Clock,
        shown: SpaceMetrics,
    ) -> None:
        self._space, self._dimension = space, dimension
        self._states, self._outlet, self._clock, self._shown = states, outlet, clock, shown

    async def handle(self, batches: Sequence[RecordBatch]) -> None:
        """See pipeline.streams.agents.Handle."""
        heard = {key: self._heard(records[-1]) for key, records in by_key(batches).items()}
        if heard:
            await persistently(batches, lambda: self._compare(heard), self._clock, self._shown.retried)

    def _heard(self, record: Record) -> _Heard:
        if record.value is None:
            return _Heard(record.offset, "")
        try:
            found = decode_vectors(record.value, self._space, self._dimension)
        except DecodeError:
            return _Heard(record.offset, UNREADABLE)
        return _Heard(record.offset, found.text_hash, found.counter, CUT if found.tokens_cut else "")

    async def _compare(self, heard: Mapping[str, _Heard]) -> None:
        states = await self._read(heard)
        unknown = {key: one for key, one in heard.items() if _behind(one, states[key])}
        if unknown:
            hashes = {key: (one.text_hash, one.problem) for key, one in unknown.items()}
            await self._states.write_vectors(self._space, hashes, {key: one.offset for key, one in unknown.items()})
            states = await self._read(heard)
        began_s, pauses = self._clock.monotonic_s(), Backoff(0.05, 0.5, JITTER)
        wrong = {key: one for key, one in heard.items() if _wrong(one, states[key])}
        while wrong and self._clock.monotonic_s() - began_s < FOLLOWED_WITHIN_S:
            await self._clock.sleep(pauses.next_s())
            states = await self._read(wrong)
            wrong = {key: one for key, one in wrong.items() if _wrong(one, states[key])}
        if wrong:
            logger.debug("the vectors of %d bundles are not of their texts: looking again", len(wrong))
            await self._outlet.ask_again({key: one.counter for key, one in wrong.items()})

    async def _read(self, keys: Mapping[str, _Heard]) -> dict[str, VectorState | None]:
        return dict(zip(keys, await self._states.read_states(self._space, list(keys)), strict=True))


def _behind(heard: _Heard, state: VectorState | None) -> bool:
    """Whether Redis knows only of an older record, or of no bundle at all."""
    return state is not None and state.vector_at < heard.offset


def _wrong(heard: _Heard, state: VectorState | None) -> bool:
    """Whether this is the last record of its key, and another one should be."""
    if state is None:
        return bool(heard.text_hash)
    if state.vector_at > heard.offset or state.text_hash == heard.text_hash:
        return False
    return bool(heard.text_hash) or not state.problem.startswith(REFUSED)
