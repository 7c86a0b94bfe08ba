"""What was read of a bundle → the answer: its final bytes, and what can honestly be said of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from pipeline.lookup.answer import Answer, EmbeddingLabel, Rung, Status, hash_of, is_within
from pipeline.lookup.applied_watch import NOTHING_SEEN, Seen
from pipeline.lookup.ladder import Read
from pipeline.lookup.options import LookupOptions
from pipeline.lookup.selection import drop
from pipeline.lookup.served import ServedContext
from pipeline.splicing import splice
from pipeline.stores.spaces import CUT, VectorState
from pipeline.stores.store import Fetched
from schemas.bundle import Meta, Stored

LATE = "did not come in time"
Unread = Literal["unread"]


class Composed:
    """A bundle with its fragments, final: what can be used again as long as none of them changes."""

    __slots__ = ("bundle", "embedding", "hash", "late", "meta", "metas", "position", "seen")

    def __init__(self, bundle: bytes, meta: Meta, metas: Sequence[Meta], late: Sequence[str]) -> None:
        self.bundle, self.meta, self.metas, self.late = bundle, meta, metas, late
        self.hash = hash_of(bundle)
        self.seen: Seen | None = None
        self.position: dict[str, str] = {}
        self.embedding: EmbeddingLabel | None = None
        """Only one that does not change while the bundle does not."""

    def position_of(self, seen: Seen) -> dict[str, str]:
        if self.seen is not seen:
            self.seen, self.position = seen, seen.tokens(self.metas)
        return self.position


def compose(served: ServedContext, fetched: Fetched, stored: Stored, meta: Meta) -> Composed:
    """Sections whose fragments did not come in time are not in it."""
    bundle = splice(stored.body, meta.fragments, fetched.fragments, served.empty)
    metas = [meta, *(one.meta for one in fetched.fragments.values() if one.meta is not None)]
    late = sorted({unit for unit, _ in fetched.late})
    for path in late:
        bundle = drop(bundle, path)
    return Composed(bundle, meta, metas, late)


def answer_of(
    served: ServedContext, key: str, read: Read, now_us: int, options: LookupOptions
) -> tuple[Answer, Meta | None]:
    """The answer, and the stored header of the bundle in it; None where the bundle is missing or is the default."""
    composed = _composed(served, read)
    if composed is None or _hidden(served, composed.meta, options):
        return without_bundle(served, key, read.seen, read.rung, now_us), None
    by_source, by_section = served.times(read.seen)
    limit_ms = served.spec.serving.max_age_ms if options.max_age_ms is None else options.max_age_ms
    age_ms = _ages(by_source, now_us)
    status: Status = "fresh"
    for age in age_ms.values():
        if age is None or age > limit_ms:
            status = "stale"
    if composed.late:
        status = "partial"
        by_section = {path: time for path, time in by_section.items() if not is_within(path, composed.late)}
    answer = Answer(
        context=served.spec.context,
        key=key,
        status=status,
        as_of_us=by_source,
        age_ms=age_ms,
        spec_version=composed.meta.spec_version,
        hash=composed.hash,
        bundle=composed.bundle,
        sections=by_section,
        left_out=dict.fromkeys(composed.late, LATE),
        position=composed.position_of(read.seen),
        rung=read.rung,
    )
    return answer, composed.meta


def without_bundle(served: ServedContext, key: str, seen: Seen, rung: Rung, now_us: int) -> Answer:
    """Missing, or the spec's default bundle, labelled."""
    by_source, _ = served.times(seen)
    default, bundle = served.spec.serving.default, None
    if default is not None:
        bundle = msgspec.json.encode(default)
    return Answer(
        context=served.spec.context,
        key=key,
        status="missing" if bundle is None else "fallback",
        as_of_us=by_source,
        age_ms=_ages(by_source, now_us),
        spec_version=served.spec.version,
        hash=None if bundle is None else hash_of(bundle),
        bundle=bundle,
        position=seen.tokens(),
        rung=rung if bundle is None else "default",
    )


def default_answer(served: ServedContext, key: str, now_us: int) -> Answer:
    """No rung answered: the spec's default bundle, of which nobody says how old what it stands for is."""
    return without_bundle(served, key, NOTHING_SEEN, "default", now_us)


def embedding_label(meta: Meta | None, space: str | None, state: VectorState | Unread | None) -> EmbeddingLabel:
    if meta is None:
        return EmbeddingLabel(space=space, state="none")
    if state == "unread":
        return EmbeddingLabel(space=space, state="unknown")
    if state is None:
        return EmbeddingLabel(space=space, state="pending")
    if state.problem and state.problem != CUT:
        return EmbeddingLabel(space=space, state="failing", problem=state.problem)
    if state.bundle_hash != meta.hash or state.vector_hash != state.text_hash:
        return EmbeddingLabel(space=space, state="pending")
    return EmbeddingLabel(space=space, state="current" if state.text_hash else "none", problem=state.problem)


def _composed(served: ServedContext, read: Read) -> Composed | None:
    near = read.near
    if near is not None and near.memo is not None:
        memo = near.memo
        assert isinstance(memo, Composed)
        return memo
    stored = read.fetched.bundle
    if stored is None or stored.meta is None:
        return None
    composed = compose(served, read.fetched, stored, stored.meta)
    if near is not None:
        near.memo = composed
    return composed


def _hidden(served: ServedContext, meta: Meta, options: LookupOptions) -> bool:
    return options.principal is not None and not options.principal.sees(served.spec, meta)


def _ages(as_of_us: dict[str, int | None], now_us: int) -> dict[str, float | None]:
    return {
        source: None if time_us is None else max(0, now_us - time_us) / 1000 for source, time_us in as_of_us.items()
    }
