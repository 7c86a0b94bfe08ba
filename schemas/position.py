"""A position in a source as text that travels: who wrote something carries it to a lookup that must have seen it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Literal

import msgspec

from schemas.errors import DecodeError

TOKEN_CHARACTERS_MAX = 400
_VERSION = b"\x01"
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")

PositionKind = Literal["lsn", "time"]


class SourcePosition(msgspec.Struct, frozen=True, array_like=True):
    """Everything that `source` committed up to and with `value`.

    `kind` lsn: of Postgres, a place in its log; `cluster` is its system identifier, empty where nobody knows it.
    `kind` time: of Cassandra and Scylla, microseconds since 1970 UTC, at which the write had been acknowledged.
    """

    source: str
    kind: PositionKind
    value: int
    cluster: str = ""


_DECODER = msgspec.msgpack.Decoder(SourcePosition)


def token_of(position: SourcePosition) -> str:
    """base64url without padding: a version byte, a checksum of 4 bytes, the position."""
    body = msgspec.msgpack.encode(position)
    return base64.urlsafe_b64encode(_VERSION + _checksum(body) + body).decode().rstrip("=")


def token_of_lsn(source: str, lsn: str | int, cluster: str = "") -> str:
    """For a write to Postgres: `lsn` is what pg_current_wal_insert_lsn() gave after the commit, as text (16/B374D848)
    or number. With `cluster`, the server's system identifier, another server's position is refused, not compared.

    Raises DecodeError for what is no LSN.
    """
    return token_of(SourcePosition(source, "lsn", lsn_of(lsn), cluster))


def token_of_write_time(source: str, acknowledged_us: int) -> str:
    """For a write to Cassandra or Scylla that the driver had confirmed at that time, in microseconds since 1970 UTC."""
    return token_of(SourcePosition(source, "time", acknowledged_us))


def position_of(token: str) -> SourcePosition:
    """Raises DecodeError, fit for the caller."""
    broken = DecodeError(f"{token[:40]!r} is no position; take it from `ctxpipe position` or from an answer")
    if not token or len(token) > TOKEN_CHARACTERS_MAX:
        raise broken
    try:
        content = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, UnicodeEncodeError):
        raise broken from None
    if content[1:5] != _checksum(content[5:]):
        raise broken
    if content[:1] != _VERSION:
        raise DecodeError(f"{token[:40]!r} is a position of another release of ctxpipe")
    try:
        position = _DECODER.decode(content[5:])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise broken from None
    if not 0 <= position.value < 1 << 64:
        raise broken
    return position


def lsn_of(text: str | int) -> int:
    """16/B374D848 or its number → number. Raises DecodeError."""
    if isinstance(text, int):
        number = text
    elif text.isascii() and text.isdigit() and len(text) <= 20:
        number = int(text)
    else:
        found = _LSN.fullmatch(text)
        if found is None:
            raise DecodeError(f"{text[:40]!r} is no LSN; it looks like 16/B374D848")
        number = (int(found[1], 16) << 32) | int(found[2], 16)
    if not 0 <= number < 1 << 64:
        raise DecodeError(f"{number} is no LSN: it has at most 64 bits")
    return number


def lsn_text(lsn: int) -> str:
    """50849592 → 0/307E738"""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _checksum(body: bytes) -> bytes:
    return binascii.crc32(body).to_bytes(4, "big")
