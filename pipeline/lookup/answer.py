"""An answer to "context for this key": the bundle's bytes and what can honestly be said about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

import msgspec

Status = Literal["fresh", "stale", "partial", "fallback", "missing"]
Rung = Literal["near", "store", "replica", "last_known", "default"]
"""Where an answer comes from, the nearest first; near is this process's own cache, last_known what it saw last."""
EmbeddingState = Literal["current", "pending", "failing", "none", "unknown"]
HASH_BYTES = 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.encode


class EmbeddingLabel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a bundle's vector in the space that answers searches; None before any does.

    current (it was made from this bundle's text; `problem` may say that the text was too long for it), pending (it is
    on its way), failing (`problem` says why there is none or no newer one), none (the bundle has no text), unknown (the
    store did not tell).
    """

    space: str | None
    state: EmbeddingState
    problem: str = ""


class NotReached(msgspec.Struct, frozen=True):
    """A position that an answer does not hold for certain."""

    source: str
    position: str
    reason: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`status`: fresh (every source's age is within the limit), stale (it is not, or is unknown), partial (linked
    sections did not come in time; `left_out` names them), missing (no such bundle), fallback (the spec's default
    bundle, since there is none or the store is away).

    `as_of_us` per source: all that it committed up to then is in the bundle; microseconds since 1970 UTC, None when
    nobody knows. `age_ms` is the time since. `hash` is of the bundle's bytes, hex. `bundle` is JSON, None when missing.
    `sections`: the same times per section of the spec, by path. `left_out`: why a section is not in the bundle.
    """

    context: str
    key: str
    status: Status
    as_of_us: dict[str, int | None]
    age_ms: dict[str, float | None]
    spec_version: int
    hash: str | None
    bundle: bytes | None
    embedding: EmbeddingLabel | None = None
    """Only where the context embeds."""
    sections: dict[str, int | None] = {}
    left_out: dict[str, str] = {}
    tokens: int | None = None
    """Of the bundle, where the caller gave a token budget."""
    position: dict[str, str] = {}
    """Per source, what the answer has seen: a lookup with these positions sees no less."""
    not_reached: tuple[NotReached, ...] = ()
    """Positions that were asked for and that the bundle may not hold; then it is never fresh."""
    id: str | None = None
    """Leads back to these bytes for as long as the spec's history says; None where there is no bundle or no history."""
    rung: Rung = "store"

    def to_json(self) -> bytes:
        """{"context","key","status","as_of","age_ms","spec_version","hash","sections","left_out","rung",
        "bundle"}, the bundle as its bytes are; with "embedding" before it where the context embeds, "id" where its
        history is kept."""
        return b'%b,"bundle":%b}' % (self.labels_json()[:-1], b"null" if self.bundle is None else self.bundle)

    def labels_json(self) -> bytes:
        """As to_json, without the bundle."""
        head = _encode(
            {
                "context": self.context,
                "key": self.key,
                "status": self.status,
                "as_of": {source: iso_time(time_us) for source, time_us in self.as_of_us.items()},
                "age_ms": self.age_ms,
                "spec_version": self.spec_version,
                "hash": self.hash,
                "sections": {path: {"as_of": iso_time(time_us)} for path, time_us in self.sections.items()},
                "left_out": [{"section": path, "reason": reason} for path, reason in self.left_out.items()],
            }
        )
        head = b'%b,"rung":"%b"}' % (head[:-1], self.rung.encode())
        if self.id is not None:
            head = b'%b,"id":%b}' % (head[:-1], _encode(self.id))
        if self.tokens is not None:
            head = b'%b,"tokens":%d}' % (head[:-1], self.tokens)
        if self.position:
            head = b'%b,"position":%b}' % (head[:-1], _encode(self.position))
        if self.not_reached:
            head = b'%b,"not_reached":%b}' % (head[:-1], _encode(self.not_reached))
        if self.embedding is not None:
            head = b'%b,"embedding":%b}' % (head[:-1], _encode(self.embedding))
        return head


def with_parts(answer: Answer, bundle: bytes, gone: Iterable[str], reason: str) -> Answer:
    """Of the bundle only this is left: the sections at the paths `gone` are not in it any more. A reason that is given
    already stays."""
    told = dict.fromkeys(gone, reason)
    times = answer.sections.items()
    return msgspec.structs.replace(
        answer,
        bundle=bundle,
        hash=hash_of(bundle),
        left_out={**told, **answer.left_out},
        sections={path: time_us for path, time_us in times if not is_within(path, told)},
    )


def hash_of(bundle: bytes) -> str:
    """BLAKE2b, 16 bytes as hex."""
    return hashlib.blake2b(bundle, digest_size=HASH_BYTES).hexdigest()


def is_within(path: str, outer: Iterable[str]) -> bool:
    """Whether a path with dots is one of these, or lies inside one."""
    return any(path == one or path.startswith(f"{one}.") for one in outer)


@lru_cache(4_096)
def iso_time(time_us: int | None) -> str | None:
    """2026-01-02T03:04:05.678901Z"""
    if time_us is None:
        return None
    moment = _EPOCH + timedelta(microseconds=time_us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
