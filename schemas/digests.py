"""Digests of key sets: Redis, the topics and the indexes of a space compute the same one, each in its own order.

The sum of all pairs' digests modulo 2**128: adding and removing one pair costs one hash, whatever the order, so that a
digest is kept up to date and two places are compared without sending their keys. It finds mistakes; it is no defence
against somebody who chooses keys in order to collide.
"""

from __future__ import annotations

import hashlib

_DIGEST_BYTES = 16
_MODULUS = 1 << (8 * _DIGEST_BYTES)


def pair_digest(key: str, text_hash: str) -> int:
    """BLAKE2b of a bundle's key and the hash of its text, 16 bytes as an unsigned number.

    The key's length stands before it, so that no two pairs are the same bytes.
    """
    encoded = key.encode("utf-8", "surrogatepass")
    content = len(encoded).to_bytes(8, "big") + encoded + text_hash.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest(), "big")


class KeySetDigest:
    """The digest of a set of pairs. Whoever adds keeps each key at most once: a pair added twice counts twice.

    Equal sets have equal digests, and equal `hex()`; the count stands in it too.
    """

    __slots__ = ("count", "total")

    def __init__(self, total: int = 0, count: int = 0) -> None:
        self.total = total % _MODULUS
        self.count = count

    def add(self, key: str, text_hash: str) -> None:
        self.total = (self.total + pair_digest(key, text_hash)) % _MODULUS
        self.count += 1

    def remove(self, key: str, text_hash: str) -> None:
        """Of a pair that was added."""
        self.total = (self.total - pair_digest(key, text_hash)) % _MODULUS
        self.count -= 1

    def replace(self, key: str, before: str | None, after: str | None) -> None:
        """The key's text changed from `before` to `after`; None: it had none, or has none any more."""
        if before is not None:
            self.remove(key, before)
        if after is not None:
            self.add(key, after)

    def hex(self) -> str:
        """`<count>-<32 hex digits>`."""
        return f"{self.count}-{self.total:032x}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeySetDigest):
            return NotImplemented
        return (self.total, self.count) == (other.total, other.count)

    __hash__ = None  # type: ignore[assignment]  # it changes
