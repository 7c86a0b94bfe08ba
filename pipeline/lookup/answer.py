"""An answer to "context for this key": the bundle's bytes and what can honestly be said about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

Status = Literal["fresh", "stale", "missing", "fallback"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = msgspec.json.encode


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`status`: fresh (every source's age is within the spec's limit), stale (it is not, or is unknown), missing (no
    such bundle), fallback (the spec's default bundle, since there is none or the store is away).

    `as_of_us` per source: all that it committed up to then is in the bundle; microseconds since 1970 UTC, None when
    nobody knows. `age_ms` is the time since. `hash` is of the bundle's bytes, hex. `bundle` is JSON, None when missing.
    """

    context: str
    key: str
    status: Status
    as_of_us: dict[str, int | None]
    age_ms: dict[str, float | None]
    spec_version: int
    hash: str | None
    bundle: bytes | None

    def to_json(self) -> bytes:
        """{"context","key","status","as_of","age_ms","spec_version","hash","bundle"}, the bundle as its bytes are."""
        head = _encode(
            {
                "context": self.context,
                "key": self.key,
                "status": self.status,
                "as_of": {source: iso_time(time_us) for source, time_us in self.as_of_us.items()},
                "age_ms": self.age_ms,
                "spec_version": self.spec_version,
                "hash": self.hash,
            }
        )
        return b'%b,"bundle":%b}' % (head[:-1], b"null" if self.bundle is None else self.bundle)


def iso_time(time_us: int | None) -> str | None:
    """2026-01-02T03:04:05.678901Z"""
    if time_us is None:
        return None
    moment = _EPOCH + timedelta(microseconds=time_us)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
