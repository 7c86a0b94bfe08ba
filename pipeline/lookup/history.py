"""What a model saw: a bundle id → the exact bytes of that answer, or the honest word that they are no longer kept."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from pipeline.core.errors import ConfigError, CtxpipeError, Retryable
from pipeline.lookup.answer import Answer, hash_of, iso_time
from pipeline.lookup.bundle_ids import BundleId, Shape, places_of, read_id
from pipeline.lookup.keys import is_key
from pipeline.lookup.labels import LATE, compose
from pipeline.lookup.narrowing import narrowed
from pipeline.lookup.principal import Principal
from pipeline.lookup.served import ServedContext
from pipeline.lookup.service import LookupService
from pipeline.lookup.shaping import shaped
from pipeline.lookup.versions import OpenByNumber
from pipeline.stores.store import Fetched, HistoryReader
from schemas.bundle import ROOT_UNIT, SourceState, Stored, UnitKey
from schemas.event import version_of
from schemas.position import lsn_text

FIND_S_MAX = 5.0


class NotKept(CtxpipeError):
    """No bytes for this id; the text is fit for the caller, and the same whether there never were any, they are not
    the caller's, or they are gone."""


class NotComplete(NotKept):
    """The caller may see it, but a part of it is gone."""


class PastBundle(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of then. `written_us` is when its bundle was put together, `sections` when the linked sections in it
    were, microseconds since 1970 UTC; `sources` the newest change of each source in it. `hash` is of `bundle`, hex."""

    context: str
    key: str
    id: str
    spec_version: int
    written_us: int
    sources: Mapping[str, SourceState]
    sections: Mapping[str, int]
    left_out: Mapping[str, str]
    tokens: int | None
    hash: str
    bundle: bytes

    def to_json(self) -> bytes:
        """The bundle as its bytes are."""
        head = msgspec.json.encode(
            {
                "context": self.context,
                "key": self.key,
                "id": self.id,
                "spec_version": self.spec_version,
                "written": iso_time(self.written_us),
                "sources": {name: position_of(state) for name, state in self.sources.items()},
                "sections": {path: {"written": iso_time(time_us)} for path, time_us in self.sections.items()},
                "left_out": [{"section": path, "reason": reason} for path, reason in self.left_out.items()],
                "tokens": self.tokens,
                "hash": self.hash,
            }
        )
        return b'%b,"bundle":%b}' % (head[:-1], self.bundle)


@dataclass(frozen=True, slots=True)
class Kept:
    """A past answer with the stored values that it was made from; `served` is the version that made it."""

    past: PastBundle
    fetched: Fetched
    served: ServedContext


class History:
    """Finds past answers of all served contexts. `open_version` opens versions that serve no longer; they are closed
    again after the answer, one at a time."""

    def __init__(self, lookups: LookupService, open_version: OpenByNumber | None = None) -> None:
        self._lookups, self._open, self._one = lookups, open_version, asyncio.Lock()

    async def find(self, context: str, text: str, principal: Principal | None = None) -> Kept:
        """Raises BadId, NotKept, UnknownContext, Retryable when the store is away."""
        served, bundle_id = self._lookups.served(context), read_id(text)
        if bundle_id.spec_version == served.spec.version:
            return await find_in(served, text, bundle_id, principal)
        if self._open is None:
            raise not_kept(context)
        async with self._one:
            try:
                opened = await self._open(context, bundle_id.spec_version)
            except ConfigError:  # nothing is left of that version
                raise not_kept(context) from None
            try:
                return await find_in(opened.served, text, bundle_id, principal)
            finally:
                await opened.close()


async def find_in(served: ServedContext, text: str, bundle_id: BundleId, principal: Principal | None = None) -> Kept:
    """Of the version that made it. `text` is the id as it was given. Raises as History.find."""
    reader, key = served.reader, bundle_id.key
    if served.spec.history is None or not isinstance(reader, HistoryReader) or not is_key(served.spec, key):
        raise not_kept(served.spec.context)
    try:
        async with asyncio.timeout(FIND_S_MAX):
            root = (await reader.read_at([(UnitKey(ROOT_UNIT, key), bundle_id.counter)]))[0]
            if root is None or root.meta is None or (principal and not principal.sees(served.spec, root.meta)):
                raise not_kept(served.spec.context)
            fetched = await _with_fragments(reader, root, bundle_id)
    except TimeoutError:
        raise Retryable(f"the store did not answer within {FIND_S_MAX:g} s") from None
    answer = as_answered(served, fetched, bundle_id.key, bundle_id.shape)
    if answer.bundle is None or not hash_of(answer.bundle).startswith(bundle_id.digest.hex()):
        raise NotComplete("what is kept of this id does not give the same bytes any more")
    if principal is not None:
        answer = narrowed(answer, served.section_sources, principal)
    return Kept(_past(text, bundle_id, fetched, answer), fetched, served)


def not_kept(context: str) -> NotKept:
    """The same for what never was, what is not the caller's and what is gone."""
    return NotKept(f"no bundle of {context} is kept under this id (any more)")


async def _with_fragments(reader: HistoryReader, root: Stored, bundle_id: BundleId) -> Fetched:
    assert root.meta is not None
    places = places_of(root.meta)
    if len(places) != len(bundle_id.fragments):
        raise NotComplete("this id names other parts than its bundle has")
    counters = [bundle_id.counter_of(number) for number in range(len(places))]
    wanted = [(place, counter) for place, counter in zip(places, counters, strict=True) if counter is not None]
    found = await reader.read_at([(UnitKey(*place), counter) for place, counter in wanted]) if wanted else []
    gone = sorted({place[0] for (place, _), stored in zip(wanted, found, strict=True) if stored is None})
    if gone:
        raise NotComplete(f"no longer complete: {', '.join(gone)} as it was then is not kept any more")
    fragments = {place: stored for (place, _), stored in zip(wanted, found, strict=True) if stored is not None}
    late = {place for place, delta in zip(places, bundle_id.fragments, strict=True) if delta is False}
    return Fetched(root, fragments, frozenset(late))


def as_answered(served: ServedContext, fetched: Fetched, key: str, shape: Shape) -> Answer:
    """The bytes as the lookup made them: without what came too late, what the credential did not show, what was not
    asked for and what was too much, in this order."""
    stored = fetched.bundle
    assert stored is not None and stored.meta is not None
    composed = compose(served, fetched, stored, stored.meta)
    answer = Answer(
        context=served.spec.context,
        key=key,
        status="fresh",
        as_of_us={},
        age_ms={},
        spec_version=stored.meta.spec_version,
        hash=composed.hash,
        bundle=composed.bundle,
        left_out=dict.fromkeys(composed.late, LATE),
    )
    return shaped(answer, shape, served, fetched)


def _past(text: str, bundle_id: BundleId, fetched: Fetched, answer: Answer) -> PastBundle:
    assert answer.hash is not None and answer.bundle is not None
    sources: dict[str, SourceState] = {}
    for stored in (fetched.bundle, *fetched.fragments.values()):
        for name, state in (stored.meta.sources if stored and stored.meta else {}).items():
            if name not in sources or state.version > sources[name].version:
                sources[name] = state
    sections: dict[str, int] = {}
    for (unit, _), stored in fetched.fragments.items():
        sections[unit] = min(stored.counter, sections.get(unit, stored.counter))
    return PastBundle(
        context=answer.context,
        key=answer.key,
        id=text,
        spec_version=answer.spec_version,
        written_us=bundle_id.counter,
        sources=dict(sorted(sources.items())),
        sections={path: time_us for path, time_us in sections.items() if path not in answer.left_out},
        left_out=answer.left_out,
        tokens=answer.tokens,
        hash=answer.hash,
        bundle=answer.bundle,
    )


def position_of(state: SourceState) -> dict[str, str | None]:
    """A change's place in its source: the LSN of its commit and the time, or the time of the write alone."""
    if state.version == version_of(max(state.commit_time_us, 0), 0):
        return {"write_time": iso_time(state.commit_time_us)}
    return {"lsn": lsn_text(int(state.version[:16] or "0", 16)), "commit_time": iso_time(state.commit_time_us)}
